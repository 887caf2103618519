"""The reads of a copy of a store: everything, in order, in pages."""

import pytest

from imqtt.model import Content, Device, Id, Marks, Position, Registration, canonical_json
from imqtt.stores.base import Store
from tests.contract.stores import log, record

D = "d:alice:bob"


async def test_every_conversation_with_any_data_is_listed(store: Store) -> None:
    await store.put_members([("alice", "d:alice:carol")])
    await store.append(log(D, 1, 2))
    await store.raise_marks([Marks("u:bob", "bob", 1, 0)])
    assert await store.conversations("", 10) == [D, "d:alice:carol", "u:bob"]
    await store.put_members([("alice", D), ("bob", D)])
    await store.raise_marks([Marks(D, "bob", 2, 2)])
    assert await store.conversations("", 10) == [D, "d:alice:carol", "u:bob"]


async def test_an_empty_store_has_no_conversations(store: Store) -> None:
    assert await store.conversations("", 10) == []
    assert await store.registrations(Device("", ""), 10) == []
    assert await store.members([]) == {}


async def test_pages_of_conversations_are_in_order_of_code_points(store: Store) -> None:
    names = [f"u:{user}" for user in ("Z", "a", "a-b", "a.b", "a0", "a_b", "b", "B", "9", "aa")]
    names += [f"d:alice:user{number}" for number in range(25)] + ["d:alice:bob", "g:x"]
    for name in names:
        await store.append(log(name, 1, 1))
    pages: list[list[str]] = []
    after = ""
    while page := await store.conversations(after, 7):
        pages.append(page)
        after = page[-1]
    assert [name for page in pages for name in page] == sorted(names)
    assert all(len(page) == 7 for page in pages[:-1])


async def test_records_are_read_as_they_were_appended(store: Store) -> None:
    contents = [
        Content(text="grüße \U0001f600 \x00"),
        Content(data=bytes(range(256)), content_type="image/png"),
        Content(json=canonical_json({"b": 1, "a": [None, 1.5, -(1 << 63)], "c": "\u2028", "": {}})),
        Content(text="", reply_to=Position(1, Id(1 << 60)), mentions=("bob", "alice")),
    ]
    records = [record(D, seq, content=content) for seq, content in enumerate(contents, 1)]
    await store.append(records)
    found = await store.records_after(D, 0, 10)
    assert found == records
    assert [record.body for record in found] == [record.body for record in records]
    for event in (*(entry.event for entry in found), *await store.events_after(D, 0, 10)):
        # Exactly these types: the codecs do not accept a driver's own integers.
        assert (type(event.id), type(event.seq), type(event.client_time)) == (Id, int, int)


async def test_records_after_a_seq_are_read_in_pages(store: Store) -> None:
    await store.append(log(D, 1, 25))
    await store.append(log("u:alice", 1, 3))
    assert await store.records_after(D, 0, 10) == log(D, 1, 10)
    assert await store.records_after(D, 10, 10) == log(D, 11, 20)
    assert await store.records_after(D, 20, 10) == log(D, 21, 25)
    assert await store.records_after(D, 25, 10) == []
    assert await store.records_after("d:nobody:noone", 0, 10) == []


async def test_members_are_listed_by_conversation_in_order(store: Store) -> None:
    await store.put_members([("bob", D), ("alice", D), ("alice", "u:alice")])
    await store.append(log("d:alice:carol", 1, 1))
    assert await store.members([D, "u:alice", "d:alice:carol", "d:x:y"]) == {
        D: ["alice", "bob"],
        "u:alice": ["alice"],
    }


async def test_pages_of_devices_are_in_order_of_user_and_device(store: Store) -> None:
    names = [
        ("bob", "tv"),
        ("alice", "phone"),
        ("alice", "Laptop"),
        ("al", "z"),
        ("bob", "a"),
        ("alice", "p"),
    ]
    devices = [Registration(Device(*name), "json", "android", 4_096) for name in names]
    await store.put_devices(devices)
    first = await store.registrations(Device("", ""), 4)
    rest = await store.registrations(first[-1].device, 4)
    assert first + rest == sorted(devices, key=lambda registration: registration.device)
    assert len(first) == 4
    assert await store.registrations(rest[-1].device, 4) == []


@pytest.mark.parametrize("unfinished", [True, False])
async def test_the_mark_of_an_unfinished_copy_changes_nothing_else(store: Store, unfinished: bool) -> None:
    await store.append(log(D, 1, 2))
    await store.set_unfinished(True)
    await store.set_unfinished(unfinished)
    await store.append(log(D, 3, 3))
    assert await store.records_after(D, 0, 10) == log(D, 1, 3)
    assert await store.conversations("", 10) == [D]
