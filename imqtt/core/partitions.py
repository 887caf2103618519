"""The partition of a conversation, which clients compute too, and the worker of a partition."""

from collections.abc import Collection
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from imqtt.model import AnyCommand


@lru_cache(65_536)
def partition_of(conversation: str, partitions: int) -> int:
    """CRC-32 (ISO 3309, as in zlib) of the id's UTF-8 bytes, modulo the number of partitions."""
    return crc32(conversation.encode()) % partitions


def home_of(user: str) -> str:
    """The conversation that commands without one of their own are routed by."""
    return f"u:{user}"


def route(command: AnyCommand, user: str) -> str:
    """The conversation whose partition a command goes to: its own, or its user's."""
    return getattr(command, "conversation", "") or home_of(user)


def assign(partitions: int, workers: Collection[str]) -> list[str]:
    """The worker that each partition belongs to; "" if there is none.

    Each worker draws a number for each partition, by a hash that all workers compute alike, and the highest
    one owns it. So a worker that joins takes over only the partitions that become its own, and only the
    partitions of a worker that leaves move. Shares are as uneven as draws are: of 16 partitions, one of two
    workers has 10 or more with a probability of 0.45.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous, or
    highest random weight, hashing).
    """
    ranked = sorted(workers)
    return [max(ranked, key=lambda worker: _draw(worker, number), default="") for number in range(partitions)]


def _draw(worker: str, partition: int) -> bytes:
    return blake2b(f"{partition}/{worker}".encode(), digest_size=8).digest()
