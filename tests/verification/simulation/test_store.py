"""Behaviour beyond the contract: a store that fails in every way, and workers that die meanwhile.

Its normal behaviour is tested by the contract: `tests/contract` runs on it too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from imqtt.errors import StoreFull, StoreUnreachable
from imqtt.model import Device, Marks, Registration
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown
from tests.contract.stores import log, record
from tests.verification.simulation.loop import Loop, Process, simulated
from tests.verification.simulation.store import LINGER_SECONDS, SimStore, Tables, Unknown

D = "d:alice:bob"
PHONE = Registration(Device("alice", "phone"), "json")
TIMES = 60
LONG = 2 * LINGER_SECONDS  # every call in flight has ended by then

flavours = pytest.mark.parametrize("prefix", [True, False], ids=["mongodb", "sqlite"])


class World:
    """A store, and workers that use it."""

    def __init__(self, loop: Loop, prefix: bool) -> None:
        self.loop = loop
        self.tables = Tables(loop, Identity(16, "5eed" * 4), ordered_prefix=prefix)
        self.store = SimStore(self.tables, loop.random)
        self.seen: list[str] = []

    def worker(self, work: Callable[[SimStore], Coroutine[Any, Any, object]]) -> Process:
        """A process that does this on its own connection, and records how it ended."""
        process = self.loop.new_process(f"worker-{len(self.seen)}")

        async def run() -> None:
            try:
                await work(SimStore(self.tables, self.loop.random))
                self.seen.append("done")
            except (OutcomeUnknown, AppendConflict, StoreFull) as error:
                self.seen.append(type(error).__name__)

        process.spawn(run())
        return process

    @property
    def seqs(self) -> list[int]:
        return [record.seq for record in self.tables.events_after(D, 0, 1_000)]


Play = Callable[[World], Awaitable[None]]


def play(course: Play, *, prefix: bool = True, seed: int = 1, times: int = 1) -> World:
    """Runs `course` several times, each time in a new world. Returns the last world."""
    with simulated(seed) as loop:

        async def run() -> World:
            for _ in range(times):
                world = World(loop, prefix)
                await course(world)
            return world

        world: World = loop.run_until_complete(run())
        assert not loop.errors
        return world


# --- unknown outcomes


@flavours
@pytest.mark.parametrize("stored", [0, 2, 5])
def test_an_append_with_an_unknown_outcome_stores_the_requested_part(prefix: bool, stored: int) -> None:
    async def course(world: World) -> None:
        world.tables.outcomes.append(Unknown(stored))
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 5))
        assert world.seqs == list(range(1, stored + 1))
        await asyncio.sleep(LONG)
        assert world.seqs == list(range(1, stored + 1))
        await world.store.append(log(D, stored + 1, 6))  # the next append is an ordinary one

    assert play(course, prefix=prefix).tables.doubted == 1


def test_a_delayed_insert_is_carried_out_after_its_caller_has_given_up() -> None:
    async def course(world: World) -> None:
        world.tables.outcomes.append(Unknown(later=7.0))
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 3))
        assert world.seqs == []
        await asyncio.sleep(4.0)
        assert world.seqs == []
        await asyncio.sleep(4.0)
        assert world.seqs == [1, 2, 3]

    play(course)


def test_a_delayed_insert_is_checked_against_the_indexes_when_it_is_carried_out() -> None:
    async def course(world: World) -> None:
        world.tables.outcomes.append(Unknown(later=7.0))
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 3))
        await world.store.append([record(D, 2, message="another", sender="bob")])
        await asyncio.sleep(8.0)
        assert [(record.seq, record.client_msg_id) for record in world.tables.events_after(D, 0, 9)] == [
            (1, "m1"),
            (2, "another"),
        ]

    play(course)


def test_records_sent_again_and_their_delayed_insert_are_stored_once() -> None:
    async def again_at_once(world: World) -> None:
        world.tables.outcomes.append(Unknown(later=7.0))
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 3))
        await world.store.append(log(D, 1, 3))
        await asyncio.sleep(8.0)
        assert world.seqs == [1, 2, 3]

    async def again_late(world: World) -> None:
        world.tables.outcomes.append(Unknown(later=7.0))
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 3))
        await asyncio.sleep(8.0)
        with pytest.raises(AppendConflict):
            await world.store.append(log(D, 1, 3))

    play(again_at_once)
    play(again_late)


def unknown_outcomes(prefix: bool) -> set[tuple[int, int]]:
    """Over many worlds: how many of five records are stored when the caller gets the error, and finally."""
    found: set[tuple[int, int]] = set()

    async def course(world: World) -> None:
        world.tables.unknown = 1.0
        with pytest.raises(OutcomeUnknown):
            await world.store.append(log(D, 1, 5))
        before = len(world.seqs)
        await asyncio.sleep(LONG)
        assert world.seqs == list(range(1, len(world.seqs) + 1))
        found.add((before, len(world.seqs)))

    play(course, prefix=prefix, times=4 * TIMES)
    return found


def test_mongodb_may_store_nothing_a_prefix_everything_or_everything_later() -> None:
    assert unknown_outcomes(prefix=True) == {(number, number) for number in range(6)} | {(0, 5)}


def test_sqlite_may_store_nothing_or_everything_but_nothing_later() -> None:
    assert unknown_outcomes(prefix=False) == {(0, 0), (5, 5)}


@flavours
def test_writes_of_members_marks_and_devices_may_have_unknown_outcomes_and_be_repeated(prefix: bool) -> None:
    written: set[tuple[bool, bool, bool]] = set()

    async def course(world: World) -> None:
        store, tables = world.store, world.tables
        tables.unknown = 1.0
        for write in (
            store.put_members([("alice", D)]),
            store.raise_marks([Marks(D, "alice", 3, 1)]),
            store.put_devices([PHONE]),
        ):
            with pytest.raises(OutcomeUnknown):
                await write
        await asyncio.sleep(LONG)
        written.add(
            (bool(tables.members([D])), bool(tables.marks([D])), bool(tables.devices(["alice"])["alice"]))
        )
        tables.unknown = 0.0
        await store.put_members([("alice", D)])
        await store.raise_marks([Marks(D, "alice", 3, 1)])
        await store.put_devices([PHONE])
        assert tables.members([D]) == {D: ["alice"]}
        assert tables.marks([D]) == {D: [Marks(D, "alice", 3, 1)]}
        assert tables.devices(["alice"]) == {"alice": (PHONE,)}

    play(course, prefix=prefix, times=TIMES)
    for one in zip(*written, strict=True):
        assert set(one) == {True, False}


# --- away, cut off, full


@flavours
def test_while_the_store_is_away_reads_fail_and_new_writes_are_not_stored(prefix: bool) -> None:
    async def course(world: World) -> None:
        await world.store.append(log(D, 1, 1))
        world.tables.away = True
        for write in (world.store.append(log(D, 2, 2)), world.store.put_devices([PHONE])):
            with pytest.raises(OutcomeUnknown):
                await write
        for read in (world.store.heads([D]), world.store.barrier(), world.store.devices(["alice"])):
            with pytest.raises(StoreUnreachable):
                await read
        world.tables.away = False
        await asyncio.sleep(LONG)
        assert world.seqs == [1]
        assert await world.store.devices(["alice"]) == {"alice": ()}
        await world.store.append(log(D, 2, 2))

    play(course, prefix=prefix)


@flavours
def test_writes_in_flight_when_the_store_goes_away_have_an_unknown_outcome(prefix: bool) -> None:
    ends: set[tuple[str, int]] = set()

    async def course(world: World) -> None:
        world.worker(lambda store: store.append(log(D, 1, 2)))
        await asyncio.sleep(0.006 * world.loop.random.random())
        world.tables.away = True
        await asyncio.sleep(LONG)
        world.tables.away = False
        ends.add((world.seen[0], len(world.seqs)))

    play(course, prefix=prefix, times=4 * TIMES)
    partly = {("OutcomeUnknown", 1)} if prefix else set()
    assert ends == {("done", 2), ("OutcomeUnknown", 0), ("OutcomeUnknown", 2)} | partly


@flavours
def test_an_answer_in_flight_when_the_store_goes_away_is_lost(prefix: bool) -> None:
    async def course(world: World) -> None:
        world.worker(lambda store: store.append(log(D, 1, 2)))
        while not world.seqs:
            await asyncio.sleep(0.000_01)
        world.tables.away = True
        await asyncio.sleep(LONG)
        assert world.seen == ["OutcomeUnknown"]

    play(course, prefix=prefix)


def test_cutting_off_one_worker_affects_no_other() -> None:
    async def course(world: World) -> None:
        other = SimStore(world.tables, world.loop.random)
        other.cut = True
        with pytest.raises(OutcomeUnknown):
            await other.append(log(D, 1, 1))
        with pytest.raises(StoreUnreachable):
            await other.heads([D])
        await world.store.append(log(D, 1, 1))

    play(course)


@flavours
def test_a_full_store_raises_an_error_and_writes_nothing(prefix: bool) -> None:
    async def course(world: World) -> None:
        await world.store.append(log(D, 1, 1))
        world.tables.full = True
        for write in (
            world.store.append(log(D, 2, 3)),
            world.store.put_members([("alice", D)]),
            world.store.raise_marks([Marks(D, "alice", 1, 1)]),
        ):
            with pytest.raises(StoreFull):
                await write
        assert (await world.store.heads([D]))[D].seq == 1
        world.tables.full = False
        assert world.tables.members([D]) == {}
        assert world.tables.marks([D]) == {}
        await world.store.append(log(D, 2, 3))

    play(course, prefix=prefix)


def test_reads_fail_at_the_set_rate_and_slow_calls_take_the_set_time() -> None:
    async def course(world: World) -> None:
        world.tables.unreachable = 0.5
        answers = await asyncio.gather(*(world.store.heads([D]) for _ in range(200)), return_exceptions=True)
        assert 60 < sum(isinstance(answer, StoreUnreachable) for answer in answers) < 140
        world.tables.unreachable, world.tables.slow = 0.0, 1.0
        before = world.loop.time()
        await asyncio.gather(*(world.store.heads([D]) for _ in range(20)))
        assert world.loop.time() - before > 1.0

    play(course)


# --- workers that are killed or paused, and cancelled calls


def after_a_kill(prefix: bool, stop: Callable[[Loop, Process], None]) -> set[tuple[str, int, int]]:
    """Over many worlds: the worker's outcome, and the number of rows when it was stopped and in the end."""
    ends: set[tuple[str, int, int]] = set()

    async def course(world: World) -> None:
        process = world.worker(lambda store: store.append(log(D, 1, 2)))
        await asyncio.sleep(0.006 * world.loop.random.random())
        stop(world.loop, process)
        seen, then = " ".join(world.seen), len(world.seqs)
        await asyncio.sleep(LONG)
        assert " ".join(world.seen) == seen, "a stopped worker sees nothing more"
        ends.add((seen, then, len(world.seqs)))

    play(course, prefix=prefix, times=4 * TIMES)
    return ends


