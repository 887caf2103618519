"""Which partition a conversation belongs to. Clients compute this too: `topics.md` says how."""

from zlib import crc32


def partition_of(conversation: str, partitions: int) -> int:
    """CRC-32 (ISO 3309, as in zlib) of the id's UTF-8 bytes, modulo the number of partitions."""
    return crc32(conversation.encode()) % partitions


def home_of(user: str) -> str:
    """The conversation that a user's `Hello`, `Sync` and `Status` are routed by."""
    return f"u:{user}"
