"""Every error that imqtt raises or sends. The `code` on the wire and the class are the same thing.

ImqttError
+-- Malformed            a payload in neither format, or one that is not shaped like a command
+-- Invalid              a well-formed command with an impossible request
+-- TooLarge             content or command beyond the limits of `Welcome`
+-- NotAllowed           a conversation of which the user is not a member
+-- Conflict             a client_msg_id that was used for other content
+-- Unsupported          a command or kind of conversation that this server does not know
+-- Misrouted            a command that arrived in another conversation's partition after it was forwarded
+-- RateLimited          more messages a second than a device may send
+-- Busy                 too many reads are waiting
+-- Failed               an internal error of the server
+-- Unavailable          the store cannot take anything at the moment
|   +-- StoreFull
|   +-- StoreReadOnly
|   +-- StoreUnreachable commands wait; reads are rejected and may be repeated
|   +-- ClockWrong       the server's clock is before 2025 or after 2094
+-- ClientError          raised by the SDK only
|   +-- NotConnected
|   |   +-- TlsFailed    TLS fails until a certificate, an option or an address is changed
|   |   +-- TakenOver    another process connects as the same device
|   +-- Discarded
|   +-- CredentialsRefused
|   +-- DeviceStoreError
|       +-- DeviceStoreInUse     another client has it open
+-- SetupError           the operator has to change something before imqtt can run
    +-- StoreInUse       another process has the store open
"""

from typing import ClassVar


class ImqttError(Exception):
    """The root. `retryable`: the same request may succeed later."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, *, retry_after: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after  # milliseconds; 0: not given


class Malformed(ImqttError):
    code = "malformed"


class Invalid(ImqttError):
    code = "invalid"


class TooLarge(ImqttError):
    """`size` and `limit` are in `unit`s: bytes, or a number of items."""

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
    """The store's files are read-only: nothing of the batch is stored."""


class StoreUnreachable(Unavailable):
    """The store does not answer in time: the outcome of the request is unknown."""


class ClockWrong(Unavailable):
    """The clock shows a time that ids cannot express. Nothing is stored until it is corrected."""


class ClientError(ImqttError):
    code = "client"


class NotConnected(ClientError):
    retryable = True


class TlsFailed(NotConnected):
    """TLS with the broker fails, and will until a certificate, an option or the address is changed."""


class TakenOver(NotConnected):
    """Another process connects as the same device, so the broker ends this one's connections."""


class Discarded(ClientError):
    """The message was taken out of the outbox. If it was sent before, it may be stored nevertheless."""


class CredentialsRefused(ClientError):
    """No broker takes this device's username and password."""


class DeviceStoreError(ClientError):
    """The device's local store cannot be opened or written."""


class DeviceStoreInUse(DeviceStoreError):
    """Another client has the device's store open. The reason names its process if it is known."""


class SetupError(ImqttError):
    code = "setup"


class StoreInUse(SetupError):
    """Another process has the store open, and one of the two needs it exclusively."""


WIRE_ERRORS: dict[str, type[ImqttError]] = {
    error.code: error
    for error in (
        Malformed, Invalid, NotAllowed, Conflict, Unsupported, Misrouted, RateLimited, Busy, Failed,
        Unavailable,
    )
}  # fmt: skip
"""The error class of each `code` of a `Rejected` frame; `too_large` has numbers and is built separately."""
