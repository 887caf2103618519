"""Values at boundaries, and the simplest mutation of bytes."""

from random import Random
from typing import Final

NUMBERS: Final = (
    0, 1, -1, 2, 31, 32, 100, 101, 127, 128, 255, 256, 2047, 2048, 65_535, 65_536, 268_435_455, 268_435_456,
    1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32, (1 << 53) - 1, 1 << 53, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, -(1 << 63), -(1 << 63) - 1, 10**30,
)  # fmt: skip
TEXTS: Final = (
    "", "a", "alice", "d:alice:bob", "u:alice", "g:x", "d:bob:alice", "m1", "n1", "online", "offline",
    "text/plain", "YQ==", "\0", "\n", " ", "é", "🙂", "\ud800", "\udfff", "\x7f", "\u2028", "x" * 64,
    "x" * 65, "x" * 127, "x" * 128, "x" * 131, "x" * 132, "x" * 201, "\u0001" * 60, "9223372036854775807",
    "9223372036854775808", "0", "null", "message", "start", "archived",
)  # fmt: skip
TYPES: Final = (
    "hello", "send", "mark", "typing", "sync", "history", "status", "welcome", "accepted", "rejected",
    "event", "marks", "page", "presence", "dance",
)  # fmt: skip


def some_bytes(data: bytes, random: Random) -> bytes:
    """Changes, inserts or removes a few bytes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randint(0, len(out))
        put = bytes(
            random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256))) for _ in range(random.randrange(3))
        )
        out[at : at + random.randrange(3)] = put
    return bytes(out)
