"""Bytes to model and back: topics, protobuf, JSON.

A payload's format is found out by its first byte: `{` is JSON. No protobuf command or packet of frames
can begin with it (it would be field 15 as a group).
"""

from collections.abc import Callable
from enum import Enum

from imqtt.errors import TooLarge
from imqtt.model import AnyCommand, AnyFrame, Event
from imqtt.protocol import json_format, protobuf_format
from imqtt.protocol.check import Bounds, check
from imqtt.protocol.command_info import READ_UP_TO, CommandInfo

__all__ = [
    "Bounds", "CommandInfo", "Format", "check", "decode_command", "decode_frames", "encode_command",
    "encode_frame", "format_of", "identify", "join", "packer",
]  # fmt: skip


class Format(Enum):
    """The two forms of commands and frames."""

    JSON = "json"
    PROTOBUF = "protobuf"

    __hash__ = object.__hash__  # Enum's own is a call in Python, for each frame of each device

    @classmethod
    def of(cls, name: str) -> "Format":
        """The format of this name; JSON for one that only another version of imqtt knows."""
        return cls.PROTOBUF if name == cls.PROTOBUF.value else cls.JSON


def format_of(payload: bytes) -> Format:
    return Format.JSON if payload[:1] == b"{" else Format.PROTOBUF


def decode_command(payload: bytes, bounds: Bounds) -> AnyCommand:
    """A checked command. Raises `Malformed`, `Unsupported`, `Invalid` or `TooLarge`."""
    if len(payload) > bounds.command:
        raise TooLarge.of("a command", len(payload), bounds.command)
    if payload[:1] == b"{":
        command = json_format.decode_command(payload)
    else:
        command = protobuf_format.decode_command(payload)
    check(command, bounds)
    return command


def identify(payload: bytes) -> CommandInfo:
    """The names of a command that did not decode or was refused, as far as readable. Never raises."""
    if payload[:1] == b"{":
        return json_format.identify(payload)
    return protobuf_format.identify(payload) if len(payload) <= READ_UP_TO else CommandInfo()


def encode_command(command: AnyCommand, format: Format) -> bytes:
    if format is Format.JSON:
        return json_format.encode_command(command)
    return protobuf_format.encode_command(command)


def encode_frame(frame: AnyFrame, format: Format) -> bytes:
    """One encoded frame, for `join`."""
    if format is Format.JSON:
        return json_format.encode_frame(frame)
    return protobuf_format.encode_frame(frame)


def packer(format: Format) -> Callable[[Event], tuple[Event, int]]:
    """Encodes the events of one page, each once: their sizes decide how many the page holds.

    The function returns the encoded event and its size as a frame. The encoded one is not a value: it only
    takes the event's place in a page that `encode_frame` encodes in the same format.
    """
    return json_format.pack if format is Format.JSON else protobuf_format.packer()


def join(frames: list[bytes], format: Format) -> bytes:
    """The payload that carries these encoded frames, in their order."""
    if format is Format.JSON:
        return json_format.join(frames)
    return protobuf_format.join(frames)


def decode_frames(payload: bytes) -> tuple[AnyFrame, ...]:
    """The checked frames of a packet, in their order. Raises `Malformed`."""
    if payload[:1] == b"{":
        frames = json_format.decode_frames(payload)
    else:
        frames = protobuf_format.decode_frames(payload)
    for frame in frames:
        check(frame, None)
    return frames
