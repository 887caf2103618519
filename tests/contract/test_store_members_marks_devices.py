"""Members, marks and devices: the data outside of the log."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from imqtt.model import Device, DeviceFormat, Head, Marks, Registration
from imqtt.stores.base import Store
from tests.contract.conftest import Place
from tests.contract.stores import STORES, log, record

D = "d:alice:bob"
PHONE = Registration(Device("alice", "phone"), "json", "android", 65_536)
LAPTOP = Registration(Device("alice", "laptop"), "protobuf")
NOW = 1_790_000_000_000


# --- members


async def test_a_users_conversations_are_listed_newest_first(store: Store) -> None:
    names = [f"d:alice:user{number}" for number in range(6)]
    await store.put_members([("alice", name) for name in names])
    for number in (3, 0, 5, 1):
        await store.append([record(names[number], 1, number=100 + 10 * number)])
    await store.append([record(names[0], 2, number=200)])
    heads = await store.heads_of("alice", 0, 100)
    newest = [
        record(names[0], 2, number=200),
        *(record(names[number], 1, number=100 + 10 * number) for number in (5, 3, 1)),
    ]
    assert heads == [Head(record.event.conversation, record.event.seq, record.event.id) for record in newest]


async def test_pages_of_heads_meet_without_gap_or_overlap(store: Store) -> None:
    names = [f"d:alice:user{number:03}" for number in range(250)]
    await store.put_members([("alice", name) for name in names])
    await store.append([record(name, 1, number=number) for number, name in enumerate(names, 1)])
    pages: list[list[str]] = []
    before = 0
    while page := await store.heads_of("alice", before, 100):
        pages.append([head.conversation for head in page])
        before = page[-1].id
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [name for page in pages for name in page] == names[::-1]


async def test_a_conversation_without_events_has_no_head(store: Store) -> None:
    await store.put_members([("alice", D), ("bob", D), ("alice", "u:alice")])
    assert await store.heads_of("alice", 0, 10) == []
    await store.append(log(D, 1, 1))
    assert [head.conversation for head in await store.heads_of("alice", 0, 10)] == [D]
    assert [head.conversation for head in await store.heads_of("bob", 0, 10)] == [D]
    assert await store.heads_of("carol", 0, 10) == []


async def test_a_users_conversations_are_paged_in_a_stable_order(store: Store) -> None:
    names = {f"d:alice:user{number:03}" for number in range(25)}
    await store.put_members([("alice", name) for name in names] + [("bob", "d:bob:carol")])
    found: list[str] = []
    while page := (await store.conversations_of({"alice": found[-1] if found else ""}, 10))["alice"]:
        assert len(page) == min(10, 25 - len(found))
        found += page
    assert len(found) == 25
    assert set(found) == names
    last = {"alice": found[9], "bob": "", "carol": ""}
    assert await store.conversations_of(last, 10) == {
        "alice": found[10:20], "bob": ["d:bob:carol"], "carol": [],
    }  # fmt: skip


async def test_members_may_be_written_again(store: Store) -> None:
    await store.put_members([("alice", D), ("bob", D)])
    await store.put_members([("bob", D), ("carol", D), ("bob", D)])
    await store.put_members([])
    await store.append(log(D, 1, 1))
    for user in ("alice", "bob", "carol"):
        assert len(await store.heads_of(user, 0, 10)) == 1


# --- marks


async def test_marks_only_grow_and_only_those_that_grew_are_returned(store: Store) -> None:
    assert await store.raise_marks([Marks(D, "bob", 3, 1), Marks(D, "alice", 2, 2)]) == [
        Marks(D, "bob", 3, 1),
        Marks(D, "alice", 2, 2),
    ]
    assert await store.raise_marks([Marks(D, "alice", 1, 2), Marks(D, "bob", 2, 3)]) == [
        Marks(D, "bob", 3, 3)
    ]
    assert await store.raise_marks([Marks(D, "bob", 3, 3)]) == []
    assert await store.raise_marks([]) == []
    assert await store.marks([D]) == {D: [Marks(D, "alice", 2, 2), Marks(D, "bob", 3, 3)]}


async def test_marks_of_zero_are_not_stored(store: Store) -> None:
    assert await store.raise_marks([Marks(D, "alice", 0, 0)]) == []
    assert await store.marks([D, "u:alice"]) == {}
    assert await store.marks([]) == {}


async def test_thousands_of_marks_are_raised_in_one_call(store: Store) -> None:
    marks = [Marks(f"d:alice:user{number}", "alice", number, number) for number in range(1, 2_001)]
    assert await store.raise_marks(marks) == marks
    found = await store.marks([mark.conversation for mark in marks])
    assert found == {mark.conversation: [mark] for mark in marks}


some_marks = st.builds(
    Marks,
    st.sampled_from([D, "u:alice"]),
    st.sampled_from(["alice", "bob"]),
    st.integers(0, 9),
    st.integers(0, 9),
)


@pytest.mark.parametrize("kind", sorted(STORES))
@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.lists(some_marks, max_size=4, unique_by=lambda mark: (mark.conversation, mark.user)), max_size=12
    )
)
def test_any_sequence_of_raises_is_the_maximum(kind: str, calls: list[list[Marks]]) -> None:
    async def raise_all(directory: Path) -> None:
        store = await STORES[kind].open(STORES[kind].locate(directory), 1)
        fold: dict[tuple[str, str], tuple[int, int]] = {}
        for call in calls:
            grown: list[Marks] = []
            for mark in call:
                key = (mark.conversation, mark.user)
                before = fold.get(key, (0, 0))
                after = (max(before[0], mark.delivered), max(before[1], mark.read))
                if after != before:
                    fold[key] = after
                    grown.append(Marks(*key, *after))
            assert await store.raise_marks(call) == grown
        expected: dict[str, list[Marks]] = {}
        for key in sorted(fold):
            expected.setdefault(key[0], []).append(Marks(*key, *fold[key]))
        assert await store.marks([D, "u:alice"]) == expected
        await store.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(raise_all(Path(directory)))


# --- devices


async def test_every_requested_user_has_a_list(store: Store) -> None:
    await store.put_devices([PHONE, LAPTOP])
    assert await store.devices(["alice", "bob"]) == {"alice": (LAPTOP, PHONE), "bob": ()}
    assert await store.devices([]) == {}


async def test_a_device_that_registers_again_is_replaced(store: Store) -> None:
    await store.put_devices([PHONE, LAPTOP])
    now = Registration(PHONE.device, "protobuf", "android 16", 0)
    await store.put_devices([now])
    await store.put_devices([])
    assert await store.devices(["alice"]) == {"alice": (LAPTOP, now)}


async def test_a_format_alone_changes_nothing_else(store: Store) -> None:
    await store.put_devices([PHONE, LAPTOP])
    for format in ("protobuf", "protobuf", "json"):
        await store.put_devices([DeviceFormat(PHONE.device, format)])
        assert await store.devices(["alice"]) == {"alice": (LAPTOP, replace(PHONE, format=format))}


async def test_a_format_alone_registers_an_unknown_device(store: Store) -> None:
    await store.put_devices([DeviceFormat(LAPTOP.device, "protobuf")])
    assert await store.devices(["alice"]) == {"alice": (LAPTOP,)}
    await store.remove_device(LAPTOP.device)
    await store.put_devices([DeviceFormat(LAPTOP.device, "json")])
    assert await store.devices(["alice"]) == {"alice": (replace(LAPTOP, format="json"),)}


async def test_a_registration_replaces_one_made_from_a_format_alone(store: Store) -> None:
    await store.put_devices([DeviceFormat(PHONE.device, "protobuf")])
    await store.put_devices([PHONE])
    assert await store.devices(["alice"]) == {"alice": (PHONE,)}


async def test_registrations_and_formats_are_written_together(store: Store) -> None:
    tablet = Device("bob", "tablet")
    await store.put_devices([LAPTOP])
    await store.put_devices([DeviceFormat(tablet, "json"), PHONE, DeviceFormat(LAPTOP.device, "json")])
    assert await store.devices(["alice", "bob"]) == {
        "alice": (replace(LAPTOP, format="json"), PHONE),
        "bob": (Registration(tablet, "json"),),
    }


async def test_writes_take_effect_in_the_order_in_which_they_were_called(store: Store) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(store.put_devices([PHONE]))
            tasks.create_task(store.remove_device(PHONE.device))
        tasks.create_task(store.put_devices([LAPTOP]))
    assert await store.devices(["alice"]) == {"alice": (LAPTOP,)}


async def test_a_removed_device_is_forgotten_and_its_events_stay(store: Store) -> None:
    await store.put_devices([PHONE, LAPTOP])
    await store.append(log(D, 1, 2))
    await store.remove_device(PHONE.device)
    await store.remove_device(PHONE.device)
    assert await store.devices(["alice"]) == {"alice": (LAPTOP,)}
    assert len(await store.events_after(D, 0, 10)) == 2


async def test_last_seen_times_only_grow(store: Store) -> None:
    await store.put_devices([replace(PHONE, seen=NOW), LAPTOP])
    await store.put_devices([PHONE, DeviceFormat(LAPTOP.device, "protobuf", NOW - 1)])
    await store.see_devices({PHONE.device: NOW - 5, LAPTOP.device: NOW, Device("bob", "tv"): NOW})
    await store.see_devices({})
    assert await store.devices(["alice", "bob"]) == {
        "alice": (replace(LAPTOP, seen=NOW), replace(PHONE, seen=NOW)),
        "bob": (),
    }
    assert await store.registrations(Device("", ""), 1) == [replace(LAPTOP, seen=NOW)]


async def test_a_device_that_was_seen_meanwhile_is_not_removed(store: Store) -> None:
    await store.put_devices([replace(PHONE, seen=NOW), LAPTOP])
    await store.remove_device(PHONE.device, unseen_since=NOW - 1)
    await store.remove_device(LAPTOP.device, unseen_since=0)
    assert await store.devices(["alice"]) == {"alice": (replace(PHONE, seen=NOW),)}
    await store.remove_device(PHONE.device, unseen_since=NOW)
    assert await store.devices(["alice"]) == {"alice": ()}


async def test_members_marks_and_devices_are_there_when_the_store_is_opened_again(place: Place) -> None:
    store = await place.open()
    await store.put_members([("alice", D)])
    await store.append(log(D, 1, 3))
    await store.raise_marks([Marks(D, "alice", 3, 2)])
    await store.put_devices([PHONE])
    await store.close()
    store = await place.open()
    assert [head.seq for head in await store.heads_of("alice", 0, 10)] == [3]
    assert await store.marks([D]) == {D: [Marks(D, "alice", 3, 2)]}
    assert await store.devices(["alice"]) == {"alice": (PHONE,)}
    await store.close()
