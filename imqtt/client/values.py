"""The values that a client returns, in addition to those of `imqtt.model`."""

from dataclasses import dataclass

from imqtt.core.changes import Restarted, Skipped
from imqtt.core.connection import Phase
from imqtt.core.outbox import Entry
from imqtt.errors import WIRE_ERRORS, ImqttError, TooLarge
from imqtt.model import Event, Marks, PeerTyping, Position, Presence, Rejected, Value


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The state of a client's connection.

    `reason` says why the last attempt or connection ended, and `error` is the same as an exception:
    `TlsFailed` or `TakenOver` if someone has to correct something, else `NotConnected`. Both are empty while
    the connection is established, unless another process keeps taking it over.

    `silent`: a broker is connected, but its server has not answered a request for `Timing.answer` seconds. A
    device without requests does not notice: see `Timing.idle`.
    """

    phase: Phase = Phase.IDLE
    address: str = ""
    tries: int = 0  # since the last connection that lasted
    retry_in: float = 0.0  # seconds, in phase `idle`
    reason: str = ""
    silent: bool = False
    error: ImqttError | None = None


class Summary(Value, frozen=True):
    """A conversation as this device knows it.

    `head` is the position of its newest known event, `last` the newest event that has arrived. `delivered`
    and `read` are the user's own marks, set on any device.

    Messages after `read` that are neither recalled nor the user's own are unread. The device knows only the
    events that it holds: at least `unread` and at most `unread_at_most` events are unread. The two differ if
    the device does not hold all events after `read`; `Client.unread` requests them from the server.
    """

    conversation: str
    head: Position
    last: Event | None
    unread: int
    unread_at_most: int
    delivered: int = 0
    read: int = 0


class Refused(Value, frozen=True):
    """The server refused a command for which no method waits. It stays in the outbox until discarded."""

    entry: Entry
    error: ImqttError


Notice = Marks | Presence | PeerTyping | Restarted | Skipped | Refused


def error_of(frame: Rejected, size: int = 0, limit: int = 0) -> ImqttError:
    """The error of a `Rejected`. `size` and `limit` are those of the content; 0: unknown.

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
