"""A Redis that is slow, away, wiped or full costs only speed: calls return soon, and it is used again."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from imqtt.model import Device, Key, Registration
from imqtt.state.base import DevicePresence, StateAway, Worker
from imqtt.state.redis import connection as redis_link
from imqtt.state.redis import presence as redis_presence
from imqtt.state.redis.connection import TRIP_SECONDS
from imqtt.state.redis.presence import EXPIRED_AT_ONCE, SENT_AT_ONCE
from imqtt.state.redis.state import RedisState
from tests.redis_server import BURST, RATE, RedisServer, open_state
from tests.services import WITHIN, eventually

PHONE = Device("alice", "phone")
ALICE = (Registration(PHONE, "json"),)
KEY = Key("d:alice:bob", "alice", "m1")
WORKER = Worker("w1", "north", 1, 1_700_000_000_000)
LONG = 60_000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def state(server: RedisServer) -> AsyncIterator[RedisState]:
    state = await open_state(server.url)
    yield state
    await state.close()


def presence(state: str = "online", nonce: str = "n1", since: int = 1_000) -> DevicePresence:
    return DevicePresence(PHONE, nonce, state, since, since + 1_000)


async def is_back(state: RedisState) -> None:
    await eventually(lambda: state.trouble == "", what="Redis in use again")


async def until_away(state: RedisState) -> None:
    """Calls the state until it knows that Redis is away."""
    while not state.trouble:
        await state.seen([KEY])


async def is_unavailable_at_once(state: RedisState) -> None:
    trip_seconds = state._link.trip_seconds
    state._link.trip_seconds = 10 * WITHIN  # a call that waits for Redis ends the test
    async with asyncio.timeout(WITHIN):
        for _ in range(20):
            assert await state.seen([KEY]) == frozenset()
            await state.mark_seen([KEY])
            assert await state.devices(["alice"]) == {}
            lists, maybe, _ = await state.begin(["alice"], [KEY], {PHONE: 1}, 1_000)
            assert (lists, maybe) == ({}, frozenset())
            assert await state.finish([KEY], ["alice"]) == {}
            await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})
            assert await state.update(presence()) is True
            await state.refresh([PHONE], 1_500, 9_000)
            assert await state.expired(9_000) == []
            await state.leave("w1")
            with pytest.raises(StateAway):
                await state.workers()
            with pytest.raises(StateAway):
                await state.beat(WORKER, LONG)
            with pytest.raises(StateAway):  # unknown is not offline
                await state.presence(["alice"])
    state._link.trip_seconds = trip_seconds
    assert "127.0.0.1" in state.trouble


async def test_the_state_works_again_after_redis_was_killed_and_restarted(
    server: RedisServer, state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "imqtt")
    await server.kill()
    await until_away(state)
    await is_unavailable_at_once(state)
    await server.start()
    await is_back(state)
    assert await state.beat(WORKER, LONG) == [WORKER]
    await state.mark_seen([KEY])
    assert await state.seen([KEY]) == {KEY}
    # Once when the connection is lost, perhaps once more when connecting fails, and once when it is back.
    await eventually(lambda: "is back, after" in caplog.text)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("imqtt.state")]
    assert len(messages) <= 3
    assert "is away and the store is read instead" in messages[0]
    assert all(f"127.0.0.1:{server.port}" in message for message in messages)


async def test_the_state_works_again_after_an_orderly_restart_of_redis(
    server: RedisServer, state: RedisState
) -> None:
    await server.stop()
    await until_away(state)
    await server.start()
    await is_back(state)
    assert await state.devices(["alice"]) == {}


async def test_the_state_works_again_after_redis_was_paused_and_resumed(
    server: RedisServer, state: RedisState
) -> None:
    await state.mark_seen([KEY])
    server.pause(state)
    async with asyncio.timeout(WITHIN):
        assert await state.seen([KEY]) == frozenset()
    await is_unavailable_at_once(state)
    assert "no answer in" in state.trouble
    server.resume(state)
    await is_back(state)
    assert await state.seen([KEY]) == {KEY}


async def test_all_waiting_calls_return_when_redis_hangs(server: RedisServer, state: RedisState) -> None:
    server.pause(state)
    first = [asyncio.create_task(state.devices([f"user{number}"])) for number in range(50)]
    await asyncio.sleep(TRIP_SECONDS / 2)
    later = [asyncio.create_task(state.take({PHONE: 1}, number)) for number in range(10)]
    async with asyncio.timeout(WITHIN):
        assert await asyncio.gather(*first) == [{}] * 50
        assert await asyncio.gather(*later) == [{PHONE: 1}] * 10


async def test_rate_limits_hold_roughly_while_redis_is_away(server: RedisServer, state: RedisState) -> None:
    await server.kill()
    await until_away(state)
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: BURST}
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: 0}
    assert await state.take({PHONE: 100}, 2_000) == {PHONE: RATE}


async def test_a_batch_is_limited_roughly_while_redis_is_away(server: RedisServer, state: RedisState) -> None:
    await server.kill()
    await until_away(state)
    assert await state.begin(["alice"], [KEY], {PHONE: 100}, 1_000) == ({}, frozenset(), {PHONE: BURST})
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: 0}


async def test_a_refused_part_of_a_batch_leaves_the_other_answers(
    server: RedisServer, state: RedisState
) -> None:
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})
    await state.mark_seen([KEY])
    server.command("DEL", "imqtt:c:bucket:alice@phone")
    server.command("HSET", "imqtt:c:bucket:alice@phone", "not", "a string")
    assert await state.begin(["alice"], [KEY], {PHONE: 1}, 1_000) == ({"alice": ALICE}, {KEY}, {PHONE: 1})
    assert state.trouble == ""


async def test_a_stalled_event_loop_does_not_make_redis_count_as_away(
    server: RedisServer, state: RedisState
) -> None:
    await state.mark_seen([KEY])
    for turns in range(6):  # before it is sent, while it is under way, and after
        state._link.trip_seconds = TRIP_SECONDS
        asked = asyncio.create_task(state.seen([KEY]))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(TRIP_SECONDS * 1.1)
        server.command("PING")  # once it is answered, so is everything before it, however busy the machine is
        state._link.trip_seconds = WITHIN  # for the first turn, which is sent only now
        assert await asked == {KEY}
    assert state.trouble == ""


async def test_many_simultaneous_calls_take_several_round_trips(
    server: RedisServer, state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "TRIP_BYTES", 1)
    before = server.reads()
    taken = await asyncio.gather(*(state.take({PHONE: 1}, 1_000) for _ in range(105)))
    assert server.reads() - before >= 105
    # In the order of the calls.
    assert [tokens[PHONE] for tokens in taken] == [1] * BURST + [0] * (105 - BURST)


@pytest.mark.parametrize("fault", [RedisServer.kill, RedisServer.stop])
def test_outages_are_survived_on_uvloop_too(
    tmp_path: Path, fault: Callable[[RedisServer], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        async with RedisServer(tmp_path) as server:
            state = await open_state(server.url)
            await test_a_stalled_event_loop_does_not_make_redis_count_as_away(server, state)
            for _ in range(3):
                await fault(server)
                await until_away(state)
                await is_unavailable_at_once(state)
                assert "RuntimeError" not in state.trouble
                await server.start()
                await is_back(state)
            server.pause(state)
            assert await state.seen([KEY]) == frozenset()
            server.resume(state)
            await is_back(state)
            await state.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_closing_while_redis_is_away_answers_waiting_calls(server: RedisServer, tmp_path: Path) -> None:
    state = await open_state(server.url)
    server.pause(state)
    asked = asyncio.create_task(state.devices(["alice"]))
    await asyncio.sleep(0.01)
    await state.close()
    assert await asked == {}
    assert await state.seen([KEY]) == frozenset()
    with pytest.raises(StateAway):
        await state.beat(WORKER, LONG)


async def test_a_full_redis_counts_as_away(server: RedisServer, state: RedisState) -> None:
    server.command("CONFIG", "SET", "maxmemory", 1)
    await state.mark_seen([KEY])
    assert "OOM" in state.trouble or "maxmemory" in state.trouble
    await is_unavailable_at_once(state)
    server.command("CONFIG", "SET", "maxmemory", 0)
    await is_back(state)


async def test_a_deposed_primary_counts_as_away(server: RedisServer, state: RedisState) -> None:
    server.command("REPLICAOF", "127.0.0.1", 1)
    await state.mark_seen([KEY])
    assert "read only replica" in state.trouble
    await is_unavailable_at_once(state)
    server.command("REPLICAOF", "NO", "ONE")
    await is_back(state)


async def test_a_redis_that_denies_permissions_counts_as_away_until_they_are_restored(
    server: RedisServer, state: RedisState
) -> None:
    server.command("ACL", "SETUSER", "default", "-setbit")
    await state.mark_seen([KEY])
    assert "can't run this command" in state.trouble
    server.command("ACL", "SETUSER", "default", "+@all")
    await is_back(state)


async def test_a_command_that_redis_refuses_is_logged_once_and_counts_as_unanswered(
    server: RedisServer, state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing depends on the state: a foreign key or a bug stops no worker."""
    server.command("SET", "imqtt:c:workers", "not a hash")
    for _ in range(3):
        with pytest.raises(StateAway, match="WRONGTYPE"):
            await state.beat(WORKER, LONG)
    assert caplog.text.count("WRONGTYPE") == 1
    assert state.trouble == ""
    assert await state.devices(["alice"]) == {}
    await state.mark_seen([KEY])
    assert await state.seen([KEY]) == {KEY}


