"""The log: an append is a compare-and-set on the conversation's head, and what it stored can be read."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from imqtt.errors import Unavailable
from imqtt.model import Content, Id, JsonText, Key, Position, Stored
from imqtt.stores.base import AppendConflict, Record, RecordRefused, Store
from tests.contract.conftest import Place
from tests.contract.stores import PARTITIONS, log, record
from tests.verification.simulation.store import SimStore

D = "d:alice:bob"


async def seqs(store: Store, conversation: str) -> list[int]:
    return [event.seq for event in await store.events_after(conversation, 0, 10_000)]


async def stored_of(store: Store, records: Sequence[Record]) -> int:
    """Appends, and returns how many records the store says that it has committed."""
    try:
        await store.append(records)
    except AppendConflict as conflict:
        return conflict.stored
    return len(records)


async def test_an_event_of_a_newer_kind_is_read_without_a_content_of_unknown_shape(store: Store) -> None:
    known = record(D, 2)
    bodies = (b'{"text":["red","blue"]}', b"[1,2]", b'{"reply_to":{"id":"x"}}', b'{"poll":{}}')
    for number, body in enumerate(bodies):
        newer = msgspec.structs.replace(known.event, seq=number + 1, client_msg_id=f"n{number}", kind="poll")
        await store.append([Record(newer, body, known.digest)])
    events = await store.events_after(D, 0, 10)
    if isinstance(store, SimStore):  # which keeps values, and no rows
        return
    shown = [(event.seq, event.kind, event.content) for event in events]
    assert shown == [(seq, "poll", Content()) for seq in range(1, 5)]
    assert (await store.records_after(D, 0, 1))[0].body == b'{"text":["red","blue"]}'


async def test_events_are_read_as_they_were_appended(store: Store) -> None:
    contents = [
        Content(text="plain"),
        Content(text='quotes " and \\, ünïcode, 🙂, a line\nand a \x00 in it'),
        Content(data=bytes(range(256)), content_type="application/octet-stream"),
        Content(json=JsonText('{"a":[1,2.5,null,true],"big":9223372036854775807}')),
        Content(text="a reply", reply_to=Position(1, Id((1 << 63) - 1)), mentions=("bob", "carol")),
        Content(text=""),
        Content(text="x" * 65_536),
    ]
    records = [record(D, seq, content=content) for seq, content in enumerate(contents, 1)]
    await store.append(records)
    assert await store.events_after(D, 0, 100) == [record.event for record in records]


async def test_an_empty_store_returns_nothing(store: Store) -> None:
    assert store.identity.partitions == PARTITIONS
    assert await store.heads([D]) == {}
    assert await store.heads([]) == {}
    assert await store.find([Key(D, "alice", "m1")]) == {}
    assert await store.ids_at([(D, 1)]) == {}
    assert await store.events_after(D, 0, 10) == []
    assert await store.events_before(D, 0, 10) == []
    await store.append([])


async def test_a_head_is_the_newest_event_of_its_conversation(store: Store) -> None:
    await store.append([*log(D, 1, 3), *log("u:alice", 1, 1), *log(D, 4, 5)])
    last = record(D, 5).event
    assert await store.heads([D, "u:alice", "u:nobody"]) == {
        D: last.position,
        "u:alice": record("u:alice", 1).event.position,
    }


async def test_heads_of_thousands_of_conversations_are_read_in_one_call(store: Store) -> None:
    names = [f"d:alice:user{number}" for number in range(3_000)]
    await store.append([record(name, 1) for name in names])
    heads = await store.heads(names)
    assert len(heads) == 3_000
    assert set(heads) == set(names)


async def test_a_taken_seq_refuses_the_append(store: Store) -> None:
    await store.append(log(D, 1, 2))
    rival = record(D, 2, message="another", sender="bob", number=77)
    with pytest.raises(AppendConflict) as caught:
        await store.append([rival])
    assert caught.value.stored == 0
    assert await store.find([rival.key]) == {}
    assert (await store.heads([D]))[D] == record(D, 2).event.position


async def test_a_taken_client_msg_id_refuses_the_append(store: Store) -> None:
    await store.append(log(D, 1, 2))
    again = record(D, 3, message="m1")
    with pytest.raises(AppendConflict) as caught:
        await store.append([again])
    assert caught.value.stored == 0
    assert await seqs(store, D) == [1, 2]


async def test_the_same_client_msg_id_of_another_sender_or_conversation_is_another_message(
    store: Store,
) -> None:
    await store.append([record(D, 1, message="m", sender="alice")])
    await store.append([record(D, 2, message="m", sender="bob")])
    await store.append([record("u:alice", 1, message="m", sender="alice")])
    assert await seqs(store, D) == [1, 2]
    assert await seqs(store, "u:alice") == [1]


@pytest.mark.parametrize("place_of_duplicate", [0, 1, 4])
async def test_a_conflict_reports_how_many_records_are_stored(store: Store, place_of_duplicate: int) -> None:
    await store.append([record(D, 1, message="taken")])
    records = [record(D, seq) for seq in range(2, 7)]
    records[place_of_duplicate] = record(D, 2 + place_of_duplicate, message="taken")
    stored = await stored_of(store, records)
    assert stored <= place_of_duplicate
    assert await seqs(store, D) == list(range(1, 2 + stored))


async def test_records_sent_again_after_an_unknown_outcome_conflict_and_change_nothing(store: Store) -> None:
    records = log(D, 1, 5)
    await store.append(records)
    with pytest.raises(AppendConflict):
        await store.append(records)
    found = await store.find([record.key for record in records])
    assert found == {record.key: Stored(record.event.position, record.digest) for record in records}
    assert await seqs(store, D) == [1, 2, 3, 4, 5]


async def test_a_conflict_of_one_partition_does_not_affect_others(store: Store) -> None:
    await store.append(log("d:p0:q", 1, 3))

    async def append(number: int) -> int:
        first = 3 if number == 0 else 1
        return await stored_of(store, log(f"d:p{number}:q", first, first + 9))

    stored = await asyncio.gather(*(append(number) for number in range(16)))
    assert stored[0] == 0
    assert stored[1:] == [10] * 15
    assert await seqs(store, "d:p0:q") == [1, 2, 3]
    for number in range(1, 16):
        assert await seqs(store, f"d:p{number}:q") == list(range(1, 11))


async def test_exactly_one_of_two_concurrent_owners_wins_each_seq(store: Store) -> None:
    async def own(owner: str) -> int:
        won = 0
        while won < 30:
            head = (await store.heads([D])).get(D, Position(0, Id(0)))
            message = record(D, head.seq + 1, message=f"{owner}{won}", sender=owner, number=head.seq + 1)
            won += await stored_of(store, [message])
        return won

    await asyncio.gather(own("alice"), own("bob"))
    events = await store.events_after(D, 0, 1_000)
    assert [event.seq for event in events] == list(range(1, 61))
    for owner in ("alice", "bob"):
        mine = [event.client_msg_id for event in events if event.sender == owner]
        assert mine == [f"{owner}{number}" for number in range(30)]


async def test_many_partitions_append_at_once_and_each_log_is_whole(store: Store) -> None:
    async def append(number: int) -> None:
        for first in range(1, 100, 10):
            await store.append(log(f"d:p{number}:q", first, first + 9))

    await asyncio.gather(*(append(number) for number in range(16)))
    for number in range(16):
        assert await seqs(store, f"d:p{number}:q") == list(range(1, 101))


async def test_an_append_of_thousands_is_stored_whole(store: Store) -> None:
    records = log(D, 1, 2_345)
    await store.append(records)
    assert await store.events_after(D, 0, 10_000) == [record.event for record in records]


async def test_reads_see_what_was_committed_before_they_began(store: Store) -> None:
    for seq in range(1, 50):
        await store.append([record(D, seq)])
        heads, events = await asyncio.gather(store.heads([D]), store.events_after(D, seq - 1, 10))
        assert heads[D].seq == seq
        assert [event.seq for event in events] == [seq]


async def test_find_returns_only_what_is_stored(store: Store) -> None:
    first, second = log(D, 1, 2)
    await store.append([first, second])
    found = await store.find({first.key, Key(D, "bob", "m1"), Key("u:alice", "alice", "m1"), second.key})
    assert found == {
        first.key: Stored(first.event.position, first.digest),
        second.key: Stored(second.event.position, second.digest),
    }
    assert await store.find([]) == {}


async def test_ids_at_returns_the_ids_of_the_events_that_exist(store: Store) -> None:
    await store.append(log(D, 1, 3))
    assert await store.ids_at([(D, 1), (D, 3), (D, 4), ("u:alice", 1)]) == {
        (D, 1): record(D, 1).event.id,
        (D, 3): record(D, 3).event.id,
    }
    assert await store.ids_at([]) == {}


async def test_heads_and_ids_returns_the_head_of_each_conversation_and_the_id_at_each_seq(
    store: Store,
) -> None:
    await store.append([*log(D, 1, 3), *log("u:alice", 1, 1)])
    head, own = record(D, 3).event.position, record("u:alice", 1).event.position
    places = [(D, 0), (D, 1), (D, 3), (D, 4), ("u:alice", 1), ("u:nobody", 1)]
    assert await store.heads_and_ids(places) == {
        (D, 0): (head, 0),
        (D, 1): (head, record(D, 1).event.id),
        (D, 3): (head, head.id),
        (D, 4): (head, 0),
        ("u:alice", 1): (own, own.id),
    }
    assert await store.heads_and_ids([]) == {}


@pytest.mark.parametrize(
    ("seq", "limit", "expected"),
    [
        (0, 3, [1, 2, 3]),
        (3, 100, [4, 5, 6, 7, 8, 9, 10]),
        (9, 1, [10]),
        (10, 5, []),
        (99, 5, []),
        (0, 0, []),
    ],
)
async def test_events_after_a_seq_are_returned_in_order_up_to_the_limit(
    store: Store, seq: int, limit: int, expected: list[int]
) -> None:
    await store.append([*log(D, 1, 10), *log("u:alice", 1, 3)])
    assert [event.seq for event in await store.events_after(D, seq, limit)] == expected


@pytest.mark.parametrize(
    ("seq", "limit", "expected"),
    [
        (0, 3, [8, 9, 10]),
        (4, 100, [1, 2, 3]),
        (4, 2, [2, 3]),
        (1, 5, []),
        (99, 2, [9, 10]),
        (0, 0, []),
    ],
)
async def test_events_before_a_seq_are_returned_in_order_up_to_the_limit(
    store: Store, seq: int, limit: int, expected: list[int]
) -> None:
    await store.append([*log(D, 1, 10), *log("u:alice", 1, 3)])
    assert [event.seq for event in await store.events_before(D, seq, limit)] == expected


async def test_a_record_that_the_store_cannot_hold_is_refused_without_affecting_others(store: Store) -> None:
    possible = record(D, 1)
    event = msgspec.structs.replace(possible.event, client_time=1 << 64)
    refused = msgspec.structs.replace(possible, event=event)
    outcomes = await asyncio.gather(
        store.append([refused, record(D, 2)]), store.append(log("u:alice", 1, 2)), return_exceptions=True
    )
    assert isinstance(outcomes[0], RecordRefused)
    assert outcomes[1] is None
    assert await seqs(store, D) == []
    assert await seqs(store, "u:alice") == [1, 2]


async def test_a_cancelled_append_does_not_affect_others(store: Store) -> None:
    appends = [asyncio.create_task(store.append(log(f"d:p{number}:q", 1, 5))) for number in range(10)]
    await asyncio.sleep(0)
    for append in appends[::2]:
        append.cancel()
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert outcomes[1::2] == [None] * 5
    await store.append(log(D, 1, 1))
    for number in range(10):
        whole = await seqs(store, f"d:p{number}:q")
        assert whole in ([], [1, 2, 3, 4, 5]) if number % 2 == 0 else whole == [1, 2, 3, 4, 5]


async def test_stored_events_are_there_when_the_store_is_opened_again(place: Place) -> None:
    store = await place.open(7)
    await store.append(log(D, 1, 20))
    await store.close()
    store = await place.open(16)
    assert store.identity.partitions == 7
    assert await store.events_after(D, 0, 100) == [record.event for record in log(D, 1, 20)]
    with pytest.raises(AppendConflict):
        await store.append(log(D, 20, 21))
    await store.append(log(D, 21, 21))
    await store.close()


async def test_closing_completes_submitted_appends(place: Place) -> None:
    store = await place.open()
    appends = [asyncio.create_task(store.append(log(f"d:p{number}:q", 1, 50))) for number in range(8)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*appends)
    store = await place.open()
    for number in range(8):
        assert await seqs(store, f"d:p{number}:q") == list(range(1, 51))
    await store.close()


async def test_a_closed_store_raises_unavailable(place: Place) -> None:
    store = await place.open()
    await store.close()
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.append(log(D, 1, 1))
    with pytest.raises(Unavailable, match="closed"):
        await store.heads([D])


async def test_after_a_barrier_everything_that_was_acknowledged_can_be_read(store: Store) -> None:
    await store.barrier()
    await store.append(log(D, 1, 3))
    await store.barrier()
    assert await seqs(store, D) == [1, 2, 3]
