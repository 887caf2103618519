"""The simulated store: what real stores do, at their best and at their worst, in virtual time.

`Tables` is the database server: the rows, and its faults. `SimStore` is one worker's connection. The server
carries out a write some time after the call, even if the worker has ended by then, and the answer takes time
as well. The store also runs on an ordinary event loop, for the contract's suite.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar

from imqtt.core.overlays import registers_of
from imqtt.errors import ImqttError, StoreFull, StoreUnreachable, Unavailable
from imqtt.model import Device, DeviceFormat, Event, Head, Key, Marks, Position, Registration, Stored
from imqtt.stores.base import Identity, OutcomeUnknown, Record
from tests.verification.simulation.loop import Loop, Process, current
from tests.verification.simulation.rows import Backup, Rows, check

T = TypeVar("T")

ALL = sys.maxsize
LATENCY = (0.000_1, 0.003)  # seconds, each way
SLOW_SECONDS = 2.0  # at most, each way, of a call that takes long
LINGER_SECONDS = 5.0  # at most, until an insert is carried out whose caller has given up
TIMEOUT_SECONDS = 1.0  # at most, until a caller gives up


class Unknown(NamedTuple):
    """The actual outcome of a write whose caller gets `OutcomeUnknown`.

    The first `stored` of its rows are written: before the caller gets the error, or `later` seconds later.
    """

    stored: int = ALL
    later: float = 0.0


class Tables(Rows):
    """The database server, which survives its workers. Without a `loop`, it has neither latency nor faults.

    While it is `away`, it is unreachable: reads fail, and the outcome of writes in flight is random, as is
    that of writes whose store process is killed. While it is `full`, it refuses all writes. `unknown`,
    `unreachable` and `slow` are the probabilities that a write's outcome is unknown, a read fails, a call
    takes long; `outcomes` are those of the next appends.

    `doubted` counts the writes whose outcome was unknown. `noted` is called with each event, in words.
    """

    Copy = Backup

    def __init__(self, loop: Loop | None, identity: Identity, *, ordered_prefix: bool) -> None:
        super().__init__(identity, ordered_prefix=ordered_prefix)
        self.process = loop.new_process("store") if loop is not None else None
        self.away = False
        self.full = False
        self.unknown = 0.0
        self.unreachable = 0.0
        self.slow = 0.0
        self.outcomes: deque[Unknown] = deque()
        self.doubted = 0
        self.noted: Callable[[str], None] | None = None
        self.era = 0  # how often a backup was restored

    def restore(self, backup: Backup) -> None:
        """Like `Rows.restore`. Calls in flight have no effect: the server was down for the restore."""
        super().restore(backup)
        self.era += 1


@dataclass(slots=True)
class _Write:
    """A write in flight. `fate` is its actual outcome if the caller's is unknown."""

    what: str
    carry_out: Callable[[Any], Any]
    items: Sequence[Any]
    answer: "asyncio.Future[Any]"
    caller: Process | None
    era: int
    fate: Unknown | None = None


