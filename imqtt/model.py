"""The values that cross between packages: commands, frames and their parts.

Both wire formats carry exactly these. Every value is frozen. Units: times are milliseconds since the
Unix epoch; `seq` counts a conversation's events from 1; 0 (or an empty string) means "not given".
"""

from math import isinf
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec

from imqtt import fields

SNOWFLAKE_EPOCH = 1_735_689_600_000  # 2025-01-01T00:00:00Z, in milliseconds
SNOWFLAKE_TIME_SHIFT = 22  # below the milliseconds: 10 bits of partition, 12 of sequence


class Id(int):
    """A 64-bit Snowflake id. JSON writes it as a string, since JavaScript's numbers end at 2**53."""

    __slots__ = ()

    def __new__(cls, number: int = 0) -> "Id":
        """There is one zero: msgspec leaves out a field that *is* its default, not one that equals it."""
        return int.__new__(cls, number) if number else _NO_ID

    @property
    def time(self) -> int:
        """When the event was ordered, in milliseconds since the Unix epoch."""
        return (self >> SNOWFLAKE_TIME_SHIFT) + SNOWFLAKE_EPOCH


_NO_ID = int.__new__(Id, 0)


Seq = Annotated[int, fields.SEQ]
Time = Annotated[int, fields.TIME]
Count = Annotated[int, fields.COUNT]
EventId = Annotated[Id, fields.ID]
Token = Annotated[str, fields.TOKEN]
Ref = Annotated[str, fields.REF]
Label = Annotated[str, fields.Label()]
ConversationId = Annotated[str, fields.CONVERSATION]
IsTyping = Annotated[bool, fields.Inverse("stopped")]


class JsonText(str):
    """A JSON value as compact UTF-8 text. The JSON format embeds it as the value that it is."""

    __slots__ = ()


class Device(NamedTuple):
    """One device of one user. Its MQTT username is `user@device`."""

    user: str
    device: str

    def __str__(self) -> str:
        return f"{self.user}@{self.device}"


