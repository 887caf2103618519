"""Large stores, written with bulk inserts, and the messages that are sent to their conversations."""

from pathlib import Path

from bench.growth_store import generate
from bench.traffic import AcrossConversations, numbered_conversation
from imqtt.bodies import Change
from imqtt.core.partitions import partition_of
from imqtt.core.snowflake import SEQUENCE_BITS
from imqtt.model import Content, Device, Event, Id, Key, Position
from imqtt.stores.base import Identity, Record
from imqtt.stores.sqlite.store import SqliteStore

PARTITIONS = 16
CONVERSATIONS, EVENTS = 60, 240


async def test_a_generated_store_is_like_one_that_a_server_wrote(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await generate(path, conversations=CONVERSATIONS, devices=5, events=EVENTS, partitions=PARTITIONS)
    store = await SqliteStore.open(path, Identity.draw(1))
    try:
        assert store.identity.partitions == PARTITIONS
        assert len(await store.registrations(Device("", ""), 100)) == 5
        assert len({head.conversation for head in await store.heads_of("user00", 0, 100)}) == 3
        ids = set()
        for number in range(CONVERSATIONS):
            name = numbered_conversation(number, CONVERSATIONS)
            events = await store.events_after(name, 0, 100)
            assert [event.seq for event in events] == [1, 2, 3, 4]
            assert [event.id for event in events] == sorted(event.id for event in events)
            assert {event.id >> SEQUENCE_BITS & 1023 for event in events} == {partition_of(name, PARTITIONS)}
            ids |= {event.id for event in events}
        assert len(ids) == EVENTS
        await _append(store, numbered_conversation(7, CONVERSATIONS))
    finally:
        await store.close()


async def test_a_generated_store_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await generate(path, conversations=1, devices=0, events=10, partitions=1)
    before = path.stat()
    await generate(path, conversations=1, devices=0, events=10, partitions=1)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert [file.name for file in tmp_path.iterdir()] == ["imqtt.db"]


async def _append(store: SqliteStore, conversation: str) -> None:
    """Finds the last generated message by its key, and stores the one after it."""
    *_, last = await store.records_after(conversation, 0, 100)
    change = Change("message", last.event.content)
    assert last.body == change.encode()
    assert last.digest == change.digest(last.body)
    stored = await store.find([last.key])
    assert stored[last.key].position == last.event.position
    event = Event(conversation, 5, Id(last.event.id + 1), 0, "user07", "phone", "new", Content("Hello"))
    await store.append([Record(event, last.body, last.digest)])
    assert await store.heads([conversation]) == {conversation: Position(5, event.id)}
    assert Key(conversation, "user07", "new") in await store.find([Key(conversation, "user07", "new")])


def test_messages_go_to_each_conversation_of_a_user_before_one_gets_another() -> None:
    traffic = AcrossConversations(PARTITIONS, 10, CONVERSATIONS, EVENTS)
    assert len(traffic.devices) == 40
    payloads = [traffic.message(number) for number in range(2 * CONVERSATIONS)]
    found = [
        next(number for number in range(CONVERSATIONS) if f"d:peer{number:07}:".encode() in payload)
        for payload in payloads
    ]
    assert {found.count(number) for number in range(CONVERSATIONS)} == {2}
    for number, conversation in enumerate(found):
        sender = traffic.devices[number % 40]
        assert numbered_conversation(conversation, CONVERSATIONS).endswith(f":{sender.user}")
        assert traffic.topic(number).startswith(f"imqtt/{sender}/up/")