async def test_each_call_of_a_batch_is_one_round_trip(server: RedisServer, state: RedisState) -> None:
    counts = [server.reads(), server.reads()]  # counting adds reads of its own
    await state.begin(["alice"], [KEY], {PHONE: 1}, 1_000)
    counts.append(server.reads())
    await state.finish([KEY], ["alice"])
    counts.append(server.reads())
    idle, beginning, finishing = (after - before for before, after in pairwise(counts))
    assert (beginning, finishing) == (idle + 1, idle + 1)


# --- wiped


async def test_a_wiped_redis_knows_nothing_and_keeps_working(server: RedisServer, state: RedisState) -> None:
    for _ in range(3):
        await state.mark_seen([KEY])
        await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})
        await state.arrive(presence())
        assert await state.take({PHONE: BURST}, 1_000) == {PHONE: BURST}
        await state.beat(WORKER, LONG)
        server.command("FLUSHALL")
        server.command("SCRIPT", "FLUSH")
        assert await state.seen([KEY]) == frozenset()
        assert await state.devices(["alice"]) == {}
        assert await state.presence(["alice"]) == {}
        assert await state.update(presence("offline")) is True
        assert await state.expired(1_000_000) == []
        assert await state.workers() == []
        assert state.trouble == ""


async def test_a_list_read_before_a_flush_and_a_registration_is_not_cached(
    server: RedisServer, state: RedisState
) -> None:
    """The flush also removes the record that the user's list was forgotten."""
    lease = await state.lease_devices(["alice"])
    await state.forget_devices(["alice"])
    server.command("FLUSHALL")
    await state.fill_devices(lease, {"alice": ()})
    assert await state.devices(["alice"]) == {}
    newer = await state.lease_devices(["alice"])
    await state.fill_devices(lease, {"alice": ()})
    assert await state.devices(["alice"]) == {}
    await state.fill_devices(newer, {"alice": ALICE})
    assert await state.devices(["alice"]) == {"alice": ALICE}