class Value(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The base of all values: immutable; JSON omits a field that has its default.

    Frozen values form no cycles, so the garbage collector skips them. It would take a tenth of the server's
    time.
    """


class Position(Value, frozen=True, omit_defaults=False):
    """An event's place: another id at the same seq means that the store was restored from a backup."""

    seq: Seq
    id: EventId


class Key(msgspec.Struct, frozen=True, gc=False):
    """Identifies a log command, however often it is sent. `sender` is the user."""

    conversation: str
    sender: str
    client_msg_id: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The position of a stored event, and the digest of its change."""

    position: Position
    digest: bytes


class Content(Value, frozen=True):
    """A message's content: exactly one of `text`, `data` (with `content_type`) and `json`."""

    text: str | None = None
    data: bytes | None = None
    content_type: str = ""
    json: JsonText | None = None
    reply_to: Position | None = None
    mentions: tuple[str, ...] = ()


NO_CONTENT = Content()


class RecallBody(Value, frozen=True):
    """The body of a recall. `target`: the message that its sender takes back."""

    target: Position


class Frame(Value, frozen=True, tag_field="type", tag=str.lower):
    """An answer or news for a device; a packet carries several. The loss of a `durable` one is noticed."""

    durable: ClassVar[bool] = True


class Event(Frame, frozen=True):
    """One entry of a conversation's log; also the frame that carries it to a device.

    `kind` names its change; the field of that name has its body (`content` for a `message`). `withheld` is
    the event's size in bytes if it does not fit into the device's packets; `content` is empty then.
    `previous` is the id of the event at seq - 1. It is sent only with live events and never stored; a device
    that holds another event at seq - 1 has another log.
    """

    conversation: str
    seq: Seq
    id: EventId
    time: Time
    sender: str
    device: str
    client_msg_id: str
    content: Content = msgspec.field(default_factory=Content)
    kind: str = "message"
    client_time: Time = 0
    withheld: Count = 0
    previous: EventId = Id(0)
    recall: RecallBody | None = None

    @property
    def position(self) -> Position:
        """The event's position."""
        return Position(self.seq, self.id)


class Cursor(Value, frozen=True):
    """A device's place in a conversation: the last event that it has applied without a hole."""

    conversation: str
    seq: Seq = 0
    id: EventId = Id(0)


# --- commands: device to server ---------------------------------------------------------------------


class Command(Value, frozen=True, tag_field="type", tag=str.lower):
    """A device's request. It goes to its conversation's partition, or without one to its user's."""

    name: ClassVar[str] = "command"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__name__.lower()


class LogCommand(Command, frozen=True):
    """A command that writes an event, and one only, however often it is sent."""

    conversation: ConversationId
    client_msg_id: Token


class ReadCommand(Command, frozen=True):
    """A command that is answered by a page."""


class Signal(Command, frozen=True):
    """A command that writes no event and expects no answer."""


class Hello(ReadCommand, frozen=True):
    """Registers the device and its connection, and syncs."""

    nonce: Token
    platform: Label = ""
    max_packet: Annotated[int, fields.PACKET] = 0  # bytes
    cursors: tuple[Cursor, ...] = ()
    ref: Ref = ""


class Send(LogCommand, frozen=True):
    """Appends a message to a conversation."""

    content: Content
    client_time: Time = 0


class Recall(LogCommand, frozen=True):
    """Takes a message back. Only its sender may, from any of their devices."""

    target: Position
    client_time: Time = 0


class Mark(Signal, frozen=True):
    """Raises the user's delivered and read marks in a conversation."""

    conversation: ConversationId
    delivered: Seq = 0
    read: Seq = 0


class Typing(Signal, frozen=True):
    """Tells the other members that the user is typing, or has stopped. Never stored."""

    conversation: ConversationId
    typing: IsTyping = True


class Sync(ReadCommand, frozen=True):
    """Asks for the events after each cursor and, with `heads`, for conversations' heads."""

    cursors: tuple[Cursor, ...] = ()
    heads: bool = False
    heads_before: EventId = Id(0)
    ref: Ref = ""


class History(ReadCommand, frozen=True):
    """Asks for events before `before` (0: the newest), newest page first, each page in order of seq."""

    conversation: ConversationId
    before: Seq = 0
    limit: Count = 0
    ref: Ref = ""


PRESENCE_STATES = ("online", "away", "background", "offline")


class Status(Signal, frozen=True):
    """The device's state; with state `offline`, its last will."""

    state: Annotated[str, fields.OneOf(PRESENCE_STATES)]
    nonce: Token
    network: Label = ""
    battery: Annotated[int | None, fields.PERCENT] = None  # percent


AnyLogCommand = Send | Recall
AnyCommand = Hello | AnyLogCommand | Mark | Typing | Sync | History | Status
COMMANDS: dict[str, type[Command]] = {command.name: command for command in AnyCommand.__args__}


# --- frames: server to device -----------------------------------------------------------------------


class Limits(Value, frozen=True, omit_defaults=False):
    """The server's limits. Sizes in bytes."""

    content: Count  # a message's body: UTF-8 of text, data before base64, compact JSON
    command: Count  # one command
    page: Count  # events in a page
    cursors: Count  # cursors in one `Hello` or `Sync`
    rate: Count  # messages a second that a device may send, sustained
    presence: Count  # seconds without a command after which a device is considered offline


class Welcome(Frame, frozen=True):
    """Answers `Hello`; the first page follows in a `Page` with the same `ref`."""

    nonce: str
    user: str
    device: str
    time: Time
    partitions: Count
    limits: Limits
    ref: str = ""


class Accepted(Frame, frozen=True):
    """The command's event is stored, at this position. Sent only after the store has committed.

    `previous` is as in `Event`; 0 if the event was stored before.
    """

    conversation: str
    client_msg_id: str
    seq: Seq
    id: EventId
    time: Time
    previous: EventId = Id(0)

    @property
    def position(self) -> Position:
        """The event's position."""
        return Position(self.seq, self.id)


class Rejected(Frame, frozen=True):
    """A command was not carried out. `retryable`: the same command may succeed later.

    `omitted`: how many further commands of the device were rejected at the same time and are not answered.
    """

    code: str
    reason: str
    retryable: bool = False
    command: str = ""
    conversation: str = ""
    client_msg_id: str = ""
    ref: str = ""
    retry_after: Count = 0  # milliseconds
    omitted: Count = 0


class Marks(Frame, frozen=True):
    """A member's progress: the seqs up to which every event was delivered to them, and read by them."""

    conversation: str
    user: str
    delivered: Seq = 0
    read: Seq = 0


class Head(Value, frozen=True):
    """A conversation's newest event. `latest` is that event, if the device sent no cursor for it."""

    conversation: str
    seq: Seq
    id: EventId
    latest: Event | None = None
    marks: tuple[Marks, ...] = ()


class Slice(Value, frozen=True):
    """Contiguous events of one conversation, in order of seq.

    `restart`: the device's cursor is not in this store's log, so it drops its events of the
    conversation and begins anew with these. `missing`: why no earlier events can be requested (`start`,
    `archived`, `before_joined`). `registers` are later events, not among these, that change how these are
    shown.
    """

    conversation: str
    events: tuple[Event, ...] = ()
    more: bool = False
    restart: bool = False
    missing: str = ""
    history: bool = False
    registers: tuple[Event, ...] = ()


class Page(Frame, frozen=True):
    """Answers `Hello`, `Sync` and `History`, always in one packet of a size that the device accepts.

    `more_heads` is the next `heads_before`; 0: there are no more. `more`: some cursors were not looked at, or
    have more events than fit, so sync again with the advanced cursors.
    """

    ref: str = ""
    heads: tuple[Head, ...] = ()
    more_heads: EventId = Id(0)
    slices: tuple[Slice, ...] = ()
    more: bool = False


class Presence(Frame, frozen=True):
    """A user's state over all devices.

    `last_seen` is the latest change of any device; for an offline user, the time at which they left.
    """

    durable: ClassVar[bool] = False

    user: str
    state: str
    last_seen: Time = 0


class PeerTyping(Frame, frozen=True, tag="typing"):
    """Somebody is typing, or has stopped. Forget it after six seconds without another."""

    durable: ClassVar[bool] = False

    conversation: str
    user: str
    typing: IsTyping = True


AnyFrame = Welcome | Accepted | Rejected | Event | Marks | Page | Presence | PeerTyping
FRAMES: dict[str, type[Frame]] = {str(frame.__struct_config__.tag): frame for frame in AnyFrame.__args__}


# --- the server's records of devices ----------------------------------------------------------------


class Registration(msgspec.Struct, frozen=True, gc=False):
    """A registered device. `format` is `json` or `protobuf`; sizes in bytes.

    `seen`: time of its last command, in milliseconds since the Unix epoch, up to about a day old; 0: unknown.
    """

    device: Device
    format: str
    platform: str = ""
    max_packet: int = 0  # 0: the server's own bound
    seen: int = 0


class DeviceFormat(msgspec.Struct, frozen=True, gc=False):
    """The part of a registration that any command updates. `Hello` alone has platform and largest packet."""

    device: Device
    format: str
    seen: int = 0


# --- JSON for the two types that JSON lacks ----------------------------------------------------------


def json_decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    """A decoder of values of this type."""
    return msgspec.json.Decoder(wanted, dec_hook=from_json_type, float_hook=_float)


def _float(text: str) -> float:
    """msgspec itself takes 40 us for each number such as 1e300."""
    number = float(text)
    if isinf(number):
        raise ValueError("a number out of range")
    return number


def to_json_type(value: object) -> object:
    """msgspec's `enc_hook`: an `Id` becomes a string, a `JsonText` the value that it spells."""
    if isinstance(value, Id):
        return int.__repr__(value)
    if isinstance(value, JsonText):
        return msgspec.Raw(value.encode())
    raise NotImplementedError(f"no JSON form for {type(value).__name__}")


def from_json_type(wanted: type, value: object) -> object:
    """msgspec's `dec_hook`, the inverse of `to_json_type`. Raises `ValueError`."""
    if wanted is Id:
        if isinstance(value, str) and 0 < len(value) <= 19 and value.isascii() and value.isdecimal():
            number = int(value)
            if number < 1 << 63:
                return Id(number)
        raise ValueError("an id is a string of decimal digits, below 2**63")
    if wanted is JsonText:
        return canonical_json(value)
    raise NotImplementedError(f"no JSON form for {wanted.__name__}")


MAX_JSON_DEPTH = 32


def canonical_json(value: object) -> JsonText:
    """Compact JSON text of a decoded value.

    Raises `ValueError` for nesting deeper than 32 and integers beyond 64 bits, which a store or another
    client's parser may not accept.
    """
    _check_json(value, 0)
    return JsonText(msgspec.json.encode(value).decode())


def _check_json(value: object, depth: int) -> None:
    if depth >= MAX_JSON_DEPTH and isinstance(value, dict | list):
        raise ValueError(f"JSON nested deeper than {MAX_JSON_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _check_json(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("an integer beyond 64 bits")
