"""Registers of a conversation: an event may set one, and the event with the highest seq is its value."""

import pytest

from imqtt.model import Event
from imqtt.stores.base import AppendConflict, Record, Store
from tests.contract.conftest import Place
from tests.contract.stores import log, record

D = "d:alice:bob"
GROUP = "g:7"


def setting(register: str, seq: int, conversation: str = D) -> Record:
    return record(conversation, seq, register=register)


def found(*records: Record) -> dict[tuple[str, str], Event]:
    return {(record.event.conversation, record.register): record.event for record in records}


async def test_the_event_with_the_highest_seq_sets_a_register(store: Store) -> None:
    records = [
        setting("title", 1),
        *log(D, 2, 3),
        setting("member:bob", 4),
        setting("title", 5),
        *log(D, 6, 7),
    ]
    await store.append(records)
    assert await store.registers([(D, "title"), (D, "member:bob")]) == found(records[3], records[4])
    await store.append([setting("title", 8)])
    assert await store.registers([(D, "title")]) == found(setting("title", 8))


async def test_an_event_of_a_register_is_read_like_any_other(store: Store) -> None:
    records = [*log(D, 1, 2), setting("title", 3)]
    await store.append(records)
    assert await store.events_after(D, 0, 10) == [record.event for record in records]
    assert await store.records_after(D, 0, 10) == records
    assert await store.find([records[2].key]) != {}


async def test_an_unset_register_has_no_entry(store: Store) -> None:
    await store.append([*log(D, 1, 2), setting("title", 3), setting("title", 1, GROUP)])
    unset = [(D, "titl"), (D, "title "), (D, "Title"), (D, "*"), (GROUP, "member:bob"), ("g:none", "title")]
    assert await store.registers(unset) == {}
    assert await store.registers([]) == {}


async def test_no_register_is_set_by_a_plain_message(store: Store) -> None:
    await store.append(log(D, 1, 3))
    assert await store.registers([(D, "")]) == {}


async def test_a_register_belongs_to_one_conversation(store: Store) -> None:
    mine, other = setting("title", 1), setting("title", 1, GROUP)
    await store.append([mine, other])
    assert await store.registers([(D, "title"), (GROUP, "title")]) == found(mine, other)


@pytest.mark.parametrize(
    "register",
    ["reaction:17:alice", "key:draft/d:alice:bob", 'a "quoted" \\ one', "größe", "$a.b", "x" * 300],
)
async def test_any_text_names_a_register(store: Store, register: str) -> None:
    await store.append([setting(register, 1)])
    assert await store.registers([(D, register)]) == found(setting(register, 1))


async def test_many_registers_of_a_page_are_read_in_one_call(store: Store) -> None:
    await store.append(log(D, 1, 200))
    wanted = [(D, f"edit:{seq}") for seq in range(1, 101)]
    assert await store.registers(wanted) == {}
    edits = [setting(f"edit:{seq}", 200 + seq) for seq in (3, 50, 100, 101)]
    await store.append(edits)
    assert await store.registers(wanted) == found(*edits[:3])


async def test_events_are_read_with_the_registers_that_change_them(store: Store) -> None:
    await store.append([*log(D, 1, 5), setting("title", 6)])
    events = [record(D, seq).event for seq in (2, 3, 4)]
    assert await store.events_with_registers(D, 1, 3) == (events, {})
    recalls = [setting(f"recall:{target}", 5 + target) for target in (2, 4, 5)]
    await store.append([setting("recall:2", 1, GROUP), *recalls])
    assert await store.events_with_registers(D, 1, 3) == (events, found(*recalls[:2]))
    assert await store.events_with_registers("g:none", 0, 3) == ([], {})


async def test_registers_of_many_conversations_are_read_in_one_call(store: Store) -> None:
    names = [f"g:{number}" for number in range(60)]
    records = [setting("title", seq, name) for name in names for seq in (1, 2)]
    await store.append([*records, *(setting("member:bob", 3, name) for name in names)])
    wanted = [(name, register) for name in names for register in ("title", "member:carol")]
    assert await store.registers(wanted) == found(*records)


async def test_a_register_that_was_set_often_has_its_last_value(store: Store) -> None:
    await store.append([setting("title", seq) for seq in range(1, 1_001)])
    assert await store.registers([(D, "title")]) == found(setting("title", 1_000))


async def test_an_append_that_conflicts_sets_no_register(store: Store) -> None:
    await store.append([*log(D, 1, 1), setting("title", 2)])
    rival = record(D, 2, message="rival", register="title")
    with pytest.raises(AppendConflict):
        await store.append([rival, record(D, 3, message="late", register="member:bob")])
    assert await store.registers([(D, "title"), (D, "member:bob")]) == found(setting("title", 2))


async def test_registers_are_there_when_the_store_is_opened_again(place: Place) -> None:
    store = await place.open()
    await store.append([setting("title", 1), *log(D, 2, 2)])
    await store.close()
    store = await place.open()
    assert await store.registers([(D, "title")]) == found(setting("title", 1))
    assert await store.records_after(D, 0, 10) == [setting("title", 1), *log(D, 2, 2)]
    await store.append([setting("title", 3)])
    assert await store.registers([(D, "title")]) == found(setting("title", 3))
    await store.close()


# --- events by their places


async def test_events_are_read_by_their_places(store: Store) -> None:
    records = [*log(D, 1, 5), *log(GROUP, 1, 2)]
    await store.append(records)
    places = [(D, 5), (D, 2), (GROUP, 1), (D, 2)]
    assert await store.events_at(places) == {
        (record.event.conversation, record.event.seq): record.event
        for record in (records[4], records[1], records[5])
    }


async def test_a_place_without_an_event_has_no_entry(store: Store) -> None:
    await store.append(log(D, 1, 2))
    nowhere = [(D, 0), (D, 3), (D, -1), (D, 1 << 62), (D, 1 << 70), ("g:none", 1)]
    assert await store.events_at(nowhere) == {}
    assert await store.events_at([]) == {}


async def test_events_of_many_conversations_are_read_in_one_call(store: Store) -> None:
    records = [record for number in range(60) for record in log(f"g:{number}", 1, 3)]
    await store.append(records)
    events = {(record.event.conversation, record.event.seq): record.event for record in records}
    assert await store.events_at(events.keys()) == events