async def test_flushes_under_load_restore_no_stale_list(server: RedisServer, state: RedisState) -> None:
    """Readers and a writer of one user: once a registration is forgotten, nobody reads an older list."""
    version = 0
    forgotten = 0  # the oldest version that a reader that begins now may see
    over = False

    async def register() -> None:
        nonlocal version, forgotten
        while not over:
            version += 1
            committed = version
            await asyncio.sleep(0)
            await state.forget_devices(["alice"])
            forgotten = committed

    async def read() -> None:
        while not over:
            least = forgotten
            known = (await state.devices(["alice"])).get("alice")
            if known is not None:
                assert known[0].max_packet >= least
                continue
            lease = await state.lease_devices(["alice"])
            read = (Registration(PHONE, "json", max_packet=version),)
            await asyncio.sleep(0)
            await state.fill_devices(lease, {"alice": read})

    tasks = [asyncio.create_task(user) for user in (register(), read(), read(), read())]
    while version < 300:
        await asyncio.to_thread(server.command, "FLUSHALL")
    over = True
    await asyncio.gather(*tasks)


# --- changes that Redis missed while it was away


async def test_after_an_outage_no_earlier_list_is_trusted(server: RedisServer, state: RedisState) -> None:
    """The worker that should have invalidated a list may have died meanwhile."""
    other = await open_state(server.url)
    users = [f"user{number}" for number in range(3)]
    await state.fill_devices(await state.lease_devices(users), dict.fromkeys(users, ()))
    early = await other.lease_devices(users)
    server.pause(state)
    await state.forget_devices(["user0"])  # sent, without an answer
    await state.forget_devices(["user1"])  # not sent
    server.resume(state)
    await is_back(state)
    assert await state.devices(users) == {}
    assert await other.devices(users) == {}
    await other.fill_devices(early, dict.fromkeys(users, ()))
    assert await state.devices(users) == {}
    await state.fill_devices(await state.lease_devices(users), dict.fromkeys(users, ALICE))
    assert len(await other.devices(users)) == len(users)
    await other.close()


