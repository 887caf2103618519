"""The in-process state is bounded: users who come once leave nothing behind for ever."""

import gc
import tracemalloc

from imqtt.model import Device, Key, Registration
from imqtt.state.base import DevicePresence
from imqtt.state.memory import MemoryState

SMALL = 1_000


def small_state() -> MemoryState:
    return MemoryState(10, 20, seen=SMALL, users=SMALL, devices=SMALL)


async def write_once(state: MemoryState, first: int, last: int) -> None:
    """Each user writes once, from their own device and in their own conversation."""
    for number in range(first, last):
        user = f"user{number}"
        device = Device(user, "phone")
        await state.mark_seen([Key(f"u:{user}", user, f"m{number}")])
        lease = await state.lease_devices([user])
        await state.fill_devices(lease, {user: (Registration(device, "json"),)})
        await state.forget_devices([f"other{number}"])
        await state.arrive(DevicePresence(device, "n", "online", number, number + 100_000))
        await state.refresh([device], number, number + 200_000)
        await state.take({device: 1}, number)


async def test_memory_is_flat_over_many_different_users() -> None:
    state = small_state()
    await write_once(state, 0, 5_000)
    gc.collect()
    tracemalloc.start()
    await write_once(state, 5_000, 7_000)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    await write_once(state, 7_000, 20_000)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after < before * 1.25 + 100_000


async def test_the_latest_keys_are_remembered_and_the_oldest_dropped() -> None:
    state = small_state()
    keys = [Key("u:alice", "alice", f"m{number}") for number in range(3 * SMALL)]
    for key in keys:
        await state.mark_seen([key])
    remembered = await state.seen(keys)
    assert remembered <= set(keys[-SMALL:])
    assert remembered >= set(keys[-SMALL // 2 :])


async def test_the_device_lists_unused_for_longest_are_dropped() -> None:
    state = MemoryState(10, 20, users=2)
    for user in ("alice", "bob"):
        await state.fill_devices(0, {user: ()})
    await state.devices(["alice"])
    await state.fill_devices(0, {"carol": ()})
    assert await state.devices(["alice", "bob", "carol"]) == {"alice": (), "carol": ()}


async def test_a_lease_older_than_the_remembered_forgets_fills_nothing() -> None:
    state = MemoryState(10, 20, users=2)
    lease = await state.lease_devices(["alice"])
    for user in ("alice", "bob", "carol", "dave"):
        await state.forget_devices([user])
    await state.fill_devices(lease, {"alice": ()})
    assert await state.devices(["alice"]) == {}
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ()})
    assert await state.devices(["alice"]) == {"alice": ()}


async def test_the_devices_silent_for_longest_are_dropped() -> None:
    state = MemoryState(10, 20, devices=2)
    devices = [Device("alice", name) for name in ("laptop", "phone", "tv")]
    for device in devices[:2]:
        await state.arrive(DevicePresence(device, "n", "online", 0, 1_000))
    await state.refresh([devices[0]], 500, 2_000)
    await state.arrive(DevicePresence(devices[2], "n", "online", 0, 3_000))
    present = (await state.presence(["alice"]))["alice"]
    assert [presence.device for presence in present] == [devices[0], devices[2]]
    assert [presence.device for presence in await state.expired(9_000)] == [devices[0], devices[2]]


async def test_dropping_a_bucket_gives_no_device_a_second_burst() -> None:
    state = MemoryState(10, 20, devices=2)
    greedy = Device("mallory", "phone")
    assert await state.take({greedy: 20}, 0) == {greedy: 20}
    for number in range(5):
        await state.take({Device("mallory", f"other{number}"): 1}, 100)
    assert await state.take({greedy: 20}, 100) == {greedy: 0}
    assert await state.take({greedy: 20}, 3_000) == {greedy: 20}