def test_mongodb_may_carry_out_the_writes_of_a_killed_worker() -> None:
    assert after_a_kill(True, Loop.kill) == {("done", 2, 2), ("", 2, 2), ("", 0, 2), ("", 0, 0)}


def test_sqlite_carries_out_no_write_of_a_killed_worker() -> None:
    assert after_a_kill(False, Loop.kill) == {("done", 2, 2), ("", 2, 2), ("", 0, 0)}


@flavours
def test_writes_of_a_paused_worker_are_carried_out_during_the_pause(prefix: bool) -> None:
    assert after_a_kill(prefix, Loop.pause) == {("done", 2, 2), ("", 2, 2), ("", 0, 2)}


def test_a_paused_worker_receives_its_answers_when_it_resumes() -> None:
    async def course(world: World) -> None:
        process = world.worker(lambda store: store.append(log(D, 1, 2)))
        await asyncio.sleep(0)
        world.loop.pause(process)
        await asyncio.sleep(LONG)
        assert world.seen == []
        world.loop.resume(process)
        await asyncio.sleep(LONG)
        assert world.seen == ["done"]

    play(course)


@flavours
def test_a_write_is_carried_out_although_its_caller_is_cancelled(prefix: bool) -> None:
    async def course(world: World) -> None:
        records = log(D, 1, 2)
        writing = asyncio.create_task(world.store.append(records))
        await asyncio.sleep(0)
        writing.cancel()
        records.clear()  # a cancelled caller may change them
        await asyncio.sleep(LONG)
        assert writing.cancelled()
        assert world.seqs == [1, 2]
        await world.store.close()

    play(course, prefix=prefix)