async def test_a_cancelled_forget_still_takes_effect(server: RedisServer, state: RedisState) -> None:
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ()})
    server.pause(state)
    forgetting = asyncio.create_task(state.forget_devices(["alice"]))
    await asyncio.sleep(0.01)
    forgetting.cancel()
    with suppress(asyncio.CancelledError):
        await forgetting
    await until_away(state)
    server.resume(state)
    await is_back(state)
    assert await state.devices(["alice"]) == {}


async def test_a_connection_that_began_while_redis_was_away_counts(
    server: RedisServer, state: RedisState
) -> None:
    await state.arrive(presence(nonce="old"))
    server.pause(state)
    await until_away(state)
    await state.arrive(presence(nonce="new", since=1_500))
    assert await state.update(presence("offline", "old", since=1_600)) is False
    assert await state.update(presence("away", "new", since=1_700)) is True
    server.resume(state)
    await is_back(state)
    assert await state.presence(["alice"]) == {"alice": (presence("away", "new", since=1_700),)}


async def test_a_later_connection_that_another_worker_has_recorded_is_kept(
    server: RedisServer, state: RedisState
) -> None:
    other = await open_state(server.url)
    await other.arrive(presence(nonce="theirs", since=1_600))
    server.pause(state)
    await until_away(state)
    await state.arrive(presence(nonce="mine", since=1_500))
    server.resume(state)
    await is_back(state)
    assert await state.presence(["alice"]) == {"alice": (presence(nonce="theirs", since=1_600),)}
    await other.close()


async def test_a_status_that_redis_missed_counts(server: RedisServer, state: RedisState) -> None:
    await state.arrive(presence())
    server.pause(state)
    await until_away(state)
    await state.update(presence("away", since=1_500))
    await state.update(presence("offline", since=1_600))
    server.resume(state)
    await is_back(state)
    assert await state.presence(["alice"]) == {"alice": (presence("offline", since=1_600),)}


@pytest.mark.parametrize("later", [presence("away", since=1_600), presence(nonce="new", since=1_600)])
async def test_a_status_that_redis_missed_does_not_override_a_later_change(
    server: RedisServer, state: RedisState, later: DevicePresence
) -> None:
    other = await open_state(server.url)
    await other.arrive(presence())
    server.command("CLIENT", "KILL", "TYPE", "normal")
    await until_away(other)
    await is_back(other)
    await state.update(presence("offline", since=1_500))
    assert "is away" in state.trouble
    await (other.update(later) if later.nonce == "n1" else other.arrive(later))
    await is_back(state)
    assert await other.presence(["alice"]) == {"alice": (later,)}
    assert await state.presence(["alice"]) == {"alice": (later,)}
    await other.close()


@pytest.mark.parametrize("at_once", [1, SENT_AT_ONCE])
async def test_devices_that_were_active_while_redis_was_away_do_not_count_as_silent(
    server: RedisServer, state: RedisState, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(redis_presence, "SENT_AT_ONCE", at_once)
    devices = [Device(f"user{number}", "phone") for number in range(5)]
    for device in devices[:-1]:  # Redis does not know the last one
        await state.arrive(DevicePresence(device, "n1", "online", 1_000, 2_000))
    server.pause(state)
    await until_away(state)
    await state.refresh(devices, 1_500, 9_000)
    server.resume(state)
    await is_back(state)
    assert await state.expired(8_000) == []
    assert {presence.device for presence in await state.expired(9_000)} == set(devices)


# --- lost while many devices were found silent


async def test_devices_found_silent_before_redis_was_lost_are_reported(
    server: RedisServer, state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [Device(f"user{number:04}", "phone") for number in range(EXPIRED_AT_ONCE + 500)]
    await asyncio.gather(
        *(state.arrive(DevicePresence(device, "n1", "online", 1_000, 2_000)) for device in devices)
    )
    call = state._link.call

    async def call_once(*command: str | bytes | int) -> object:
        answer = await call(*command)
        await server.kill()
        return answer

    monkeypatch.setattr(state._link, "call", call_once)
    gone = await state.expired(2_000)
    assert [presence.device for presence in gone] == devices[:EXPIRED_AT_ONCE]
    assert {presence.state for presence in gone} == {"offline"}
