"""Mutations of a protobuf message: of any field in it, with all lengths corrected."""

from random import Random
from typing import Any

from tests.verification.fuzz.boundary_values import NUMBERS, TEXTS, TYPES, some_bytes

Field = tuple[int, int, Any]
"""Its number, its wire type, and an int, bytes, or the fields of a message."""


def protobuf_fields(data: bytes, random: Random) -> bytes:
    """One field is removed, doubled, moved, renumbered or filled with another value."""
    fields = _parse(data, 0)
    if fields is None:
        return some_bytes(data, random)
    holder = fields
    while (inner := [field[2] for field in holder if isinstance(field[2], list)]) and random.random() < 0.8:
        holder = random.choice(inner)
    if not holder or random.random() < 0.15:
        holder.append(_new_field(random))
        return _write(fields)
    at = random.randrange(len(holder))
    number, kind, value = holder[at]
    match random.randrange(6):
        case 0:
            del holder[at]
        case 1:
            holder[at:at] = [holder[at]] * random.choice((1, 1, 3, 100))
        case 2:
            holder[at] = (random.choice((number + 1, max(1, number - 1), random.randint(1, 16))), kind, value)
        case 3:
            holder.insert(at, _new_field(random))
        case 4 if isinstance(value, list):
            holder[at] = (number, kind, _write(value)[: random.randrange(20)])
        case _:
            holder[at] = (number, kind, _other_payload(kind, value, random))
    return _write(fields)


def _new_field(random: Random) -> Field:
    kind = random.choice((0, 1, 2, 2, 5))
    return random.randint(1, 13), kind, _other_payload(kind, b"", random)


def _other_payload(kind: int, value: Any, random: Random) -> Any:
    if kind == 2:
        if isinstance(value, list):
            return [*value, _new_field(random)]
        if value and random.random() < 0.3:
            return some_bytes(value, random)
        text = random.choice((*TEXTS, *TYPES, "[1]", '{"a":[]}', "1e400", '"\\ud800"', "[" * 33 + "]" * 33))
        return text.encode(errors="surrogatepass")
    return random.choice(NUMBERS) % (1 << 64)


def _parse(data: bytes, depth: int) -> list[Field] | None:
    """The fields of a message, or None for other bytes."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if not number or at > len(data):
            return None
        value: Any
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        elif kind == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
            if depth < 6 and at <= len(data) and (inner := _parse(value, depth + 1)):
                value = inner
        else:
            return None
        if at > len(data):
            return None
        fields.append((number, kind, value))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, len(data) + 1


def _write(fields: list[Field]) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if kind == 0:
            out += varint(value)
        elif kind == 2:
            raw = _write(value) if isinstance(value, list) else value
            out += varint(len(raw)) + raw
        else:
            width = 8 if kind == 1 else 4
            out += (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(out)


def varint(value: int) -> bytes:
    """A number as protobuf and MQTT lengths encode it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
