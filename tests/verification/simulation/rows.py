"""The contents of a simulated store, and its two unique indexes.

    (conversation, seq)                     one event at each position
    (conversation, sender, client_msg_id)   each message once

No time passes here, and only duplicates fail: `store` adds latency and faults.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from imqtt.model import Device, DeviceFormat, Event, Head, Key, Marks, Position, Registration, Stored
from imqtt.stores.base import AppendConflict, Identity, Record, RecordRefused
from tests.verification.checker.history import Row
from tests.verification.events import row_of

INT64 = 1 << 63

Dump = dict[str, tuple[tuple[Row, ...], tuple[tuple[str, int, int], ...]]]


class Log:
    """One conversation's events, by seq. `seqs` is in order, and may have gaps.

    `registers` has the seqs of the events that set a register.
    """

    __slots__ = ("records", "registers", "seqs")

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.seqs: list[int] = []
        self.registers: set[int] = set()

    @property
    def newest(self) -> Event:
        return self.records[self.seqs[-1]].event

    def put(self, record: Record) -> None:
        seq = record.event.seq
        if seq not in self.records:
            insort(self.seqs, seq)
        self.records[seq] = record
        self.registers.discard(seq)
        if record.register:
            self.registers.add(seq)

    def remove(self, seq: int) -> None:
        del self.records[seq]
        del self.seqs[bisect_left(self.seqs, seq)]
        self.registers.discard(seq)

    def after(self, seq: int, limit: int) -> list[Record]:
        first = bisect_right(self.seqs, seq)
        return [self.records[position] for position in self.seqs[first : first + max(limit, 0)]]

    def before(self, seq: int, limit: int) -> list[Record]:
        end = bisect_left(self.seqs, seq) if seq else len(self.seqs)
        return [self.records[position] for position in self.seqs[max(end - max(limit, 0), 0) : end]]

    def copy(self) -> "Log":
        log = Log()
        log.records, log.seqs, log.registers = self.records.copy(), self.seqs.copy(), self.registers.copy()
        return log


class Backup(NamedTuple):
    """A backup: the contents of one moment."""

    logs: dict[str, Log]
    places: dict[Key, int]
    users: dict[str, set[str]]
    marks: dict[str, dict[str, Marks]]
    devices: dict[str, dict[str, Registration]]
    unfinished: bool


class Rows:
    """All rows of one store, shared by its workers. They survive its process.

    `ordered_prefix`: an append that meets a duplicate keeps the rows before it (MongoDB), or none (SQLite).
    Two rules can be switched off, to test that the checker notices: with `unordered`, an append continues
    after a duplicate (`insert_many(ordered=False)`); with `unchecked_seq`, the seq has no unique index, and
    the later row at a seq is the one that is read.
    """

    unordered = False
    unchecked_seq = False

    def __init__(self, identity: Identity, *, ordered_prefix: bool) -> None:
        self.identity = identity
        self.ordered_prefix = ordered_prefix
        self.unfinished = False
        self._logs: dict[str, Log] = {}
        self._places: dict[Key, int] = {}  # the seq of each message
        self._users: dict[str, set[str]] = {}  # by conversation
        self._marks: dict[str, dict[str, Marks]] = {}  # by conversation, user
        self._devices: dict[str, dict[str, Registration]] = {}  # by user, device

    # --- all contents

    def dump(self) -> Dump:
        """Each conversation's events in order of seq, and its marks: (user, delivered, read)."""
        return {
            name: (
                tuple(row_of(record.event) for record in log.after(0, len(log.seqs))),
                tuple((mark.user, mark.delivered, mark.read) for mark in self._marks_of(name)),
            )
            for name, log in sorted(self._logs.items())
            if log.seqs
        }

    def copy(self) -> Backup:
        """A backup of this moment."""
        return Backup(
            {name: log.copy() for name, log in self._logs.items()},
            self._places.copy(),
            {name: users.copy() for name, users in self._users.items()},
            {name: marks.copy() for name, marks in self._marks.items()},
            {user: devices.copy() for user, devices in self._devices.items()},
            self.unfinished,
        )

    def restore(self, backup: Backup) -> None:
        """Replaces the contents by those of a backup, which may be used again."""
        rows = Rows(self.identity, ordered_prefix=self.ordered_prefix)
        (rows._logs, rows._places, rows._users, rows._marks, rows._devices, rows.unfinished) = backup
        copy = rows.copy()
        self._logs, self._places, self._users, self._marks, self._devices, self.unfinished = copy

    # --- the log

    def append(self, records: Sequence[Record]) -> None:
        """As `Store.append`. Raises `AppendConflict`."""
        met = -1
        replaced: list[Record | None] = []
        for number, record in enumerate(records):
            if self._is_free(record):
                replaced.append(self._insert(record))
            elif not self.unordered:
                if self.ordered_prefix:
                    raise AppendConflict(number)
                self._undo(records[:number], replaced)
                raise AppendConflict(0)
            elif met < 0:
                met = number
        if met >= 0:
            raise AppendConflict(met)

    def _is_free(self, record: Record) -> bool:
        log = self._logs.get(record.event.conversation)
        if log is not None and record.event.seq in log.records and not self.unchecked_seq:
            return False
        return record.key not in self._places

    def _insert(self, record: Record) -> Record | None:
        """Returns the record that was at its seq, which only `unchecked_seq` allows."""
        event = record.event
        log = self._logs.get(event.conversation)
        if log is None:
            log = self._logs[event.conversation] = Log()
        before = log.records.get(event.seq)
        if before is not None:
            del self._places[before.key]
        log.put(record)
        self._places[record.key] = event.seq
        return before

    def _undo(self, records: Sequence[Record], replaced: Sequence[Record | None]) -> None:
        for record, before in zip(reversed(records), reversed(replaced), strict=True):
            del self._places[record.key]
            self._logs[record.event.conversation].remove(record.event.seq)
            if before is not None:
                self._insert(before)

    def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        return {name: log.newest.position for name, log in self._logs_of(conversations)}

    def find(self, keys: Collection[Key]) -> dict[Key, Stored]:
        found = {}
        for key in keys:
            if (seq := self._places.get(key)) is not None:
                record = self._logs[key.conversation].records[seq]
                found[key] = Stored(record.event.position, record.digest)
        return found

    def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for name, seq in places:
            if (log := self._logs.get(name)) is not None and seq in log.records:
                found[name, seq] = log.records[seq].event.id
        return found

    def events_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Event]:
        return {(name, seq): self._logs[name].records[seq].event for name, seq in self.ids_at(places)}

    def registers(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Event]:
        found: dict[tuple[str, str], Event] = {}
        for name, log in self._logs_of({name for name, _ in wanted}):
            for seq in sorted(log.registers):
                record = log.records[seq]
                if (name, record.register) in wanted:
                    found[name, record.register] = record.event
        return found

    def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]:
        log = self._logs.get(conversation)
        return log.after(seq, limit) if log is not None else []

    def events_after(self, conversation: str, seq: int, limit: int) -> list[Event]:
        return [record.event for record in self.records_after(conversation, seq, limit)]

    def events_before(self, conversation: str, seq: int, limit: int) -> list[Event]:
        log = self._logs.get(conversation)
        return [record.event for record in log.before(seq, limit)] if log is not None else []

    def _logs_of(self, conversations: Collection[str]) -> Iterator[tuple[str, Log]]:
        """The logs that have events."""
        for name in conversations:
            if (log := self._logs.get(name)) is not None and log.seqs:
                yield name, log

    # --- members, marks, devices

    def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        for user, conversation in rows:
            self._users.setdefault(conversation, set()).add(user)

    def members(self, conversations: Collection[str]) -> dict[str, list[str]]:
        return {name: sorted(self._users[name]) for name in conversations if name in self._users}

    def heads_of(self, user: str, before: int, limit: int) -> list[Head]:
        names = [name for name, users in self._users.items() if user in users]
        newest = [(name, log.newest) for name, log in self._logs_of(names)]
        heads = [Head(name, event.seq, event.id) for name, event in newest if not before or event.id < before]
        heads.sort(key=lambda head: head.id, reverse=True)
        return heads[: max(limit, 0)]

    def conversations_of(self, user: str, after: str, limit: int) -> list[str]:
        names = sorted(name for name, users in self._users.items() if user in users and name > after)
        return names[: max(limit, 0)]

    def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        grown = []
        for mark in marks:
            of = self._marks.get(mark.conversation, {})
            before = of.get(mark.user) or Marks(mark.conversation, mark.user)
            if mark.delivered > before.delivered or mark.read > before.read:
                now = Marks(
                    mark.conversation,
                    mark.user,
                    max(mark.delivered, before.delivered),
                    max(mark.read, before.read),
                )
                self._marks.setdefault(mark.conversation, of)[mark.user] = now
                grown.append(now)
        return grown

    def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]:
        return {name: self._marks_of(name) for name in conversations if name in self._marks}

    def _marks_of(self, conversation: str) -> list[Marks]:
        return [marks for _, marks in sorted(self._marks.get(conversation, {}).items())]

    def put_devices(self, registrations: Sequence[Registration | DeviceFormat]) -> None:
        for new in registrations:
            user, device = new.device
            devices = self._devices.setdefault(user, {})
            before = devices.get(device) or Registration(new.device, new.format)
            now = new if isinstance(new, Registration) else replace(before, format=new.format)
            devices[device] = replace(now, seen=max(before.seen, new.seen))

    def see_devices(self, seen: Sequence[tuple[Device, int]]) -> None:
        for (user, device), time in seen:
            if (before := self._devices.get(user, {}).get(device)) is not None:
                self._devices[user][device] = replace(before, seen=max(before.seen, time))

    def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        return {
            user: tuple(device for _, device in sorted(self._devices.get(user, {}).items())) for user in users
        }

    def remove_devices(self, devices: Sequence[tuple[Device, int | None]]) -> None:
        """Removes devices, each only if it was not seen since the time given with it."""
        for (user, device), unseen_since in devices:
            before = self._devices.get(user, {}).get(device)
            if before is not None and (unseen_since is None or before.seen <= unseen_since):
                del self._devices[user][device]

    # --- all rows, for a copy of the store

    def set_unfinished(self, unfinished: Sequence[bool]) -> None:
        for record in unfinished:
            self.unfinished = record

    def conversations(self, after: str, limit: int) -> list[str]:
        names = {name for name, _ in self._logs_of(self._logs)} | self._users.keys() | self._marks.keys()
        return sorted(name for name in names if name > after)[: max(limit, 0)]

    def registrations(self, after: Device, limit: int) -> list[Registration]:
        every = [device for devices in self._devices.values() for device in devices.values()]
        return sorted(
            (device for device in every if device.device > after), key=lambda device: device.device
        )[: max(limit, 0)]


def check(record: Record) -> None:
    """Raises `RecordRefused` for values that neither SQLite nor BSON can hold."""
    event = record.event
    if not all(-INT64 <= number < INT64 for number in (event.seq, event.id, event.client_time)):
        raise RecordRefused("an integer beyond 64 bits")
    try:
        record.body.decode()
        f"{event.conversation}{event.sender}{event.device}{event.client_msg_id}{event.kind}{record.register}".encode()
    except UnicodeError as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error
