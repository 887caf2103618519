"""Behaviour beyond the contract: a state that is unreachable, wiped or wrong, with several workers.

Its normal behaviour is tested by the contract: `tests/contract` runs on it too.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from imqtt.model import Device, Key, Registration
from imqtt.state.base import DevicePresence, StateAway, Worker
from tests.verification.simulation.loop import Loop, simulated
from tests.verification.simulation.state import RETRY_SECONDS, SharedState, SimState

OLD = (Registration(Device("alice", "phone"), "json"),)
NEW = (*OLD, Registration(Device("alice", "tablet"), "json"))
KEYS = [Key("d:alice:bob", "alice", f"m{number}") for number in range(200)]
WORKER = Worker("w1", "north", 1, 0)
PHONE = Device("alice", "phone")


class World:
    """A state shared by two workers."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.shared = SharedState(rate=10, burst=20)
        self.one = SimState(self.shared, loop.random)
        self.two = SimState(self.shared, loop.random)


def play(course: Callable[[World], Coroutine[Any, Any, None]], *, times: int = 1) -> None:
    """Runs `course` several times, each time in a new world."""
    with simulated(1) as loop:

        async def run() -> None:
            for _ in range(times):
                await course(World(loop))

        loop.run_until_complete(run())
        assert not loop.errors


async def fill(state: SimState, lists: tuple[Registration, ...]) -> None:
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": lists})


def test_workers_share_the_state() -> None:
    async def course(world: World) -> None:
        await world.one.mark_seen(KEYS)
        await fill(world.one, OLD)
        await world.one.beat(WORKER, 60_000)
        assert await world.two.seen(KEYS) == frozenset(KEYS)
        assert await world.two.devices(["alice"]) == {"alice": OLD}
        assert await world.two.workers() == [WORKER]
        assert (await world.one.take({PHONE: 15}, 0), await world.two.take({PHONE: 15}, 0)) == (
            {PHONE: 15},
            {PHONE: 5},
        )

    play(course)


def test_a_worker_without_heartbeats_expires_in_virtual_time() -> None:
    async def course(world: World) -> None:
        await world.one.beat(WORKER, 60_000)
        await asyncio.sleep(59.0)
        assert await world.two.workers() == [WORKER]
        await asyncio.sleep(2.0)
        assert await world.two.workers() == []

    play(course)


def test_while_the_state_is_away_calls_soon_answer_unknown() -> None:
    async def course(world: World) -> None:
        state = world.one
        await state.mark_seen(KEYS)
        await fill(state, OLD)
        world.shared.away = True
        before = world.loop.time()
        assert await state.seen(KEYS) == frozenset()
        assert await state.devices(["alice"]) == {}
        assert await state.expired(1 << 60) == []
        assert await state.take({PHONE: 100}, 0) == {PHONE: 20}
        assert await state.update(DevicePresence(PHONE, "n", "online", 0, 1)) is True
        assert await state.update(DevicePresence(PHONE, "n", "offline", 0, 1)) is True
        await state.mark_seen(KEYS)
        await fill(state, NEW)
        await state.leave("w1")
        with pytest.raises(StateAway):
            await state.beat(WORKER, 1_000)
        with pytest.raises(StateAway):
            await state.workers()
        with pytest.raises(StateAway):
            await state.presence(["alice"])
        assert world.loop.time() - before < 0.1
        assert state.trouble
        world.shared.away = False
        await asyncio.sleep(2 * RETRY_SECONDS)
        assert not state.trouble
        assert await state.seen(KEYS) == frozenset(KEYS)
        assert await state.devices(["alice"]) == {}  # another worker may have registered one unnoticed

    play(course)


def test_invalidations_that_failed_are_repeated_before_any_read() -> None:
    async def course(world: World) -> None:
        await fill(world.one, OLD)
        world.shared.away = True
        await world.one.forget_devices(["alice"])
        world.shared.away = False
        while world.one.trouble:
            await asyncio.sleep(0.001)
        assert await world.one.devices(["alice"]) == {}
        assert await world.two.devices(["alice"]) == {}

    play(course, times=20)


def test_a_call_carried_out_without_an_answer_counts_as_unknown() -> None:
    ends: set[tuple[bool, bool]] = set()

    async def course(world: World) -> None:
        beating = asyncio.create_task(world.one.beat(WORKER, 60_000))
        await asyncio.sleep(0.002 * world.loop.random.random())
        world.one.cut = True
        confirmed = not isinstance((await asyncio.gather(beating, return_exceptions=True))[0], StateAway)
        ends.add((bool(await world.two.workers()), confirmed))

    play(course, times=60)
    assert ends == {(False, False), (True, False), (True, True)}


def test_a_flush_removes_everything_and_earlier_leases_fill_nothing() -> None:
    async def course(world: World) -> None:
        await world.one.mark_seen(KEYS)
        await world.one.beat(WORKER, 60_000)
        await world.one.forget_devices(["bob"])
        lease = await world.one.lease_devices(["alice"])
        world.shared.flush()
        await world.two.forget_devices(["alice"])
        await world.one.fill_devices(lease, {"alice": OLD})
        assert await world.one.seen(KEYS) == frozenset()
        assert await world.one.devices(["alice"]) == {}
        assert await world.one.workers() == []
        await fill(world.one, NEW)
        assert await world.two.devices(["alice"]) == {"alice": NEW}

    play(course)


def test_false_positives_occur_at_the_set_rate() -> None:
    async def course(world: World) -> None:
        world.shared.mistaken = 0.3
        await world.one.mark_seen(KEYS[:50])
        recalled = await world.one.seen(KEYS)
        assert recalled >= set(KEYS[:50])
        assert 20 < len(recalled) - 50 < 75

    play(course)


def test_calls_are_carried_out_in_order() -> None:
    async def course(world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                arrival = DevicePresence(PHONE, f"n{number}", "online", number, 1_000)
                tasks.create_task(world.one.arrive(arrival))
                if number % 9 == 0:
                    await asyncio.sleep(0.000_5)
        (found,) = (await world.two.presence(["alice"]))["alice"]
        assert found.nonce == "n49"

    play(course, times=20)


def test_closing_fails_calls_in_flight() -> None:
    async def course(world: World) -> None:
        beating = asyncio.create_task(world.one.beat(WORKER, 60_000))
        await asyncio.sleep(0)
        await world.one.close()
        with pytest.raises(StateAway, match="closed"):
            await beating
        with pytest.raises(StateAway, match="closed"):
            await world.one.workers()

    play(course)