# --- the order of writes, and the rows that reads see


@flavours
def test_writes_about_devices_do_not_overtake_each_other(prefix: bool) -> None:
    async def course(world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(world.store.put_devices([Registration(PHONE.device, "json", str(number))]))
                if number % 3 == 0:
                    tasks.create_task(world.store.remove_device(PHONE.device))
        assert world.tables.devices(["alice"])["alice"][0].platform == "19"

    play(course, prefix=prefix, times=TIMES)


def firsts(prefix: bool) -> set[str]:
    """Over many worlds: which of two concurrent appends at the same seq came first."""
    won: set[str] = set()

    async def course(world: World) -> None:
        first, second = ([record(D, 1, message=name)] for name in ("first", "second"))
        await asyncio.gather(world.store.append(first), world.store.append(second), return_exceptions=True)
        won.add(world.tables.events_after(D, 0, 9)[0].client_msg_id)

    play(course, prefix=prefix, times=TIMES)
    return won


def test_sqlite_writes_in_call_order_and_mongodb_in_arrival_order() -> None:
    assert firsts(prefix=False) == {"first"}
    assert firsts(prefix=True) == {"first", "second"}


def test_a_read_sees_earlier_writes_and_possibly_concurrent_ones() -> None:
    seen: set[int] = set()

    async def course(world: World) -> None:
        await world.store.append(log(D, 1, 2))
        reading = asyncio.create_task(world.store.heads([D]))
        writing = asyncio.create_task(world.store.append(log(D, 3, 3)))
        while len(world.seqs) < 3:
            await asyncio.sleep(0.000_01)
        if not reading.done():
            seen.add((await reading)[D].seq)
        await writing
        assert (await world.store.heads([D]))[D].seq == 3

    play(course, times=TIMES)
    assert seen == {2, 3}


# --- rules that can be switched off


def test_an_unordered_append_continues_after_a_duplicate() -> None:
    async def course(world: World) -> None:
        await world.store.append(log(D, 1, 1))
        world.tables.unordered = True
        records = [record(D, 2), record(D, 3, message="m1"), record(D, 4), record(D, 4, message="m5")]
        with pytest.raises(AppendConflict) as caught:
            await world.store.append(records)
        assert caught.value.stored == 1
        assert world.seqs == [1, 2, 4]

    play(course)


@flavours
def test_without_a_unique_seq_the_later_row_is_read_at_a_seq(prefix: bool) -> None:
    async def course(world: World) -> None:
        await world.store.append(log(D, 1, 2))
        world.tables.unchecked_seq = True
        rival = record(D, 2, message="another", sender="bob")
        with pytest.raises(AppendConflict):
            await world.store.append([rival, record(D, 3, message="m1")])
        found = await world.store.find([rival.key, record(D, 2).key])
        assert list(found) == [rival.key if prefix else record(D, 2).key]
        await world.store.append([record(D, 2, message="third")])
        assert [(record.seq, record.client_msg_id) for record in world.tables.events_after(D, 0, 9)] == [
            (1, "m1"),
            (2, "third"),
        ]

    play(course, prefix=prefix)


# --- backups


def test_a_restored_store_equals_its_backup_and_no_write_in_flight_follows() -> None:
    async def course(world: World) -> None:
        store, tables = world.store, world.tables
        await store.append(log(D, 1, 2))
        await store.put_members([("alice", D)])
        await store.put_devices([PHONE])
        backup, dump = tables.copy(), tables.dump()
        await store.append(log(D, 3, 5))
        await store.raise_marks([Marks(D, "alice", 5, 5)])
        await store.remove_device(PHONE.device)
        tables.outcomes.append(Unknown(later=3.0))
        with pytest.raises(OutcomeUnknown):
            await store.append(log(D, 6, 6))
        world.worker(lambda other: other.append(log(D, 6, 7)))
        await asyncio.sleep(0)
        for _ in range(2):  # a backup may be used more than once
            tables.restore(backup)
            await asyncio.sleep(LONG)
            assert tables.dump() == dump
            assert tables.devices(["alice"]) == {"alice": (PHONE,)}
            await store.append([record(D, 3, message="other")])
        assert world.seen == ["OutcomeUnknown"]

    play(course)


def test_a_dump_contains_every_conversation_with_its_rows_and_marks() -> None:
    async def course(world: World) -> None:
        await world.store.append([*log(D, 1, 2), *log("u:alice", 1, 1)])
        await world.store.raise_marks([Marks(D, "bob", 2, 1), Marks(D, "alice", 1, 0)])
        dump = world.tables.dump()
        assert list(dump) == [D, "u:alice"]
        rows, marks = dump[D]
        assert [(row.seq, row.sender, row.name, row.value) for row in rows] == [
            (1, "alice", "m1", "message 1"),
            (2, "alice", "m2", "message 2"),
        ]
        assert marks == (("alice", 1, 0), ("bob", 2, 1))

    play(course)


# --- reproducible worlds


def story(seed: int) -> list[str]:
    """The events of a world in which every fault happens at times, in words."""
    events: list[str] = []

    async def course(world: World) -> None:
        tables = world.tables
        tables.noted = lambda text: events.append(f"{world.loop.time():.6f} {text}")
        tables.unknown, tables.unreachable, tables.slow = 0.3, 0.1, 0.1

        async def work(store: SimStore) -> None:
            for _ in range(20):
                try:
                    heads = await store.heads([D])
                    seq = heads[D].seq + 1 if heads else 1
                    await store.append(log(D, seq, seq + 2))
                    await store.put_devices([PHONE])
                except (StoreUnreachable, OutcomeUnknown, AppendConflict) as error:
                    events.append(f"{world.loop.time():.6f} {error!r}")

        processes = [world.worker(work) for _ in range(3)]
        await asyncio.sleep(0.5)
        world.loop.kill(processes[0])
        world.loop.pause(processes[1])
        tables.away = True
        await asyncio.sleep(0.5)
        tables.away = False
        world.loop.resume(processes[1])
        await asyncio.sleep(60.0)

    play(course, seed=seed)
    return events


def test_the_same_seed_repeats_the_same_outcomes() -> None:
    assert story(7) == story(7)
    assert story(7) != story(8)
    assert len(story(7)) > 50
