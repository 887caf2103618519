"""The protobuf form of `imqtt.proto`.

Most messages go by tables compiled from the model (`protobuf_tables`). Those that are sent often are written
by hand and filled field by field: that costs half of building them from arguments, and a third of building a
message and copying it into its parent.
"""

from collections.abc import Callable
from typing import Any, cast

from google.protobuf.message import DecodeError
from msgspec.structs import replace

from imqtt.bodies import BODIES
from imqtt.errors import Malformed, Unsupported
from imqtt.model import (
    COMMANDS,
    FRAMES,
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Event,
    Id,
    JsonText,
    Position,
    Send,
    Slice,
    canonical_json,
    json_decoder,
)
from imqtt.protocol.command_info import CommandInfo
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.protobuf_tables import OVERRIDES, Codec, codec

_decode_json = json_decoder(Any).decode


def encode_command(command: AnyCommand) -> bytes:
    out = pb.Command()
    codec(type(command)).fill(getattr(out, command.name), command)
    return out.SerializeToString()


def decode_command(payload: bytes) -> AnyCommand:
    """Raises `Malformed`, or `Unsupported` for a command of a later version."""
    try:
        message = pb.Command.FromString(payload)
    except DecodeError:
        raise Malformed("neither JSON (its first byte is '{') nor a protobuf Command") from None
    which = message.WhichOneof("command")
    if which is not None:
        command: AnyCommand = _READ_COMMAND[which](getattr(message, which))
        return command
    if payload:
        raise Unsupported("a protobuf Command without a command that this server knows")
    raise Malformed("an empty payload")


def identify(payload: bytes) -> CommandInfo:
    """The names of the command in `payload`; its content is not looked at."""
    try:
        message = pb.Command.FromString(payload)
    except DecodeError:
        return CommandInfo()
    which = message.WhichOneof("command")
    if which is None:
        return CommandInfo()
    command = getattr(message, which)
    return CommandInfo.of(
        which, *(getattr(command, name, "") for name in ("conversation", "client_msg_id", "ref"))
    )


def encode_frame(frame: AnyFrame) -> bytes:
    """One frame as `Frames` of its own, for `join` to concatenate."""
    out = pb.Frames()
    name, fill = _FILL_FRAME[type(frame)]
    fill(getattr(out.frames.add(), name), frame)
    return out.SerializeToString()


def packer() -> Callable[[Event], tuple[Event, int]]:
    """See `imqtt.protocol.packer`. A packed event is an encoded `Frame`.

    Its only field has the number of a slice's `events`. So it is also a `Slice` of this event alone, and
    slices, one after the other, are merged when they are decoded.
    """
    frame = pb.Frame()  # one for all: making a message costs a third of filling it
    out = frame.event

    def pack(event: Event) -> tuple[Event, int]:
        out.Clear()
        _fill_event(out, event)
        packed = frame.SerializeToString()
        length = len(packed)
        return cast("Event", packed), length + (2 if length < 1 << 7 else 3 if length < 1 << 14 else 4)

    return pack


def join(frames: list[bytes]) -> bytes:
    """A packet of encoded frames. A repeated field is its elements, one after the other."""
    return b"".join(frames)


def decode_frames(payload: bytes) -> tuple[AnyFrame, ...]:
    """Raises `Malformed`. Frames of a later version are left out."""
    try:
        frames = pb.Frames.FromString(payload).frames
        return tuple(
            codec(FRAMES[which]).read(getattr(frame, which))
            for frame in frames
            if (which := frame.WhichOneof("frame")) is not None
        )
    except DecodeError:
        raise Malformed("not a protobuf packet of frames") from None


# --- messages that are sent often -------------------------------------------------------------------


def _fill_send(out: pb.Send, send: Send) -> None:
    out.conversation = send.conversation
    out.client_msg_id = send.client_msg_id
    out.client_time = send.client_time
    _fill_content(out.content, send.content)
    out.content.SetInParent()


def _send_in(send: pb.Send) -> Send:
    return Send(send.conversation, send.client_msg_id, _content_in(send.content), send.client_time)


