"""Seen ids and device lists: hints and caches. On a miss, the store is read."""

from imqtt.model import Device, Key, Registration
from imqtt.state.base import State

ALICE = (Registration(Device("alice", "laptop"), "json"), Registration(Device("alice", "phone"), "protobuf"))
BOB = (Registration(Device("bob", "phone"), "json", "ios", 4_096),)


# --- seen ids


async def test_keys_marked_as_seen_are_remembered(state: State) -> None:
    keys = [Key("d:alice:bob", "alice", f"m{number}") for number in range(100)]
    await state.mark_seen(keys[:50])
    recalled = await state.seen(keys)
    assert set(keys[:50]) <= recalled <= set(keys)
    assert await state.seen([]) == frozenset()


async def test_other_keys_are_not_reported_as_seen(state: State) -> None:
    await state.mark_seen([Key("d:alice:bob", "alice", "m1")])
    others = [
        Key("d:alice:bob", "bob", "m1"),
        Key("d:alice:carol", "alice", "m1"),
        Key("d:alice:bob", "alice", "m2"),
    ]
    assert await state.seen(others) == frozenset()  # "maybe" allows a hit, but a rare one


async def test_marking_a_key_as_seen_again_changes_nothing(state: State) -> None:
    key = Key("d:alice:bob", "alice", "m1")
    await state.mark_seen([key, key])
    await state.mark_seen([key])
    await state.mark_seen([])
    assert await state.seen([key, key]) == frozenset([key])


async def test_few_new_keys_are_reported_as_seen(state: State) -> None:
    await state.mark_seen([Key("d:alice:bob", "alice", f"m{number}") for number in range(5_000)])
    new = [Key("d:alice:bob", "alice", f"n{number}") for number in range(5_000)]
    assert len(await state.seen(new)) < 5


# --- device lists


async def test_a_filled_list_is_returned(state: State) -> None:
    assert await state.devices(["alice", "bob"]) == {}
    lease = await state.lease_devices(["alice", "bob"])
    await state.fill_devices(lease, {"alice": ALICE, "bob": BOB})
    assert await state.devices(["alice", "bob", "carol"]) == {"alice": ALICE, "bob": BOB}


async def test_an_empty_list_is_cached_too(state: State) -> None:
    await state.fill_devices(await state.lease_devices(["carol"]), {"carol": ()})
    assert await state.devices(["carol"]) == {"carol": ()}


async def test_a_forgotten_list_is_read_again(state: State) -> None:
    await state.fill_devices(await state.lease_devices(["alice", "bob"]), {"alice": ALICE, "bob": BOB})
    await state.forget_devices(["alice", "nobody"])
    assert await state.devices(["alice", "bob"]) == {"bob": BOB}


async def test_a_list_read_before_a_registration_is_not_cached_after_it(state: State) -> None:
    """The race of reader and writer: read the old list, commit, forget, and only then fill."""
    lease = await state.lease_devices(["alice", "bob"])
    await state.forget_devices(["alice"])
    await state.fill_devices(lease, {"alice": ALICE, "bob": BOB})
    assert await state.devices(["alice", "bob"]) == {"bob": BOB}


async def test_a_list_read_after_a_registration_is_cached(state: State) -> None:
    early = await state.lease_devices(["alice"])
    await state.forget_devices(["alice"])
    late = await state.lease_devices(["alice"])
    await state.fill_devices(late, {"alice": ALICE})
    await state.fill_devices(early, {"alice": ()})
    assert await state.devices(["alice"]) == {"alice": ALICE}


async def test_all_lists_are_read_again_once_they_are_distrusted(state: State) -> None:
    early = await state.lease_devices(["alice", "bob"])
    await state.fill_devices(early, {"alice": ALICE})
    await state.distrust_devices()
    await state.fill_devices(early, {"bob": BOB})
    assert await state.devices(["alice", "bob"]) == {}
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})
    assert await state.devices(["alice", "bob"]) == {"alice": ALICE}


async def test_several_readers_of_one_user_may_all_fill(state: State) -> None:
    leases = [await state.lease_devices(["alice"]) for _ in range(3)]
    for lease in leases:
        await state.fill_devices(lease, {"alice": ALICE})
    assert await state.devices(["alice"]) == {"alice": ALICE}


async def test_all_fields_of_a_registration_are_kept(state: State) -> None:
    phone = Registration(
        Device("bob", "p" * 60), "protobuf", "h\N{LATIN SMALL LETTER E WITH ACUTE} \x7f", (1 << 32) - 1
    )
    await state.fill_devices(await state.lease_devices(["bob"]), {"bob": (phone, *BOB)})
    assert await state.devices(["bob"]) == {"bob": (phone, *BOB)}


async def test_calls_without_users_do_nothing(state: State) -> None:
    assert await state.devices([]) == {}
    await state.forget_devices([])
    await state.fill_devices(await state.lease_devices([]), {})


async def test_a_lease_that_was_never_issued_fills_nothing(state: State) -> None:
    await state.forget_devices(["alice"])
    await state.fill_devices(0, {"alice": ALICE})
    assert await state.devices(["alice"]) == {}