class SimStore:
    """A `Store` of one worker. `random` is the simulation's; `latency` in seconds, each way.

    While it is `cut`, only this worker cannot reach the server.
    """

    def __init__(self, tables: Tables, random: Random, *, latency: tuple[float, float] = LATENCY) -> None:
        self.tables = tables
        self.cut = False
        self._random = random.random
        self._loop = asyncio.get_running_loop()
        self._least, self._spread = latency[0], latency[1] - latency[0]
        self._open = True
        self._under_way = 0
        self._finished: asyncio.Future[None] | None = None
        self._in_order: deque[_Write] = deque()  # writes that do not overtake each other

    @property
    def identity(self) -> Identity:
        return self.tables.identity

    @property
    def shared(self) -> bool:
        return True

    async def close(self) -> None:
        self._open = False
        while self._under_way:
            self._finished = self._loop.create_future()
            await self._finished

    # --- writes

    async def append(self, records: Sequence[Record]) -> None:
        self._check_open()
        for record in records:
            check(record)
        await self._write("append", self.tables.append, records)

    async def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        await self._write("members", self.tables.put_members, rows)

    async def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        return await self._write("marks", self.tables.raise_marks, marks) or []

    async def put_devices(self, devices: Sequence[Registration | DeviceFormat]) -> None:
        await self._write("devices", self.tables.put_devices, devices)

    async def see_devices(self, seen: Mapping[Device, int]) -> None:
        await self._write("devices", self.tables.see_devices, list(seen.items()))

    async def remove_device(self, device: Device, *, unseen_since: int | None = None) -> None:
        await self._write("devices", self.tables.remove_devices, [(device, unseen_since)])

    async def set_unfinished(self, unfinished: bool) -> None:
        await self._write("mark", self.tables.set_unfinished, [unfinished])

    # --- reads

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        return await self._read(lambda: self.tables.heads(conversations))

    async def find(self, keys: Collection[Key]) -> dict[Key, Stored]:
        return await self._read(lambda: self.tables.find(keys))

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return await self._read(lambda: self.tables.ids_at(places))

    async def heads_and_ids(
        self, places: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], tuple[Position, int]]:
        heads = await self.heads({conversation for conversation, _ in places})
        ids = await self.ids_at(places)
        return {place: (heads[place[0]], ids.get(place, 0)) for place in places if place[0] in heads}

    async def events_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Event]:
        return await self._read(lambda: self.tables.events_at(places))

    async def registers(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Event]:
        return await self._read(lambda: self.tables.registers(wanted))

    async def events_after(self, conversation: str, seq: int, limit: int) -> list[Event]:
        return await self._read(lambda: self.tables.events_after(conversation, seq, limit))

    async def events_with_registers(
        self, conversation: str, seq: int, limit: int
    ) -> tuple[list[Event], dict[tuple[str, str], Event]]:
        events = await self.events_after(conversation, seq, limit)
        return events, await self.registers(registers_of(events))

    async def events_before(self, conversation: str, seq: int, limit: int) -> list[Event]:
        return await self._read(lambda: self.tables.events_before(conversation, seq, limit))

    async def barrier(self) -> None:
        await self._read(lambda: None)

    async def heads_of(self, user: str, before: int, limit: int) -> list[Head]:
        return await self._read(lambda: self.tables.heads_of(user, before, limit))

    async def conversations_of(self, after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        return await self._read(
            lambda: {user: self.tables.conversations_of(user, name, limit) for user, name in after.items()}
        )

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]:
        return await self._read(lambda: self.tables.marks(conversations))

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        return await self._read(lambda: self.tables.devices(users))

    async def conversations(self, after: str, limit: int) -> list[str]:
        return await self._read(lambda: self.tables.conversations(after, limit))

    async def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]:
        return await self._read(lambda: self.tables.records_after(conversation, seq, limit))

    async def members(self, conversations: Collection[str]) -> dict[str, list[str]]:
        return await self._read(lambda: self.tables.members(conversations))

    async def registrations(self, after: Device, limit: int) -> list[Registration]:
        return await self._read(lambda: self.tables.registrations(after, limit))

    # --- carrying out reads

    def _read(self, read: Callable[[], T]) -> "asyncio.Future[T]":
        """Reads the rows now, or when the answer arrives: both are between call and answer."""
        self._check_open()
        answer: asyncio.Future[T] = self._loop.create_future()
        tables = self.tables
        if self._unreachable or (tables.unreachable and self._random() < tables.unreachable):
            self._later(self._short(TIMEOUT_SECONDS), _fail, answer, _unreachable())
        elif self._random() < 0.5:
            found = read()
            self._later(self._delay(), self._answer_read, answer, tables.era, lambda: found)
        else:
            self._later(self._delay(), self._answer_read, answer, tables.era, read)
        return answer

    def _answer_read(self, answer: "asyncio.Future[T]", era: int, read: Callable[[], T]) -> None:
        if self._unreachable or era != self.tables.era:
            _fail(answer, _unreachable())
        elif not answer.done():
            answer.set_result(read())

    # --- carrying out writes

    async def _write(self, what: str, carry_out: Callable[[Any], T], items: Collection[Any]) -> T | None:
        """None if there is nothing to write."""
        self._check_open()
        if not items:
            return None
        tables = self.tables
        answer: asyncio.Future[T] = self._loop.create_future()
        # A cancelled caller may change the list.
        write = _Write(what, carry_out, list(items), answer, current(), tables.era)
        self._under_way += 1
        if self._unreachable:
            self._doubt(write, "not sent")
            self._later(self._short(TIMEOUT_SECONDS), self._answer, write, None, _unknown())
            return await answer
        if what == "append" and tables.outcomes:
            write.fate = tables.outcomes.popleft()
        elif tables.unknown and self._random() < tables.unknown:
            write.fate = self._draw_fate(len(write.items))
        if tables.ordered_prefix and what != "devices":
            self._later(self._delay(), self._carry_out, write)
        else:
            # If its timer fires before that of an earlier write, the earlier write is carried out. SQLite
            # carries out writes one after the other, and a worker sends those of devices to MongoDB in order.
            self._in_order.append(write)
            self._later(self._delay(), self._carry_out_next)
        return await answer

    def _draw_fate(self, count: int) -> Unknown:
        """SQLite's transaction is atomic, and over when its caller gets the error; MongoDB may continue."""
        kind = int(self._random() * (4 if self.tables.ordered_prefix else 2))
        if kind == 2:
            return Unknown(int(self._random() * (count + 1)))
        if kind == 3:
            return Unknown(later=self._short(LINGER_SECONDS))
        return Unknown(ALL if kind else 0)

    def _carry_out_next(self) -> None:
        self._carry_out(self._in_order.popleft())

    def _carry_out(self, write: _Write) -> None:
        if (
            write.caller is not None
            and not write.caller.alive
            # SQLite dies with its process. MongoDB carries out the writes that it received, but not those
            # that the kernel had not sent yet.
            and (not self.tables.ordered_prefix or self._random() < 0.5)
        ):
            self._note(write, "dies with its worker")
            return
        if write.fate is None and self._unreachable:
            write.fate = self._draw_fate(len(write.items))
        if write.fate is None:
            result, error = self._try(write, ALL)
            self._later(self._delay(), self._answer, write, result, error)
            return
        stored, later = write.fate
        self._doubt(
            write, f"{min(stored, len(write.items))} of them written" + f" {later:.3f} s later" * (later > 0)
        )
        if later:
            self._later(later, self._try, write, stored)
        else:
            self._try(write, stored)
        self._later(self._short(TIMEOUT_SECONDS), self._answer, write, None, _unknown())

    def _try(self, write: _Write, stored: int) -> tuple[Any, ImqttError | None]:
        """Writes the first `stored` rows. Returns the result, and the error to raise instead of it."""
        if write.era != self.tables.era:
            return None, _unknown()
        if self.tables.full:
            return None, StoreFull("the store's disk is full", retry_after=1_000)
        try:
            result = write.carry_out(write.items[:stored])
        except ImqttError as error:
            self._note(write, str(error))
            return None, error
        if stored:
            self._note(write, "done")
        return result, None

    def _answer(self, write: _Write, result: Any, error: ImqttError | None) -> None:
        if not isinstance(error, OutcomeUnknown) and (self._unreachable or write.era != self.tables.era):
            self._doubt(write, "its answer is lost")
            error = _unknown()
        if error is not None:
            _fail(write.answer, error)
        elif not write.answer.done():  # otherwise its caller was cancelled; the rows stay
            write.answer.set_result(result)
        self._under_way -= 1
        if not self._under_way and self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    # --- time and faults

    @property
    def _unreachable(self) -> bool:
        return self.cut or self.tables.away

    def _later(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Schedules it in the server, which continues if the worker is killed or paused."""
        (self.tables.process or self._loop).call_later(delay, callback, *args)

    def _delay(self) -> float:
        if self.tables.slow and self._random() < self.tables.slow:
            return SLOW_SECONDS * self._random()
        return self._least + self._spread * self._random()

    def _short(self, most: float) -> float:
        """Up to `most` seconds, usually far less, so that it often coincides with other events."""
        return most * self._random() ** 3

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the store is closed")

    def _doubt(self, write: _Write, why: str) -> None:
        self.tables.doubted += 1
        self._note(write, f"outcome unknown to its caller: {why}")

    def _note(self, write: _Write, what: str) -> None:
        if self.tables.noted is not None:
            caller = "" if write.caller is None else write.caller.name
            items = " ".join(map(_brief, write.items))
            self.tables.noted(f"store: {caller}'s {write.what} of {items}: {what}")


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown("the store does not answer")


def _unreachable() -> StoreUnreachable:
    return StoreUnreachable("the store does not answer", retry_after=1_000)


def _fail(answer: "asyncio.Future[Any]", error: ImqttError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _brief(item: object) -> str:
    if isinstance(item, Record):
        event = item.event
        return f"{event.conversation}#{event.seq}({event.sender} {event.client_msg_id})"
    return str(item)
