"""Every error that imqtt raises or sends. `code` identifies the class, on the wire and in a program.

    ImqttError
    +-- Malformed, Invalid, TooLarge, NotAllowed, NotFound, AlreadyRecalled, Conflict, Unsupported, Misrouted,
    |   RateLimited, Busy, Failed
    +-- Unavailable
    |   +-- StoreFull, StoreReadOnly, StoreUnreachable, ClockWrong    sent as `unavailable`
    +-- ClientError                                                   raised by the SDK only
    |   +-- NotConnected
    |   |   +-- TlsFailed, TakenOver
    |   |   +-- Lost, Untaken                                         imqtt.client.transport
    |   +-- Discarded
    |   +-- CredentialsRefused
    |   +-- DeviceStoreError
    |       +-- DeviceStoreInUse
    +-- SetupError
    |   +-- StoreInUse
    |   +-- PortTaken                                                 imqtt.mosquitto.listeners
    +-- ServerUnreachable                                             imqtt.mosquitto.control
    +-- OutputError                                                   imqtt.cli.output
    +-- AppendConflict, OutcomeUnknown, RecordRefused                 imqtt.stores.base
    +-- CopyDiffers                                                   imqtt.stores.copy.comparison
    +-- StateAway                                                     imqtt.state.base
        +-- Refusal                                                   imqtt.state.redis.connection

Outside the tree are errors that never leave their caller: `LinkError` of `imqtt.broker`, which imports
nothing of imqtt, `TlsFileError` of `imqtt.tls_files`, `LoginRefused` of `imqtt.client.transport`, and
`BadSetting` of `imqtt.cli.settings`, which is Typer's.
"""


class ImqttError(Exception):
    """The root. `retryable`: the same request may succeed later."""

    code: str = "unknown"  # an instance has the code of a rejection from a later version
    retryable: bool = False

    def __init__(self, reason: str, *, retry_after: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after  # milliseconds; 0: not given


class Malformed(ImqttError):
    """The payload is neither JSON nor protobuf, or does not have the shape of a command."""

    code = "malformed"


class Invalid(ImqttError):
    """The command is well-formed, but its request is impossible."""

    code = "invalid"


class TooLarge(ImqttError):
    """Something exceeds a limit. `size` and `limit` count bytes or items; 0: unknown."""

    code = "too_large"

    def __init__(self, reason: str, *, size: int = 0, limit: int = 0, retry_after: int = 0) -> None:
        super().__init__(reason, retry_after=retry_after)
        self.size = size
        self.limit = limit

    @classmethod
    def of(cls, what: str, size: int, limit: int, unit: str = "bytes") -> "TooLarge":
        return cls(f"{what} of {size} {unit}; at most {limit}", size=size, limit=limit)


class NotAllowed(ImqttError):
    """The user is not a member of the conversation, or may not do this there."""

    code = "not_allowed"


class NotFound(ImqttError):
    """There is no such message."""

    code = "not_found"


class AlreadyRecalled(ImqttError):
    """The message was recalled before."""

    code = "already_recalled"


class Conflict(ImqttError):
    """The client_msg_id was used for another command or other content."""

    code = "conflict"


class Unsupported(ImqttError):
    """The server does not know this command or kind of conversation."""

    code = "unsupported"


class Misrouted(ImqttError):
    """The command reached the wrong partition after it was forwarded once."""

    code = "misrouted"


class RateLimited(ImqttError):
    """The device sends more messages a second than it may."""

    code = "rate_limited"
    retryable = True


class Busy(ImqttError):
    """Too many reads are waiting."""

    code = "busy"
    retryable = True


class Failed(ImqttError):
    """The server failed on this command."""

    code = "error"
    retryable = True


class Unavailable(ImqttError):
    """The store cannot be used, or no server holds the partition."""

    code = "unavailable"
    retryable = True


class StoreFull(Unavailable):
    """The store's disk is full: nothing of the batch is stored."""


class StoreReadOnly(Unavailable):
    """The store's files are read-only: nothing of the batch is stored."""


class StoreUnreachable(Unavailable):
    """The store does not answer in time: the outcome of the request is unknown."""


class ClockWrong(Unavailable):
    """The clock shows a time before 2025 or after 2094, which ids cannot express: nothing is stored."""


class ClientError(ImqttError):
    """The client is not open, or was entered a second time."""

    code = "client"


class NotConnected(ClientError):
    """There is no connection to the broker, or the server does not answer."""

    code = "not_connected"
    retryable = True


class TlsFailed(NotConnected):
    """TLS with the broker fails, and will until a certificate, an option or the address is changed."""

    code = "tls_failed"


class TakenOver(NotConnected):
    """Another process connects as the same device, so the broker ends this one's connections."""

    code = "taken_over"


class Discarded(ClientError):
    """The message was taken out of the outbox. If it was sent before, it may be stored nevertheless."""

    code = "discarded"


class CredentialsRefused(ClientError):
    """No broker takes this device's username and password."""

    code = "credentials_refused"


class DeviceStoreError(ClientError):
    """The device's local store cannot be opened or written."""

    code = "device_store"


class DeviceStoreInUse(DeviceStoreError):
    """Another client has the device's store open. The reason names its process if it is known."""

    code = "device_store_in_use"


class SetupError(ImqttError):
    """The operator has to change something before imqtt can run."""

    code = "setup"


class StoreInUse(SetupError):
    """Another process has the store open, and one of the two needs it exclusively."""

    code = "store_in_use"


WIRE_ERRORS: dict[str, type[ImqttError]] = {
    error.code: error
    for error in (
        Malformed, Invalid, TooLarge, NotAllowed, NotFound, AlreadyRecalled, Conflict, Unsupported, Misrouted,
        RateLimited, Busy, Failed, Unavailable,
    )
}  # fmt: skip
"""The error class of each `code` of a `Rejected` frame."""
