"""What a client gives to the program that uses it, beside the frames of `imqtt.model`."""

from dataclasses import dataclass

import msgspec

from imqtt.core.connection import Phase
from imqtt.core.outbox import OutboxKey
from imqtt.errors import WIRE_ERRORS, ImqttError, TooLarge
from imqtt.model import Content, Event, Id, Marks, PeerTyping, Position, Presence, Rejected, Value


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The state of a client's connection.

    `reason` says why the last attempt or connection ended, and `error` is the same as an exception:
    `TlsFailed` or `TakenOver` where somebody has to do something about it, else `NotConnected`. Both are
    empty while the connection is established, unless another process keeps taking it over.

    `silent`: a broker is connected, but the server behind it was asked and has not answered for
    `Timing.answer` seconds. A device that asks nothing does not notice: see `Timing.idle`.
    """

    phase: Phase = Phase.IDLE
    address: str = ""
    tries: int = 0  # since the last connection that lasted
    retry_in: float = 0.0  # seconds, in phase `idle`
    reason: str = ""
    silent: bool = False
    error: ImqttError | None = None


class Summary(Value, frozen=True):
    """A conversation as this device has it.

    `head` is its newest event as far as is known, `last` the newest that has arrived. `delivered` and `read`
    are the user's own marks, whichever device set them.

    Unread are the events after `read` that are not the user's own. The device knows the senders of the events
    that it holds: at least `unread` and at most `unread_at_most` are unread. The two differ where events
    after
    `read` are not on the device, as on a new one; `Client.unread` asks the server for them.
    """

    conversation: str
    head: Position
    last: Event | None
    unread: int
    unread_at_most: int
    delivered: int = 0
    read: int = 0


class Entry(Value, frozen=True):
    """A message in the outbox. One that the server `refused`, with this code, is not sent again."""

    conversation: str
    client_msg_id: str
    content: Content
    client_time: int = 0
    refused: str = ""  # the error's code
    reason: str = ""

    @property
    def key(self) -> OutboxKey:
        """The conversation and the client_msg_id, which together identify a message in the outbox."""
        return OutboxKey(self.conversation, self.client_msg_id)


class Restarted(Value, frozen=True):
    """The device dropped its log of a conversation, because the server's log was restored from a backup.

    `begins` is the seq of the first event that the device has now; 0: it has none.
    """

    conversation: str
    begins: int


class Skipped(Value, frozen=True):
    """Events that the server does not provide, from seq `first` to `last`. `missing` says why: `archived` or
    `before_joined`.
    """

    conversation: str
    first: int
    last: int
    missing: str


class Refused(Value, frozen=True):
    """The server refused a message for which no `send` waits. It stays in the outbox until it is
    discarded."""

    entry: Entry
    error: ImqttError


Notice = Marks | Presence | PeerTyping | Restarted | Skipped | Refused


class LogState(msgspec.Struct, frozen=True):
    """How much of a conversation a device has: the events after `base` up to `cursor`, without a hole.

    `missing` says why the server has nothing before `base` either; `head` is the newest event known of.
    """

    conversation: str
    cursor: Position
    base: int
    head: Position
    missing: str = ""


NOTHING = Position(0, Id(0))


def error_of(frame: Rejected, size: int = 0, limit: int = 0) -> ImqttError:
    """The error that a `Rejected` stands for. `size` and `limit` are those of the content, if it is known.

    A code of a later version becomes an `ImqttError` with that code.
    """
    if frame.code == TooLarge.code:
        return TooLarge(frame.reason, size=size, limit=limit)
    kind = WIRE_ERRORS.get(frame.code)
    if kind is not None:
        return kind(frame.reason, retry_after=frame.retry_after)
    error = ImqttError(f"{frame.code}: {frame.reason}", retry_after=frame.retry_after)
    error.code = frame.code
    return error
