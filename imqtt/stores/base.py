"""The interface of all stores. The suite in `tests/contract` defines their behaviour.

Two indexes are unique: `(conversation, seq)` and `(conversation, sender, client_msg_id)`. An append is
therefore a compare-and-set on the conversation's head, and two simultaneous owners do no harm.
"""

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from imqtt.errors import ImqttError
from imqtt.model import Device, DeviceFormat, Event, Head, Key, Marks, Position, Registration, Stored

HOW_TO_FINISH = "run the same `imqtt store copy` again to complete it"

END = (1 << 63) - 1  # the largest integer that any store holds

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event as it is stored.

    `body`: the event's body as JSON text in UTF-8. `digest`: 16 bytes over kind, register and body.
    `register`: the register that the event sets, or "". Archiving removes only the body.
    """

    event: Event
    body: bytes
    digest: bytes
    register: str = ""

    @property
    def key(self) -> Key:
        return Key(self.event.conversation, self.event.sender, self.event.client_msg_id)


class Identity(NamedTuple):
    """The values that are fixed when a store is created. A copy of the store keeps them.

    `cluster`: 16 random hexadecimal digits that identify a deployment.
    """

    partitions: int
    cluster: str

    @classmethod
    def draw(cls, partitions: int) -> "Identity":
        """A new store's identity."""
        return cls(partitions, secrets.token_hex(8))


class AppendConflict(ImqttError):
    """A record's seq or key is taken. The first `stored` records are committed."""

    code = "append_conflict"

    def __init__(self, stored: int) -> None:
        super().__init__(f"a duplicate key after {stored} records")
        self.stored = stored


class OutcomeUnknown(ImqttError):
    """The connection or the commit failed: any prefix of the records may be stored.

    The caller must send the same records again before it decides anything new.
    """

    code = "outcome_unknown"
    retryable = True


class RecordRefused(ImqttError):
    """The store refuses all of the records because it cannot hold one of them."""

    code = "record_refused"


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size`."""
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk


class LogStore(Protocol):
    """The conversations' logs and their registers."""

    async def append(self, records: Sequence[Record]) -> None:
        """Stores all records, each conversation's in order. They may belong to several partitions.

        Raises `AppendConflict` if a record's seq or key is taken; its `stored` counts the records before it
        that are committed (none in SQLite, a prefix in MongoDB). Raises `RecordRefused` if nothing is stored.

        The caller ensures that a conversation's records have consecutive seqs and that the first follows the
        head: a store refuses a taken seq, but does not look for gaps.
        """

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        """The position of each conversation's newest event; an empty conversation has no entry."""

    async def find(self, keys: Collection[Key]) -> dict[Key, Stored]:
        """The position and digest of each of the `keys` that is stored."""

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The ids of the events at these (conversation, seq) pairs; pairs without an event have no entry."""

    async def heads_and_ids(
        self, places: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], tuple[Position, int]]:
        """For each (conversation, seq): the conversation's head, and the id at that seq; 0: no such event.

        The result of `heads` and `ids_at` in one read. An empty conversation has no entry.
        """

    async def events_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Event]:
        """The events at these (conversation, seq) pairs; pairs without an event have no entry."""

    async def registers(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Event]:
        """The event with the highest seq that sets each (conversation, register); unset: no entry.

        Looking up a hundred registers of one conversation is cheap, especially if none is set.
        """

    async def events_after(self, conversation: str, seq: int, limit: int) -> list[Event]:
        """At most `limit` events with a greater seq, in order of seq."""

    async def events_with_registers(
        self, conversation: str, seq: int, limit: int
    ) -> tuple[list[Event], dict[tuple[str, str], Event]]:
        """`events_after`, and the `registers` that may change how these events are shown, in one read."""

    async def events_before(self, conversation: str, seq: int, limit: int) -> list[Event]:
        """The last `limit` events with a smaller seq (0: of the whole log), in order of seq."""

    async def barrier(self) -> None:
        """Returns when reads see every acknowledged write. Raises `StoreUnreachable`.

        After MongoDB elects another primary, reads may miss acknowledged writes for a moment.
        """


class MemberStore(Protocol):
    """The conversations of each user."""

    async def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        """Writes (user, conversation) rows, before the event that adds the user. Idempotent."""

    async def heads_of(self, user: str, before: int, limit: int) -> list[Head]:
        """The user's conversations that have events, newest event first, without `latest` and `marks`.

        Returns at most `limit` of those whose newest id is below `before` (0: all). Newest ids are distinct,
        since an id contains its partition and grows within it.
        """

    async def conversations_of(self, after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        """For each user in `after`, the first `limit` conversations in which the user has a member row.

        They follow the given one. The order is fixed, but differs between stores; "" precedes all of them.
        The cost grows with the number returned, not with the users' number of conversations.
        """


class MarkStore(Protocol):
    """The seqs up to which each member has received and read."""

    async def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        """Merges by maximum. Returns the merged marks that grew, in the order given.

        Marks that were never raised are 0. The caller bounds them by the head. `marks` holds each
        (conversation, user) once.
        """

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]:
        """The marks of all members of these conversations, by user; without marks: no entry."""


class DeviceStore(Protocol):
    """The registered devices of each user."""

    async def put_devices(self, devices: Sequence[Registration | DeviceFormat]) -> None:
        """Registers devices, each given once.

        A `Registration` replaces an existing one. A `DeviceFormat` changes only the format, since another
        worker may just have received the device's `Hello`; a new device gets the defaults. `seen` only grows.
        """

    async def see_devices(self, seen: Mapping[Device, int]) -> None:
        """Raises `seen` of registered devices, in milliseconds."""

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        """Every device of each user, in order of device; a user without devices has an empty tuple."""

    async def remove_device(self, device: Device, *, unseen_since: int | None = None) -> None:
        """Removes a device; with `unseen_since`, only if it was not seen later. Its events stay."""


class CopyStore(Protocol):
    """All rows, for a copy of the store."""

    async def conversations(self, after: str, limit: int) -> list[str]:
        """The first `limit` conversations after `after` that have events, members or marks.

        They are ordered by the code points of their names; "" precedes all of them.
        """

    async def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]:
        """As `events_after`, with body, digest and register as they were appended."""

    async def members(self, conversations: Collection[str]) -> dict[str, list[str]]:
        """The users that have a member row in each conversation, in order; none: no entry."""

    async def registrations(self, after: Device, limit: int) -> list[Registration]:
        """The first `limit` devices that follow `after` in order of (user, device)."""


class Store(LogStore, MemberStore, MarkStore, DeviceStore, CopyStore, Protocol):
    """Durable events, members, marks and devices.

    Writes take effect in the order of the calls and return after the commit. Each may raise
    `OutcomeUnknown`, or `StoreFull` or `StoreReadOnly` if nothing was written. The outcome of a cancelled
    write is unknown as well; other writes are not affected. Reads return everything committed before they
    began, or raise `StoreUnreachable`. Every method of a closed store raises `Unavailable`.
    """

    @property
    def identity(self) -> Identity:
        """The identity with which the store was created."""

    @property
    def shared(self) -> bool:
        """Whether other processes may also have the store open."""

    async def set_unfinished(self, unfinished: bool) -> None:
        """Marks the store as an unfinished copy, or as a finished one.

        An unfinished copy can only be opened with `copying`: a server would treat its missing conversations
        as conversations that never existed.
        """

    async def close(self) -> None:
        """Completes pending writes and releases files or connections."""
