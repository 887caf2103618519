"""Every error that imqtt raises or sends. The `code` on the wire and the class are the same thing.

ImqttError
+-- Malformed            a payload that is neither format, or not of a command's shape
+-- Invalid              a well-formed command that asks for what cannot be
+-- TooLarge             content or command beyond the limits of `Welcome`
+-- NotAllowed           a conversation that one is not in
+-- Conflict             a client_msg_id that was used for other content
+-- Unsupported          a command or kind of conversation that this server does not know
+-- Misrouted            a command published to the partition of another conversation, twice
+-- RateLimited          more messages a second than a device may send
+-- Busy                 more reads waiting than the server takes on
+-- Failed               the server could not carry it out, for a reason of its own
+-- Unavailable          the store cannot take anything just now
|   +-- StoreFull
|   +-- StoreReadOnly
|   +-- StoreUnreachable commands wait; who reads is told to ask again
|   +-- ClockWrong       the server's clock is before 2025 or after 2094
+-- ClientError          raised by the SDK only
|   +-- NotConnected
|   |   +-- TlsFailed    no TLS with the broker until somebody changes a certificate, an option or an address
|   |   +-- TakenOver    another process connects as the same device
|   +-- Discarded
|   +-- CredentialsRefused
|   +-- DeviceStoreError
|       +-- DeviceStoreInUse     another client has it open
+-- SetupError           the operator has to change something before imqtt can run
    +-- StoreInUse       somebody else has the store open
"""

from typing import ClassVar


class ImqttError(Exception):
    """The root. `retryable`: the same thing may succeed later, unchanged."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, *, retry_after: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after  # milliseconds; 0: not said


class Malformed(ImqttError):
    code = "malformed"


class Invalid(ImqttError):
    code = "invalid"


class TooLarge(ImqttError):
    """`size` and `limit` are in `unit`s: bytes, or a number of things."""

    code = "too_large"

    def __init__(self, what: str, size: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} of {size} {unit}; at most {limit}")
        self.size = size
        self.limit = limit


class NotAllowed(ImqttError):
    code = "not_allowed"


class Conflict(ImqttError):
    code = "conflict"


class Unsupported(ImqttError):
    code = "unsupported"


class Misrouted(ImqttError):
    code = "misrouted"


class RateLimited(ImqttError):
    code = "rate_limited"
    retryable = True


class Busy(ImqttError):
    code = "busy"
    retryable = True


class Failed(ImqttError):
    code = "error"
    retryable = True


class Unavailable(ImqttError):
    code = "unavailable"
    retryable = True


class StoreFull(Unavailable):
    """The store's disk is full: nothing of the batch is stored."""


class StoreReadOnly(Unavailable):
    """The store's files may not be written: nothing of the batch is stored."""


class StoreUnreachable(Unavailable):
    """No connection to the store, or none in time: nothing is known of what was asked."""


class ClockWrong(Unavailable):
    """The clock says a time that ids cannot tell: it is wrong, and nothing is stored until it is set."""


class ClientError(ImqttError):
    code = "client"


class NotConnected(ClientError):
    retryable = True


class TlsFailed(NotConnected):
    """TLS with the broker fails, and will until a certificate, an option or the address is changed."""


class TakenOver(NotConnected):
    """Another process connects as the same device, and the broker ends this one's connections for it."""


class Discarded(ClientError):
    """The message was taken out of the outbox. If it was sent already, it may be stored nevertheless."""


class CredentialsRefused(ClientError):
    """No broker takes this device's username and password."""


class DeviceStoreError(ClientError):
    """The device's local store cannot be opened or written."""


class DeviceStoreInUse(DeviceStoreError):
    """Another client has the device's store open. The reason names its process where that is known."""


class SetupError(ImqttError):
    code = "setup"


class StoreInUse(SetupError):
    """The store is open exclusively elsewhere, or this process asks for that while others have it open."""


WIRE_ERRORS: dict[str, type[ImqttError]] = {
    error.code: error
    for error in (
        Malformed, Invalid, NotAllowed, Conflict, Unsupported, Misrouted, RateLimited, Busy, Failed,
        Unavailable,
    )
}  # fmt: skip
"""The classes a `Rejected` frame's code stands for; `too_large` carries numbers and is built on its own."""
