"""The state in Redis is shared by all processes of a cluster, and separate from those of other clusters."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from imqtt.model import Device, Key, Registration
from imqtt.state.base import DevicePresence, Worker
from imqtt.state.redis.keys import PRESENT_TTL, SEEN_PERIOD
from imqtt.state.redis.state import RedisState
from tests.redis_server import BURST, RATE, RedisServer, open_state, shared_redis

PHONE = Device("alice", "phone")
LAPTOP = Device("alice", "laptop")
ALICE = (Registration(PHONE, "json"),)
KEY = Key("d:alice:bob", "alice", "m1")
LONG = 60_000


def worker(id: str) -> Worker:
    return Worker(id, "north", 1, 1_700_000_000_000)


def online(device: Device = PHONE, nonce: str = "n1", expires: int = 2_000) -> DevicePresence:
    return DevicePresence(device, nonce, "online", 1_000, expires)


async def use_everything(state: RedisState) -> None:
    await state.mark_seen([KEY])
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})
    await state.forget_devices(["bob"])
    await state.arrive(online())
    await state.arrive(online(LAPTOP))
    await state.update(DevicePresence(LAPTOP, "n1", "offline", 1_500, 2_000))
    await state.arrive(online(Device("carol", "phone"), expires=1_100))
    await state.refresh([PHONE], 1_100, 9_000)
    assert len(await state.expired(1_200)) == 1
    await state.take({PHONE: 5, LAPTOP: BURST}, 1_000)
    await state.beat(worker("w1"), LONG)


async def knows_nothing(state: RedisState) -> None:
    assert await state.seen([KEY]) == frozenset()
    assert await state.devices(["alice", "bob"]) == {}
    assert await state.presence(["alice", "carol"]) == {}
    assert await state.expired(1_000_000) == []
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: BURST}
    assert await state.workers() == []


async def open_in(cluster: str) -> RedisState:
    return await open_state(shared_redis(), cluster)


@pytest.fixture
async def two() -> AsyncIterator[tuple[RedisState, RedisState]]:
    """The states of two processes of one cluster."""
    cluster = secrets.token_hex(8)
    one, other = await open_in(cluster), await open_in(cluster)
    yield one, other
    await one.close()
    await other.close()


async def test_keys_marked_by_one_process_are_seen_by_the_other(two: tuple[RedisState, RedisState]) -> None:
    one, other = two
    await one.mark_seen([KEY])
    assert await other.seen([KEY]) == {KEY}


async def test_a_list_forgotten_by_one_process_is_not_filled_by_the_other(
    two: tuple[RedisState, RedisState],
) -> None:
    one, other = two
    lease = await one.lease_devices(["alice"])
    await other.forget_devices(["alice"])
    await one.fill_devices(lease, {"alice": ()})
    assert await one.devices(["alice"]) == {}
    await one.fill_devices(await one.lease_devices(["alice"]), {"alice": ALICE})
    assert await other.devices(["alice"]) == {"alice": ALICE}
    await other.forget_devices(["alice"])
    assert await one.devices(["alice"]) == {}


async def test_each_silent_device_is_found_by_one_process(two: tuple[RedisState, RedisState]) -> None:
    one, other = two
    devices = {Device(f"user{number}", "phone") for number in range(3_000)}
    for device in devices:
        await one.arrive(online(device))
    expired = await asyncio.gather(one.expired(2_000), other.expired(2_000))
    found = [presence.device for presences in expired for presence in presences]
    assert len(found) == len(devices)
    assert set(found) == devices


async def test_a_connection_through_one_process_replaces_one_through_the_other(
    two: tuple[RedisState, RedisState],
) -> None:
    one, other = two
    await one.arrive(online(nonce="old"))
    await other.arrive(online(nonce="new"))
    assert await one.update(DevicePresence(PHONE, "old", "offline", 1_500, 2_000)) is False
    await other.refresh([PHONE], 1_500, 5_000)
    assert await one.presence(["alice"]) == {"alice": (online(nonce="new", expires=5_000),)}


async def test_a_device_has_one_bucket_in_all_processes(two: tuple[RedisState, RedisState]) -> None:
    one, other = two
    assert await one.take({PHONE: 15}, 1_000) == {PHONE: 15}
    assert await other.take({PHONE: 15}, 1_000) == {PHONE: 5}


async def test_clocks_that_differ_add_no_tokens(two: tuple[RedisState, RedisState]) -> None:
    one, other = two
    taken = 0
    for moment in range(0, 1_000, 20):
        taken += (await one.take({PHONE: 100}, 10_000 + moment))[PHONE]
        taken += (await other.take({PHONE: 100}, 8_000 + moment))[PHONE]  # two seconds behind
    assert taken <= BURST + RATE


async def test_workers_see_each_other(two: tuple[RedisState, RedisState]) -> None:
    one, other = two
    await one.beat(worker("w2"), LONG)
    assert await other.beat(worker("w1"), LONG) == [worker("w1"), worker("w2")]
    await one.leave("w2")
    assert await one.workers() == [worker("w1")]


async def test_clusters_in_one_redis_see_nothing_of_each_other() -> None:
    one, other = await open_in(secrets.token_hex(8)), await open_in(secrets.token_hex(8))
    await use_everything(one)
    await knows_nothing(other)
    await other.forget_devices(["alice"])
    assert await one.devices(["alice"]) == {"alice": ALICE}
    await one.close()
    await other.close()


async def test_every_key_expires(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        state = await open_state(server.url)
        await use_everything(state)
        kinds = set()
        async with Redis.from_url(server.url) as redis:
            async for key in redis.scan_iter():
                kinds.add(key.decode().split(":")[2])
                assert 0 < await redis.pttl(key) <= PRESENT_TTL, key
        # `forgotten` is written where a forget could not be delivered, see test_redis_faults.
        everything = {"bucket", "devices", "expires", "lists", "presence", "seen", "workers"}
        assert kinds - {"probe"} == everything
        await state.close()


async def test_devices_that_left_long_ago_are_dropped_from_a_user_who_is_present() -> None:
    state = await open_in(secrets.token_hex(8))
    day = 24 * 3_600_000
    for number in range(10):
        await state.arrive(DevicePresence(Device("alice", f"browser{number}"), "n", "offline", 1_000, 1_000))
    await state.arrive(DevicePresence(PHONE, "n", "online", 1_000 + day, 2_000 + day))
    assert len((await state.presence(["alice"]))["alice"]) == 11
    await state.arrive(DevicePresence(PHONE, "n", "online", 1_001 + day, 2_000 + day))
    present = (await state.presence(["alice"]))["alice"]
    assert [presence.device for presence in present] == [PHONE]
    await state.close()


async def test_seen_ids_are_remembered_for_minutes_and_then_dropped() -> None:
    state = await open_in(secrets.token_hex(8))
    now = 1_700_000_000.0
    state._clock = lambda: now
    await state.mark_seen([KEY])
    now += SEEN_PERIOD / 1_000
    assert await state.seen([KEY]) == {KEY}
    now += SEEN_PERIOD / 1_000
    assert await state.seen([KEY]) == frozenset()
    await state.close()


async def test_simultaneous_calls_share_round_trips(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        state = await open_state(server.url)
        before = server.reads()
        await asyncio.gather(*(state.devices([f"user{number}"]) for number in range(100)))
        assert server.reads() - before < 10  # including the one that counts
        before = server.reads()
        for number in range(100):
            await state.devices([f"user{number}"])
        assert server.reads() - before >= 100
        await state.close()


async def test_a_cancelled_call_does_not_affect_others() -> None:
    state = await open_in(secrets.token_hex(8))
    await state.mark_seen([KEY])
    for _ in range(50):
        cancelled = asyncio.create_task(state.devices(["alice"]))
        asked = asyncio.create_task(state.seen([KEY]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await asked == {KEY}
    assert state.trouble == ""
    await state.close()