def _fill_accepted(out: pb.Accepted, accepted: Accepted) -> None:
    out.conversation = accepted.conversation
    out.client_msg_id = accepted.client_msg_id
    out.seq = accepted.seq
    out.id = accepted.id
    out.time = accepted.time
    if accepted.previous:
        out.previous = accepted.previous


def _accepted_in(raw: pb.Accepted) -> Accepted:
    return Accepted(raw.conversation, raw.client_msg_id, raw.seq, Id(raw.id), raw.time, Id(raw.previous))


def _fill_content(out: pb.Content, content: Content) -> None:
    if content.text is not None:
        out.text = content.text
    if content.data is not None:
        out.data = content.data
    if content.json is not None:
        out.json = content.json
    if content.content_type:
        out.content_type = content.content_type
    if content.reply_to is not None:
        codec(Position).fill(out.reply_to, content.reply_to)
    if content.mentions:
        out.mentions.extend(content.mentions)


def _content_in(content: pb.Content) -> Content:
    which = content.WhichOneof("body")
    mentions = content.mentions
    return Content(
        content.text if which == "text" else None,
        content.data if which == "data" else None,
        content.content_type,
        _json_in(content.json) if which == "json" else None,
        codec(Position).read(content.reply_to) if content.HasField("reply_to") else None,
        tuple(mentions) if mentions else (),  # a tuple of none takes three times as long as the question
    )


def _json_in(text: str) -> JsonText | None:
    """The JSON body, or None for `null`: in the JSON format that is the same as no body."""
    try:
        value = _decode_json(text)
        return None if value is None else canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"content.json is not JSON: {error}"[:120]) from None


def _fill_event(out: pb.Event, event: Event) -> None:
    if isinstance(event, bytes):  # packed
        out.CopyFrom(pb.Frame.FromString(event).event)
        return
    out.conversation = event.conversation
    out.seq = event.seq
    out.id = event.id
    out.time = event.time
    out.sender = event.sender
    out.device = event.device
    out.client_msg_id = event.client_msg_id
    _fill_content(out.content, event.content)
    if event.kind != "message":
        out.kind = event.kind
        for name, body in _OTHER_BODIES.items():
            if (value := getattr(event, name)) is not None:
                body.fill(getattr(out, name), value)
    if event.client_time:
        out.client_time = event.client_time
    if event.withheld:
        out.withheld = event.withheld
    if event.previous:
        out.previous = event.previous


def _fill_slice(out: pb.Slice, part: Slice) -> None:
    out.conversation = part.conversation
    if part.events and isinstance(part.events[0], bytes):  # packed
        out.MergeFromString(b"".join(cast("tuple[bytes, ...]", part.events)))
    else:
        for event in part.events:
            _fill_event(out.events.add(), event)
    out.more = part.more
    out.restart = part.restart
    out.missing = part.missing
    out.history = part.history
    for event in part.registers:
        _fill_event(out.registers.add(), event)
    out.SetInParent()


def _slice_in(part: pb.Slice) -> Slice:
    return Slice(
        part.conversation,
        tuple(map(_event_in, part.events)),
        part.more,
        part.restart,
        part.missing,
        part.history,
        tuple(map(_event_in, part.registers)),
    )


def _event_in(event: pb.Event) -> Event:
    made = Event(
        event.conversation, event.seq, Id(event.id), event.time, event.sender, event.device,
        event.client_msg_id, _content_in(event.content), event.kind or "message", event.client_time,
        event.withheld, Id(event.previous),
    )  # fmt: skip
    if event.kind and (name := event.WhichOneof("body")) in _OTHER_BODIES:
        return replace(made, **{name: _OTHER_BODIES[name].read(getattr(event, name))})
    return made


OVERRIDES.update(
    {
        Accepted: Codec(_fill_accepted, _accepted_in),
        Content: Codec(_fill_content, _content_in),
        Event: Codec(_fill_event, _event_in),
        Slice: Codec(_fill_slice, _slice_in),
        Send: Codec(_fill_send, _send_in),
    }
)
_READ_COMMAND = {name: codec(cls).read for name, cls in COMMANDS.items()}
_FILL_FRAME = {cls: (name, codec(cls).fill) for name, cls in FRAMES.items()}
_OTHER_BODIES = {body.field: codec(body.cls) for kind, body in BODIES.items() if kind != "message"}
