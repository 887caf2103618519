"""The simulated database of a device: a killed process leaves whole transactions, as with the real database.

The SDK's own store runs on it, as on the real one in `tests/client/test_store.py`.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imqtt.client.store import LocalStore
from imqtt.core.changes import Changes, LogState
from imqtt.core.outbox import Entry
from imqtt.errors import Conflict, DeviceStoreError
from imqtt.model import Content, Device, Event, Id, Marks, Position, Send
from tests.verification.simulation.database import DELAY, Disk, Operation, SimDatabase
from tests.verification.simulation.loop import Loop, Process, simulated

ALICE = Device("alice", "phone")
TALK = "d:alice:bob"
PATH = Path("alice.db")
TIMES = 60


class World:
    """One disk, and processes that use it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.disk = Disk(loop)

    def process(self, work: Callable[[], Coroutine[Any, Any, object]]) -> "tuple[Process, asyncio.Task[Any]]":
        process = self.loop.new_process("device")
        return process, process.spawn(work())

    async def run(self, work: Callable[[], Coroutine[Any, Any, object]]) -> Any:
        """Runs a process from start to end."""
        return await self.process(work)[1]

    async def open(
        self,
        path: Path | None = PATH,
        *,
        version: int = 1,
        upgrades: Mapping[int, Operation[object]] = {},
    ) -> SimDatabase:
        database = SimDatabase(self.disk, path)
        await database.open("CREATE TABLE t (x INTEGER PRIMARY KEY)", version, upgrades)
        return database

    async def rows(self) -> list[int]:
        """The rows that the next process finds."""

        async def read() -> list[int]:
            database = await self.open()
            rows = await database.submit(_rows)
            await database.close()
            return rows

        found: list[int] = await self.run(read)
        return found


def play(course: Callable[[World], Coroutine[Any, Any, None]], *, seed: int = 1, times: int = 1) -> None:
    """Runs `course` several times, each time in a new world."""
    with simulated(seed) as loop:
        for _ in range(times):
            world = World(loop)
            loop.run_until_complete(course(world))
        assert not loop.errors


def _put(*values: int) -> Callable[[sqlite3.Connection], int]:
    def put(connection: sqlite3.Connection) -> int:
        for value in values:
            connection.execute("INSERT INTO t VALUES (?)", (value,))
        return len(values)

    return put


def _note(noted: list[int], number: int, _: object) -> None:
    noted.append(number)


def _fail(_: sqlite3.Connection) -> None:
    raise ZeroDivisionError


def _rows(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]


# --- transactions


def test_operations_are_carried_out_and_answered_in_order() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            database = await world.open()
            answered: list[int] = []
            for number in range(30):
                done = database.submit(_put(number), durable=number % 2 == 0)
                done.add_done_callback(partial(_note, answered, number))
                if number % 7 == 0:
                    await asyncio.sleep(DELAY[1] / 2)
            assert await database.submit(_rows) == list(range(30))
            assert answered == list(range(30))

        await world.run(work)

    play(course, times=10)


def test_a_failed_operation_does_not_affect_others() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            database = await world.open()
            outcomes = await asyncio.gather(
                database.submit(_put(1)),
                database.submit(_put(2, 1)),  # the second meets a duplicate: neither is stored
                database.submit(_fail),
                database.submit(_put(3)),
                return_exceptions=True,
            )
            assert (outcomes[0], outcomes[3]) == (1, 1)
            assert isinstance(outcomes[1], DeviceStoreError)
            assert isinstance(outcomes[2], ZeroDivisionError)
            assert await database.submit(_rows) == [1, 3]

        await world.run(work)

    play(course)


def test_after_a_chained_operation_fails_no_other_is_carried_out() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            database = await world.open()
            outcomes = await asyncio.gather(
                database.submit(_put(1), chained=True),
                database.submit(_put(2, 1), chained=True),
                database.submit(_put(3), chained=True),
                database.submit(_put(4)),
                return_exceptions=True,
            )
            assert (outcomes[0], outcomes[3]) == (1, 1)
            assert isinstance(outcomes[1], DeviceStoreError)
            assert outcomes[2] is outcomes[1]
            with pytest.raises(DeviceStoreError):
                await database.submit(_put(5), chained=True)
            assert await database.submit(_rows) == [1, 4]

        await world.run(work)

    play(course)


def test_closing_finishes_submitted_operations_and_refuses_new_ones() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            database = await world.open()
            done = [database.submit(_put(number)) for number in range(5)]
            await database.close()
            assert all(task.done() for task in done)
            with pytest.raises(DeviceStoreError, match="closed"):
                await database.submit(_put(9))
            await database.close()

        await world.run(work)
        assert await world.rows() == list(range(5))

    play(course)


def test_an_operation_is_carried_out_even_if_its_result_is_not_awaited() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            database = await world.open()
            database.submit(_put(1)).cancel()
            await database.submit(_put(2))

        await world.run(work)

    play(course)


# --- killed processes


