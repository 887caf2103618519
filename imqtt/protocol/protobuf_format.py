"""The protobuf form of `imqtt.proto`.

Messages that are sent often are filled field by field: that costs half of building them from arguments,
and a third of building a message and copying it into its parent.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from imqtt.errors import Malformed, Unsupported
from imqtt.model import (
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Cursor,
    Event,
    Head,
    Hello,
    History,
    Id,
    JsonText,
    Limits,
    Mark,
    Marks,
    Page,
    PeerTyping,
    Position,
    Presence,
    Rejected,
    Send,
    Slice,
    Status,
    Sync,
    Typing,
    Welcome,
    canonical_json,
)
from imqtt.protocol.command_info import CommandInfo
from imqtt.protocol.generated import imqtt_pb2 as pb

# --- commands ---------------------------------------------------------------------------------------


def encode_command(command: AnyCommand) -> bytes:
    out = pb.Command()
    if isinstance(command, Send):
        send = out.send
        send.conversation = command.conversation
        send.client_msg_id = command.client_msg_id
        send.client_time = command.client_time
        _fill_content(send.content, command.content)
        send.content.SetInParent()
    elif isinstance(command, Mark):
        out.mark.CopyFrom(
            pb.Mark(conversation=command.conversation, delivered=command.delivered, read=command.read)
        )
    elif isinstance(command, Typing):
        out.typing.CopyFrom(pb.Typing(conversation=command.conversation, stopped=not command.typing))
    elif isinstance(command, Sync):
        out.sync.CopyFrom(
            pb.Sync(
                cursors=map(_cursor_out, command.cursors),
                heads=command.heads,
                heads_before=command.heads_before,
                ref=command.ref,
            )
        )
    elif isinstance(command, History):
        out.history.CopyFrom(
            pb.History(
                conversation=command.conversation,
                before=command.before,
                limit=command.limit,
                ref=command.ref,
            )
        )
    elif isinstance(command, Status):
        out.status.CopyFrom(
            pb.Status(
                state=command.state, nonce=command.nonce, network=command.network, battery=command.battery
            )
        )
    else:
        out.hello.CopyFrom(
            pb.Hello(
                nonce=command.nonce,
                platform=command.platform,
                max_packet=command.max_packet,
                cursors=map(_cursor_out, command.cursors),
                ref=command.ref,
            )
        )
    return out.SerializeToString()


def decode_command(payload: bytes) -> AnyCommand:
    """Raises `Malformed`, or `Unsupported` for a command of a later version."""
    try:
        message = pb.Command.FromString(payload)
    except DecodeError:
        raise Malformed("neither JSON (its first byte is '{') nor a protobuf Command") from None
    which = message.WhichOneof("command")
    if which == "send":
        send = message.send
        return Send(send.conversation, send.client_msg_id, _content_in(send.content), send.client_time)
    if which is None:
        if payload:
            raise Unsupported("a protobuf Command without a command that this server knows")
        raise Malformed("an empty payload")
    return _COMMANDS_IN[which](getattr(message, which))


def identify(payload: bytes) -> CommandInfo:
    """What names the command in `payload`; its content is not looked at."""
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


_COMMANDS_IN: dict[str, Callable[[Any], AnyCommand]] = {
    "mark": lambda it: Mark(it.conversation, it.delivered, it.read),
    "typing": lambda it: Typing(it.conversation, not it.stopped),
    "sync": lambda it: Sync(_cursors_in(it), it.heads, Id(it.heads_before), it.ref),
    "history": lambda it: History(it.conversation, it.before, it.limit, it.ref),
    "status": lambda it: Status(
        it.state, it.nonce, it.network, it.battery if it.HasField("battery") else None
    ),
    "hello": lambda it: Hello(it.nonce, it.platform, it.max_packet, _cursors_in(it), it.ref),
}


# --- frames -----------------------------------------------------------------------------------------


def encode_frame(frame: AnyFrame) -> bytes:
    """One frame as `Frames` of its own: what `join` concatenates."""
    out = pb.Frames()
    _fill_frame(out.frames.add(), frame)
    return out.SerializeToString()


def join(frames: list[bytes]) -> bytes:
    """A packet of encoded frames. A repeated field is its elements, one after the other."""
    return b"".join(frames)


def decode_frames(payload: bytes) -> tuple[AnyFrame, ...]:
    """Raises `Malformed`. Frames of a later version are left out."""
    try:
        frames = pb.Frames.FromString(payload).frames
        return tuple(
            _FRAMES_IN[which](getattr(frame, which))
            for frame in frames
            if (which := frame.WhichOneof("frame")) is not None
        )
    except DecodeError:
        raise Malformed("not a protobuf packet of frames") from None


def _fill_frame(out: pb.Frame, frame: AnyFrame) -> None:
    if isinstance(frame, Event):
        _fill_event(out.event, frame)
    elif isinstance(frame, Accepted):
        accepted = out.accepted
        accepted.conversation = frame.conversation
        accepted.client_msg_id = frame.client_msg_id
        accepted.seq = frame.seq
        accepted.id = frame.id
        accepted.time = frame.time
        if frame.previous:
            accepted.previous = frame.previous
    elif isinstance(frame, Marks):
        _fill_marks(out.marks, frame)
    elif isinstance(frame, PeerTyping):
        out.typing.conversation = frame.conversation
        out.typing.user = frame.user
        out.typing.stopped = not frame.typing
    elif isinstance(frame, Presence):
        out.presence.user = frame.user
        out.presence.state = frame.state
        out.presence.last_seen = frame.last_seen
    elif isinstance(frame, Page):
        _fill_page(out.page, frame)
    elif isinstance(frame, Rejected):
        out.rejected.CopyFrom(
            pb.Rejected(
                code=frame.code,
                reason=frame.reason,
                retryable=frame.retryable,
                command=frame.command,
                conversation=frame.conversation,
                client_msg_id=frame.client_msg_id,
                ref=frame.ref,
                retry_after=frame.retry_after,
                omitted=frame.omitted,
            )
        )
    else:
        _fill_welcome(out.welcome, frame)


# --- the parts --------------------------------------------------------------------------------------


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
        out.reply_to.CopyFrom(pb.Position(seq=content.reply_to.seq, id=content.reply_to.id))
    if content.mentions:
        out.mentions.extend(content.mentions)


def _content_in(content: pb.Content) -> Content:
    which = content.WhichOneof("body")
    reply_to = None
    if content.HasField("reply_to"):
        reply_to = Position(content.reply_to.seq, Id(content.reply_to.id))
    mentions = tuple(content.mentions)
    if which == "text":
        return Content(content.text, None, content.content_type, None, reply_to, mentions)
    if which == "data":
        return Content(None, content.data, content.content_type, None, reply_to, mentions)
    if which == "json":
        return Content(None, None, content.content_type, _json_in(content.json), reply_to, mentions)
    return Content(None, None, content.content_type, None, reply_to, mentions)


def _json_in(text: str) -> JsonText | None:
    """The JSON body, or None for `null`: in the JSON format that is the same as no body."""
    try:
        value = msgspec.json.decode(text)
        return None if value is None else canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"content.json is not JSON: {error}"[:120]) from None


def _fill_event(out: pb.Event, event: Event) -> None:
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
    if event.client_time:
        out.client_time = event.client_time
    if event.withheld:
        out.withheld = event.withheld
    if event.previous:
        out.previous = event.previous


def _event_in(event: pb.Event) -> Event:
    return Event(
        event.conversation, event.seq, Id(event.id), event.time, event.sender, event.device,
        event.client_msg_id, _content_in(event.content), event.kind or "message", event.client_time,
        event.withheld, Id(event.previous),
    )  # fmt: skip


def _cursor_out(cursor: Cursor) -> pb.Cursor:
    return pb.Cursor(conversation=cursor.conversation, seq=cursor.seq, id=cursor.id)


def _cursors_in(message: pb.Hello | pb.Sync) -> tuple[Cursor, ...]:
    return tuple(Cursor(it.conversation, it.seq, Id(it.id)) for it in message.cursors)


def _fill_marks(out: pb.Marks, marks: Marks) -> None:
    out.conversation = marks.conversation
    out.user = marks.user
    out.delivered = marks.delivered
    out.read = marks.read


def _marks_in(marks: pb.Marks) -> Marks:
    return Marks(marks.conversation, marks.user, marks.delivered, marks.read)


def _fill_page(out: pb.Page, page: Page) -> None:
    out.SetInParent()
    out.ref = page.ref
    out.more_heads = page.more_heads
    out.more = page.more
    for head in page.heads:
        head_out = out.heads.add(conversation=head.conversation, seq=head.seq, id=head.id)
        if head.latest is not None:
            _fill_event(head_out.latest, head.latest)
        for marks in head.marks:
            _fill_marks(head_out.marks.add(), marks)
    for part in page.slices:
        slice_out = out.slices.add(
            conversation=part.conversation,
            more=part.more,
            restart=part.restart,
            missing=part.missing,
            history=part.history,
        )
        for event in part.events:
            _fill_event(slice_out.events.add(), event)


def _head_in(head: pb.Head) -> Head:
    latest = _event_in(head.latest) if head.HasField("latest") else None
    return Head(head.conversation, head.seq, Id(head.id), latest, tuple(map(_marks_in, head.marks)))


def _slice_in(part: pb.Slice) -> Slice:
    return Slice(
        part.conversation, tuple(map(_event_in, part.events)), part.more, part.restart, part.missing,
        part.history,
    )  # fmt: skip


def _fill_welcome(out: pb.Welcome, welcome: Welcome) -> None:
    limits = welcome.limits
    out.CopyFrom(
        pb.Welcome(
            nonce=welcome.nonce,
            user=welcome.user,
            device=welcome.device,
            time=welcome.time,
            partitions=welcome.partitions,
            limits=pb.Limits(
                content=limits.content,
                command=limits.command,
                page=limits.page,
                cursors=limits.cursors,
                rate=limits.rate,
                presence=limits.presence,
            ),
            ref=welcome.ref,
        )
    )


_FRAMES_IN: dict[str, Callable[[Any], AnyFrame]] = {
    "accepted": lambda it: Accepted(
        it.conversation, it.client_msg_id, it.seq, Id(it.id), it.time, Id(it.previous)
    ),
    "event": _event_in,
    "marks": _marks_in,
    "page": lambda it: Page(
        it.ref, tuple(map(_head_in, it.heads)), Id(it.more_heads), tuple(map(_slice_in, it.slices)), it.more
    ),
    "presence": lambda it: Presence(it.user, it.state, it.last_seen),
    "typing": lambda it: PeerTyping(it.conversation, it.user, not it.stopped),
    "rejected": lambda it: Rejected(
        it.code, it.reason, it.retryable, it.command, it.conversation, it.client_msg_id, it.ref,
        it.retry_after, it.omitted,
    ),
    "welcome": lambda it: Welcome(
        it.nonce, it.user, it.device, it.time, it.partitions,
        Limits(
            it.limits.content, it.limits.command, it.limits.page, it.limits.cursors, it.limits.rate,
            it.limits.presence,
        ),
        it.ref,
    ),
}  # fmt: skip
