"""Mutations that know the format of their input, so that the result gets past a parser's first bytes.

The parsers of JSON and protobuf are C code, which Python's coverage does not see: mutating single bytes would
hardly ever produce a command that parses.
"""

import re
from collections.abc import Callable
from itertools import chain, zip_longest
from random import Random
from typing import Final

from imqtt.errors import ImqttError
from imqtt.protocol import (
    Bounds,
    Format,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    format_of,
    join,
)
from tests.verification.fuzz.boundary_values import TEXTS, some_bytes
from tests.verification.fuzz.json_mutation import json_tokens, json_value
from tests.verification.fuzz.mqtt_mutation import mqtt_packets
from tests.verification.fuzz.protobuf_mutation import protobuf_fields
from tests.verification.fuzz.seeds import seeds

Bytewise = Callable[[bytes, int], bytes]
"""Mutates bytes, up to a size: the fuzzer's own mutation."""

Mutation = Callable[[bytes, Random], bytes]


def mutate(target: str, data: bytes, random: Random, bytewise: Bytewise, most: int) -> bytes:
    """A mutation of `data` with at most `most` bytes. The same `random` gives the same result."""
    for _ in range(random.choice((1, 1, 2, 4))):
        if random.random() < 0.2:
            data = bytewise(data, most)
        else:
            data = random.choice(_MUTATIONS[target])(data, random)
    return data[:most]


def _by_format(data: bytes, random: Random) -> bytes:
    if format_of(data) is Format.JSON:
        return random.choice((json_value, json_value, json_tokens))(data, random)
    return protobuf_fields(data, random)


def _command_in_the_other_format(data: bytes, random: Random) -> bytes:
    try:
        return encode_command(decode_command(data, Bounds()), _other_format(data))
    except (ImqttError, ValueError):
        return random.choice(_seeds("commands"))


def _frames_in_the_other_format(data: bytes, random: Random) -> bytes:
    try:
        frames = decode_frames(data)
        form = _other_format(data)
        return join([encode_frame(frame, form) for frame in frames], form)
    except (ImqttError, ValueError):
        return random.choice(_seeds("frames"))


def _two_packets_of_frames(data: bytes, random: Random) -> bytes:
    """Joins the frames of two packets."""
    other = random.choice(_seeds("frames"))
    if format_of(data) is Format.JSON:
        if format_of(other) is Format.JSON and data.endswith(b"]}") and len(data) > 13 and len(other) > 13:
            return data[:-2] + b"," + other[11:]
        return json_value(data, random)
    return data + other if format_of(other) is Format.PROTOBUF else protobuf_fields(data, random)


def _other_format(data: bytes) -> Format:
    return Format.PROTOBUF if format_of(data) is Format.JSON else Format.JSON


def _seed(target: str) -> Mutation:
    return lambda _, random: random.choice(_seeds(target))


def _seeds(target: str) -> list[bytes]:
    if target not in _SEEDS:
        _SEEDS[target] = seeds(target)
    return _SEEDS[target]


_SEEDS: dict[str, list[bytes]] = {}


def _name_parts(data: bytes, random: Random) -> bytes:
    """Parts between `/`, `@` or `:` are changed, doubled, removed or swapped; the separators stay."""
    parts = re.split(b"([/@:])", data)
    parts, marks = parts[::2], parts[1::2]
    at = random.randrange(len(parts))
    match random.randrange(5):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, parts[random.randrange(len(parts))])
        case 2:
            parts[at] = random.choice(TEXTS).encode(errors="surrogatepass")
        case 3:
            parts[at] = some_bytes(parts[at], random)
        case _:
            random.shuffle(parts)
    marks += (marks[-1:] or [b":"]) * (len(parts) - 1 - len(marks))
    return b"".join(chain.from_iterable(zip_longest(parts, marks[: len(parts) - 1], fillvalue=b"")))


_MUTATIONS: Final[dict[str, tuple[Mutation, ...]]] = {
    "commands": (*[_by_format] * 4, _command_in_the_other_format, _seed("commands")),
    "content": (json_value, json_value, json_tokens, json_tokens, some_bytes),
    "frames": (*[_by_format] * 3, _frames_in_the_other_format, _two_packets_of_frames),
    "link": (mqtt_packets,) * 5 + (some_bytes,),
    "names": (_name_parts, _name_parts, some_bytes),
}