@pytest.mark.parametrize("durable", [True, False])
def test_a_killed_process_leaves_a_prefix_of_whole_transactions_with_all_confirmed_ones(
    durable: bool,
) -> None:
    left: set[int] = set()

    async def course(world: World) -> None:
        confirmed: list[int] = []

        async def work() -> None:
            database = await world.open()
            for number in range(10):
                await database.submit(_put(2 * number, 2 * number + 1), durable=durable)
                confirmed.append(number)

        process, _ = world.process(work)
        await asyncio.sleep(10 * DELAY[1] * world.loop.random.random())
        world.loop.kill(process)
        rows = await world.rows()
        assert rows == list(range(len(rows)))
        assert len(rows) % 2 == 0
        assert len(rows) // 2 - len(confirmed) in (0, 1)
        left.add(len(rows) // 2)

    play(course, times=TIMES)
    assert len(left) > 5


def test_a_process_may_be_killed_before_the_commit_before_its_answer_and_after_it() -> None:
    ends: set[tuple[int, int]] = set()

    async def course(world: World) -> None:
        for callbacks in range(20):
            confirmed: list[int] = []

            async def work(value: int = callbacks, confirmed: list[int] = confirmed) -> None:
                database = await world.open()
                confirmed.append(await database.submit(_put(value)))
                await asyncio.sleep(3_600.0)

            process, _ = world.process(work)
            process.call_after(callbacks, partial(world.loop.kill, process))
            await asyncio.sleep(1.0)
            world.loop.kill(process)
            ends.add((len(confirmed), (await world.rows()).count(callbacks)))

    play(course)
    assert ends == {(0, 0), (0, 1), (1, 1)}


def test_a_file_that_a_live_process_has_open_is_refused_to_others() -> None:
    async def course(world: World) -> None:
        async def hold() -> None:
            await world.open()
            await asyncio.sleep(3_600.0)

        async def refused() -> bool:
            with pytest.raises(DeviceStoreError, match="in use"):
                await world.open()
            return True

        process, _ = world.process(hold)
        await asyncio.sleep(1.0)
        assert await world.run(refused)
        world.loop.pause(process)
        assert await world.run(refused)
        world.loop.kill(process)
        assert await world.rows() == []
        assert await world.rows() == []

    play(course)


def test_files_are_separate_and_a_store_without_a_path_starts_empty() -> None:
    async def course(world: World) -> None:
        async def work() -> None:
            for path in (Path("a"), Path("b"), None, None):
                database = await world.open(path)
                await database.submit(_put(1))

        await world.run(work)

    play(course)


def test_a_file_of_an_older_version_is_upgraded_and_one_of_a_newer_version_is_refused() -> None:
    async def course(world: World) -> None:
        async def newer() -> None:
            database = await world.open(version=3, upgrades={1: _put(1), 2: _put(2)})
            await database.close()

        async def older() -> None:
            with pytest.raises(DeviceStoreError, match="another version"):
                await world.open()
            database = await world.open(version=3)
            assert await database.submit(_rows) == [1, 2]

        assert await world.rows() == []
        await world.run(newer)
        await world.run(older)

    play(course)


# --- the SDK's own store on the simulated database


def test_the_store_of_a_device_survives_a_kill() -> None:
    event = Event(TALK, 1, Id(10), 0, "bob", "phone", "m1", Content(text="1"))
    position = Position(1, Id(10))
    changes = Changes(
        events={(TALK, 1): (1, event)},
        logs={TALK: LogState(TALK, position, 0, position)},
        marks=[Marks(TALK, "alice", 1, 1)],
        meta={"ordinal": "1"},
    )

    async def course(world: World) -> None:
        async def first() -> None:
            store = await LocalStore.open(SimDatabase(world.disk, PATH), ALICE)
            await store.apply(changes)
            await store.put(Entry(Send(TALK, "m2", Content(text="mine"))))
            await asyncio.sleep(3_600.0)

        async def second() -> None:
            store = await LocalStore.open(SimDatabase(world.disk, PATH), ALICE)
            memory = await store.load()
            assert [log.cursor for log in memory.logs] == [position]
            assert [message.client_msg_id for message in memory.unsent] == ["m2"]
            assert await store.events(TALK, 1, 9) == [event]
            with pytest.raises(Conflict):
                await store.put(Entry(Send(TALK, "m2", Content(text="other"))))
            with pytest.raises(DeviceStoreError, match="in use"):
                await LocalStore.open(SimDatabase(world.disk, PATH), ALICE)
            await store.close()

        async def stranger() -> None:
            with pytest.raises(DeviceStoreError, match="belongs to"):
                await LocalStore.open(SimDatabase(world.disk, PATH), Device("bob", "phone"))

        process, _ = world.process(first)
        await asyncio.sleep(1.0)
        world.loop.kill(process)
        await world.run(second)
        await world.run(stranger)

    play(course)


def test_the_same_seed_repeats_the_same_outcomes() -> None:
    def story(seed: int) -> list[float]:
        times: list[float] = []

        async def course(world: World) -> None:
            async def work() -> None:
                database = await world.open()
                for number in range(20):
                    await database.submit(_put(number))
                    times.append(world.loop.time())

            await world.run(work)

        play(course, seed=seed)
        return times

    assert story(3) == story(3)
    assert story(3) != story(4)
