"""Mutations of a stream of MQTT packets: of their order, or within one, with its length corrected."""

from random import Random
from typing import Final

from tests.verification.fuzz.boundary_values import some_bytes
from tests.verification.fuzz.protobuf_mutation import varint
from tests.verification.fuzz.seeds import packets
from tests.verification.fuzz.stream import HEAD, whole_packets


def mqtt_packets(data: bytes, random: Random) -> bytes:
    """Packets are removed, doubled, inserted, swapped, or changed inside."""
    head, stream = data[:HEAD].ljust(HEAD, b"\0"), data[HEAD:]
    if random.random() < 0.15:
        return some_bytes(head, random)[:HEAD].ljust(HEAD, b"\0") + stream
    found = whole_packets(stream)
    rest = stream[sum(map(len, found)) :]
    match random.randrange(6):
        case 0 | 1:
            found.insert(random.randint(0, len(found)), random.choice(_PACKETS))
        case 2 if found:
            del found[random.randrange(len(found))]
        case 3 if found:
            found.insert(random.randint(0, len(found)), random.choice(found))
        case 4:
            random.shuffle(found)
        case _ if found:
            at = random.randrange(len(found))
            found[at] = _packet(found[at], random)
    return head + b"".join(found) + rest


def _packet(raw: bytes, random: Random) -> bytes:
    """Changes the body and corrects the length, or changes the header."""
    start = next(at for at in range(1, len(raw)) if raw[at] < 0x80) + 1
    first, body = raw[0], raw[start:]
    match random.randrange(5):
        case 0:
            first = first & 0xF0 | random.randrange(16)
        case 1:
            first = random.randrange(256)
        case 2:  # a property, at a place where one may start
            at = random.randint(0, len(body))
            put = random.choice(_PROPERTIES)
            body = body[:at] + bytes((len(put),)) + put + body[at:]
        case _:
            body = some_bytes(body, random)
    return bytes((first,)) + varint(len(body)) + body


_PACKETS: Final = packets()
_PROPERTIES: Final = (
    b"", b"\x26\0\1a\0\1b", b"\x26\0\0\0\0", b"\x23\0\1", b"\x21\0\0", b"\x21\0\5", b"\x27\0\0\1\0",
    b"\x24\0", b"\x24\1", b"\x13\0\0", b"\x12\0\2id", b"\x1f\0\2no", b"\x1c\0\1s", b"\x0b\xff\x7f",
    b"\x0b\xff\xff",
    b"\x09\0\2\xff\xff", b"\x16\0\0", b"\x01\1", b"\x02\0\0\0\7", b"\x11\xff\xff\xff\xff", b"\x03\0\1\xff",
    b"\x08\0\1r", b"\x7f", b"\x26\0\1\xc3\0\1b", b"\x1f\xff\xff",
)  # fmt: skip
