"""What a decoded command, or frame, must satisfy before any later stage sees it.

Both formats pass through here, so a store, a broker or another client's parser never meets a value that
it would choke on. Whether a conversation is one that exists for the sender is not decided here.
"""

import re
from dataclasses import dataclass

from imqtt.errors import Invalid, Malformed, TooLarge
from imqtt.model import (
    PRESENCE_STATES,
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Event,
    Head,
    Hello,
    History,
    Id,
    Mark,
    Marks,
    Page,
    Position,
    Presence,
    Rejected,
    Send,
    Status,
    Sync,
    Typing,
    Welcome,
)
from imqtt.protocol.topics import is_name

MAX_CONVERSATION = 131  # `d:` and two names of 64 characters
MAX_SEQ = (1 << 53) - 1  # what JavaScript counts exactly
MAX_ID = (1 << 63) - 1
MAX_COUNT = (1 << 32) - 1
MIN_PACKET = 2048  # bytes: room for any frame whose content is withheld
MAX_MENTIONS = 100

_CONVERSATION = re.compile(r"[!-~]{3,131}")
_TOKEN = re.compile(r"[!-~]{1,64}")  # printable ASCII without spaces


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a command may be. Sizes in bytes."""

    content: int = 65_536
    command: int = 262_144
    cursors: int = 1_000


def check(command: AnyCommand, bounds: Bounds) -> None:
    """Raises `Malformed`, `Invalid` or `TooLarge` for a command that may not go further."""
    if isinstance(command, Send):
        _conversation(command.conversation)
        _token(command.client_msg_id, "client_msg_id")
        _time(command.client_time, "client_time")
        check_content(command.content, bounds)
    elif isinstance(command, Mark):
        _conversation(command.conversation)
        _seq(command.delivered, "delivered")
        _seq(command.read, "read")
    elif isinstance(command, Typing):
        _conversation(command.conversation)
    elif isinstance(command, Status):
        _status(command)
    else:
        _read(command, bounds)


def check_content(content: Content, bounds: Bounds) -> None:
    """Raises unless `content` holds exactly one body within the bounds."""
    bodies = [body for body in (content.text, content.data, content.json) if body is not None]
    if len(bodies) != 1:
        raise Invalid("content holds exactly one of text, data and json")
    body = bodies[0]
    if content.json == "null":
        raise Invalid("content.json is null, which in JSON is the same as no content")
    size = len(body) if isinstance(body, bytes) or body.isascii() else len(body.encode())
    if size == 0:
        raise Invalid("content is empty")
    if size > bounds.content:
        raise TooLarge("content", size, bounds.content)
    if content.content_type and (len(content.content_type) > 127 or not content.content_type.isprintable()):
        raise Invalid("content_type is at most 127 printable characters")
    if content.data is not None and not content.content_type:
        raise Invalid("data needs a content_type, such as application/octet-stream")
    if content.mentions:
        if len(content.mentions) > MAX_MENTIONS:
            raise TooLarge("content", len(content.mentions), MAX_MENTIONS, "mentions")
        if not all(map(is_name, content.mentions)):
            raise Invalid("mentions holds user ids")
    if content.reply_to is not None:
        _position(content.reply_to)


def _read(command: Hello | Sync | History, bounds: Bounds) -> None:
    if command.ref:
        _token(command.ref, "ref")
    if isinstance(command, History):
        _conversation(command.conversation)
        _seq(command.before, "before")
        _count(command.limit, "limit")
        return
    if len(command.cursors) > bounds.cursors:
        raise TooLarge(f"a {command.name}", len(command.cursors), bounds.cursors, "cursors")
    for cursor in command.cursors:  # whose conversation may be anything: the server skips what cannot be
        _place(cursor.seq, cursor.id)
    if isinstance(command, Sync):
        _id(command.heads_before, "heads_before")
    else:
        _token(command.nonce, "nonce")
        _label(command.platform, "platform")
        if command.max_packet and not MIN_PACKET <= command.max_packet <= 268_435_455:
            raise Invalid(f"max_packet is at least {MIN_PACKET} bytes and at most MQTT's 268435455")


def _status(command: Status) -> None:
    _token(command.nonce, "nonce")
    if command.state not in PRESENCE_STATES:
        raise Invalid(f"state is one of {', '.join(PRESENCE_STATES)}")
    _label(command.network, "network")
    if command.battery is not None and not 0 <= command.battery <= 100:
        raise Invalid("battery is a percentage, 0 to 100")


def _conversation(conversation: str) -> None:
    """Which kinds there are, and who is in them, is decided where messages are."""
    if _CONVERSATION.fullmatch(conversation) is None:
        raise Invalid(
            f"a conversation id is 3 to {MAX_CONVERSATION} printable ASCII characters without spaces"
        )


def _token(token: str, name: str) -> None:
    if _TOKEN.fullmatch(token) is None:
        raise Invalid(f"{name} is 1 to 64 printable ASCII characters without spaces")


def _label(label: str, name: str) -> None:
    if len(label) > 64 or not label.isprintable():
        raise Invalid(f"{name} is at most 64 printable characters")


def _seq(seq: int, name: str) -> None:
    if not 0 <= seq <= MAX_SEQ:
        raise Malformed(f"{name} is out of range: 0 to 2**53 - 1")


def _time(time: int, name: str) -> None:
    if not 0 <= time <= MAX_SEQ:
        raise Malformed(f"{name} is out of range: milliseconds since 1970, below 2**53")


def _count(number: int, name: str) -> None:
    if not 0 <= number <= MAX_COUNT:
        raise Malformed(f"{name} is out of range: below 2**32")


def _id(number: Id, name: str) -> None:
    if not 0 <= number <= MAX_ID:
        raise Malformed(f"{name} is out of range: below 2**63")


def _position(position: Position) -> None:
    _place(position.seq, position.id)


def _place(seq: int, id: Id) -> None:
    _seq(seq, "seq")
    _id(id, "id")


# --- frames -----------------------------------------------------------------------------------------


def check_frame(frame: AnyFrame) -> None:
    """Raises `Malformed` for a number that no server sends: a device's store could not keep it.

    Nothing else is asked of a frame. A server of a later version may say what this one would not.
    """
    if isinstance(frame, Event):
        _event(frame)
    elif isinstance(frame, Accepted):
        _place(frame.seq, frame.id)
        _time(frame.time, "time")
        _id(frame.previous, "previous")
    elif isinstance(frame, Marks):
        _marks(frame)
    elif isinstance(frame, Page):
        _id(frame.more_heads, "more_heads")
        for head in frame.heads:
            _head(head)
        for part in frame.slices:
            for event in part.events:
                _event(event)
    elif isinstance(frame, Presence):
        _time(frame.last_seen, "last_seen")
    elif isinstance(frame, Rejected):
        _count(frame.retry_after, "retry_after")
        _count(frame.omitted, "omitted")
    elif isinstance(frame, Welcome):
        _welcome(frame)


def _event(event: Event) -> None:
    _place(event.seq, event.id)
    _time(event.time, "time")
    _time(event.client_time, "client_time")
    _id(event.previous, "previous")
    _count(event.withheld, "withheld")
    if event.content.reply_to is not None:
        _position(event.content.reply_to)


def _head(head: Head) -> None:
    _place(head.seq, head.id)
    if head.latest is not None:
        _event(head.latest)
    for marks in head.marks:
        _marks(marks)


def _marks(marks: Marks) -> None:
    _seq(marks.delivered, "delivered")
    _seq(marks.read, "read")


def _welcome(welcome: Welcome) -> None:
    _time(welcome.time, "time")
    _count(welcome.partitions, "partitions")
    for name in welcome.limits.__struct_fields__:
        _count(getattr(welcome.limits, name), name)
