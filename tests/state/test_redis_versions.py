"""Entries that another version of imqtt wrote into Redis do not affect others."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import time_ns

import msgspec
import pytest

from imqtt.model import Device, Registration
from imqtt.state.base import DevicePresence, Worker
from imqtt.state.redis.keys import Keys
from imqtt.state.redis.state import RedisState
from tests.redis_server import BURST, RedisServer, open_state

ALICE, BOB, CAROL = Device("alice", "phone"), Device("bob", "phone"), Device("carol", "phone")
WORKER = Worker("w1", "north", 1, 1_700_000_000_000)
EXPIRIES = Keys("c").expiries
STRANGE = [
    b"",
    b"\xc1",
    b"\xff\xff\xff",
    msgspec.msgpack.encode({"state": "online"}),
    msgspec.msgpack.encode([1, 2]),
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def state(server: RedisServer) -> AsyncIterator[RedisState]:
    state = await open_state(server.url)
    yield state
    assert state.trouble == ""
    await state.close()


def presence(device: Device, state: str = "online", nonce: str = "n1", since: int = 1_000) -> DevicePresence:
    return DevicePresence(device, nonce, state, since, since + 1_000)


async def raw(state: RedisState, *command: str | bytes | int) -> object:
    return await state._link.call(*command)


async def test_a_presence_state_of_a_newer_version_is_passed_on(state: RedisState) -> None:
    newer = msgspec.msgpack.encode(["n1", "invisible", 1_000, 2_000, {"added": 1}])
    await raw(state, "HSET", "imqtt:c:presence:alice", "phone", newer)
    await state.arrive(presence(BOB))
    found = await state.presence(["alice", "bob"])
    assert found["alice"] == (presence(ALICE, "invisible"),)
    assert found["bob"] == (presence(BOB),)
    assert await state.update(presence(ALICE, "away", since=1_500))
    assert {presence.device.user for presence in await state.expired(10_000)} == {"alice", "bob"}


@pytest.mark.parametrize("entry", STRANGE, ids=repr)
async def test_a_presence_in_another_form_is_ignored(state: RedisState, entry: bytes) -> None:
    for device in ("phone", "tablet"):
        await raw(state, "HSET", "imqtt:c:presence:alice", device, entry)
        await raw(state, "ZADD", EXPIRIES, 1_500, f"alice@{device}")
    await raw(state, "ZADD", EXPIRIES, 1_500, b"\xff and no device")
    await state.arrive(presence(BOB))
    assert await state.presence(["alice", "bob"]) == {"bob": (presence(BOB),)}
    assert [presence.device for presence in await state.expired(10_000)] == [BOB]
    assert await state.update(presence(ALICE, "offline", since=1_500))  # as of an unknown device
    await state.arrive(presence(ALICE))
    assert (await state.presence(["alice"]))["alice"] == (presence(ALICE),)
    assert await state.update(presence(ALICE, "away", since=1_500))


@pytest.mark.parametrize("entry", STRANGE, ids=repr)
async def test_a_device_list_in_another_form_is_read_from_the_store_and_replaced(
    state: RedisState, entry: bytes
) -> None:
    bobs = (Registration(BOB, "json"),)
    await state.fill_devices(await state.lease_devices(["bob"]), {"bob": bobs})
    for prefix in (b"9" * 16, b"", b"not a number at all"):
        await raw(state, "SET", "imqtt:c:devices:alice", prefix + entry)
        assert await state.devices(["alice", "bob"]) == {"bob": bobs}
    alices = (Registration(ALICE, "cbor", "tv", 10),)
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": alices, "bob": bobs})
    assert await state.devices(["alice", "bob"]) == {"alice": alices, "bob": bobs}


async def test_a_device_list_with_fields_of_a_newer_version_is_read(state: RedisState) -> None:
    await raw(
        state,
        "SET",
        "imqtt:c:devices:alice",
        b"9" * 16 + msgspec.msgpack.encode([["phone", "json", "", 0, 5, "new"]]),
    )
    assert await state.devices(["alice"]) == {"alice": (Registration(ALICE, "json", seen=5),)}


async def test_a_bucket_in_another_form_counts_as_full(server: RedisServer, state: RedisState) -> None:
    await raw(state, "SET", "imqtt:c:bucket:alice@phone", "a newer form")
    assert await state.take({ALICE: 5, BOB: 100}, 1_000) == {ALICE: 5, BOB: BURST}
    other = await open_state(server.url)
    assert await other.take({ALICE: 100, BOB: 100}, 1_000) == {ALICE: BURST - 5, BOB: 0}
    await other.close()


async def test_a_worker_in_another_form_does_not_hide_the_others(state: RedisState) -> None:
    until = b"%016d" % (time_ns() // 1_000_000 + 60_000)
    await raw(state, "HSET", "imqtt:c:workers", b"\xff", until + b"{}")
    await raw(state, "HSET", "imqtt:c:workers", "w0", b"not a time at all: a newer form")
    newer = msgspec.json.encode({**msgspec.to_builtins(WORKER), "id": "w2", "added": [1]})
    await raw(state, "HSET", "imqtt:c:workers", "w2", until + newer)
    workers = await state.beat(WORKER, 60_000)
    assert {worker.id for worker in workers} == {"\N{REPLACEMENT CHARACTER}", "w1", "w2"}


async def test_a_worker_written_by_a_clock_that_is_ahead_is_ignored(state: RedisState) -> None:
    tomorrow = b"%016d" % (time_ns() // 1_000_000 + 86_400_000)
    await raw(state, "HSET", "imqtt:c:workers", "w0", tomorrow + msgspec.json.encode(WORKER))
    assert [worker.id for worker in await state.beat(WORKER, 60_000)] == ["w1"]
