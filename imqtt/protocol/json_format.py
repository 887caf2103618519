"""The JSON form. A command is one object with a `type`; a packet down is `{"frames": [...]}`."""

import re
from contextlib import suppress
from typing import cast

import msgspec

from imqtt.errors import Malformed, Unsupported
from imqtt.model import COMMANDS, FRAMES, AnyCommand, AnyFrame, Event, Value, json_decoder, to_json_type
from imqtt.protocol.command_info import READ_UP_TO, CommandInfo


class _Packet(Value, frozen=True):
    frames: tuple[AnyFrame, ...]


class _RawPacket(Value, frozen=True):
    frames: tuple[msgspec.Raw, ...]


class _Names(Value, frozen=True):
    type: str = ""
    conversation: str = ""
    client_msg_id: str = ""
    ref: str = ""


_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.json.Encoder(enc_hook=to_json_type)
_command: msgspec.json.Decoder[AnyCommand] = json_decoder(AnyCommand)
_frame: msgspec.json.Decoder[AnyFrame] = json_decoder(AnyFrame)
_packet: msgspec.json.Decoder[_Packet] = json_decoder(_Packet)
_raw_packet = msgspec.json.Decoder(_RawPacket)
_names = msgspec.json.Decoder(_Names)


def encode_command(command: AnyCommand) -> bytes:
    return _encoder.encode(command)


def decode_command(payload: bytes) -> AnyCommand:
    """Raises `Malformed`, or `Unsupported` for a command of a later version."""
    try:
        return _command.decode(payload)
    except _UNREADABLE as error:
        kind = identify(payload).type
        if kind and kind not in COMMANDS:
            raise Unsupported(f"no command of type {kind[:32]!r}") from None
        raise Malformed(_reason("not a command", error, payload)) from None


def identify(payload: bytes) -> CommandInfo:
    """The names of the command in `payload`, as far as they can be read."""
    if len(payload) <= READ_UP_TO:
        with suppress(*_UNREADABLE):
            found = _names.decode(payload)
            return CommandInfo.of(found.type, found.conversation, found.client_msg_id, found.ref)
    return _scan(payload)


def encode_frame(frame: AnyFrame) -> bytes:
    """One frame, to be joined with others by `join`: an event goes to many devices and is encoded once."""
    return _encoder.encode(frame)


def pack(event: Event) -> tuple[Event, int]:
    """See `imqtt.protocol.packer`."""
    encoded = _encoder.encode(event)
    return cast("Event", msgspec.Raw(encoded)), len(encoded)


def join(frames: list[bytes]) -> bytes:
    return b'{"frames":[' + b",".join(frames) + b"]}"


def decode_frames(payload: bytes) -> tuple[AnyFrame, ...]:
    """Raises `Malformed`. Frames of a later version are left out."""
    try:
        return _packet.decode(payload).frames
    except _UNREADABLE:
        pass
    try:
        frames = _raw_packet.decode(payload).frames
        return tuple(_frame.decode(frame) for frame in frames if _names.decode(frame).type in FRAMES)
    except _UNREADABLE as error:
        raise Malformed(_reason("not a packet of frames", error, payload)) from None


def _reason(what: str, error: Exception, payload: bytes) -> str:
    """Short, and in ASCII, since the parser quotes its input."""
    reason = str(error)
    if "surrogate" in reason or ("truncated" in reason and _LONE_SURROGATE.search(payload)):
        reason = "text is not valid Unicode (lone surrogate)"
    return ascii(f"{what}: {reason}")[1:-1][:120]


# --- JSON that no parser accepts ----------------------------------------------------------------------

_SCANNED = 4096  # bytes: a client that writes its names before the content gets them back
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]:,]', re.DOTALL)


def _scan(payload: bytes) -> CommandInfo:
    """The names at the top level, whatever the fault: cut off, a lone surrogate, a value of another type."""
    found: dict[bytes, bytes] = {}
    depth = 0
    key = before = b""
    for match in _TOKENS.finditer(payload, 0, _SCANNED):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token[:1] == b'"' and token[-1:] == b'"':
            if before == b":":
                found[key] = token[1:-1]
            else:
                key = token[1:-1]
        before = token
    values = (found.get(name.encode(), b"") for name in CommandInfo._fields)
    # A name with an escape in it is left out, since it is not read as JSON here.
    return CommandInfo.of(*("" if b"\\" in value else value.decode("latin-1") for value in values))
