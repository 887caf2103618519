"""A device's store: related changes are written together, in order, and outlive the process."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from imqtt.client import database
from imqtt.client.history import Reader
from imqtt.client.requests import Requests
from imqtt.client.store import SCHEMA, LocalStore, _apply, _summaries
from imqtt.core.changes import Changes, LogState, Memory
from imqtt.core.outbox import Entry, OutboxKey
from imqtt.core.replica import Replica
from imqtt.errors import Conflict, DeviceStoreError
from imqtt.model import (
    Content,
    Device,
    Event,
    Id,
    JsonText,
    Marks,
    Page,
    Position,
    RecallBody,
    Send,
    Slice,
)

ALICE = Device("alice", "phone")
TALK = "d:alice:bob"


def event(seq: int, sender: str = "bob", conversation: str = TALK) -> Event:
    return Event(conversation, seq, Id(seq * 10), 0, sender, "phone", f"m{seq}", Content(text=str(seq)))


def changes(*seqs: int, start: int = 0) -> Changes:
    last = seqs[-1]
    position = Position(last, Id(last * 10))
    return Changes(
        events={(TALK, seq): (start + number, event(seq)) for number, seq in enumerate(seqs, 1)},
        logs={TALK: LogState(TALK, position, 0, position)},
        meta={"ordinal": str(start + len(seqs))},
    )


@pytest.fixture(params=["file", "temporary"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "alice.db" if request.param == "file" else None


async def test_events_come_out_by_seq_and_by_ordinal(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    await store.apply(changes(1, 2, 3))
    assert await store.events(TALK, 2, 9) == [event(2), event(3)]
    assert await store.ids([(TALK, 3), (TALK, 4), ("d:alice:carol", 1)]) == {(TALK, 3): event(3).id}
    assert await store.new_events(1, 1, None) == [(2, event(2))]
    assert await store.new_events(0, 10, "d:alice:carol") == []
    await store.close()


CONTENTS = """
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT, conversation TEXT NOT NULL, client_msg_id TEXT NOT NULL,
    client_time INTEGER NOT NULL, content BLOB NOT NULL, refused TEXT NOT NULL, reason TEXT NOT NULL,
    UNIQUE (conversation, client_msg_id)
);
INSERT INTO outbox VALUES
    (3, 'd:alice:bob', 'm1', 100, '{"text":"hi","mentions":["bob"]}', '', ''),
    (5, 'd:alice:carol', 'm2', 200, '{"data":"AAE=","content_type":"image/png"}', 'too_large', 'too large'),
    (8, 'd:alice:bob', 'm3', 300, '{"json":{"a":[1,2.5,null]},"reply_to":{"seq":1,"id":"10"}}', '', '');
UPDATE meta SET value = 'alice/phone' WHERE name = 'device';
PRAGMA user_version = 1
"""
KEPT = [
    Entry(Send(TALK, "m1", Content(text="hi", mentions=("bob",)), 100)),
    Entry(
        Send("d:alice:carol", "m2", Content(data=b"\0\1", content_type="image/png"), 200),
        "too_large",
        "too large",
    ),
    Entry(Send(TALK, "m3", Content(json=JsonText('{"a":[1,2.5,null]}'), reply_to=Position(1, Id(10))), 300)),
]


async def make_version_1(path: Path) -> None:
    """Writes a store as version 0.1 of imqtt left it."""
    store = await LocalStore.open(path, ALICE)
    await store.apply(changes(1, 2))
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as before:
        before.executescript(f"DROP TABLE outbox; DROP TABLE registers; {CONTENTS}")


async def test_a_store_of_version_1_is_upgraded_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await make_version_1(path)
    for _ in range(2):
        store = await LocalStore.open(path, ALICE)
        assert list((await store.entries()).values()) == KEPT
        assert (await store.load()).unsent == (KEPT[0].key, KEPT[2].key)
        assert await store.events(TALK, 0, 9) == [event(1), event(2)]
        await store.close()
    store = await LocalStore.open(path, ALICE)
    assert not await store.put(KEPT[0])
    with pytest.raises(Conflict):
        await store.put(Entry(Send(TALK, "m1", Content(text="other"))))
    assert await store.put(Entry(Send(TALK, "m4", Content(text="new"))))
    assert [key.client_msg_id for key in await store.entries()] == ["m1", "m2", "m3", "m4"]
    await store.close()
    with (
        contextlib.closing(sqlite3.connect(path)) as upgraded,
        contextlib.closing(sqlite3.connect(":memory:")) as new,
    ):
        new.executescript(SCHEMA)
        tables = "SELECT name FROM sqlite_master ORDER BY name"
        assert upgraded.execute(tables).fetchall() == new.execute(tables).fetchall()
    with pytest.raises(DeviceStoreError, match="belongs to alice@phone"):
        await LocalStore.open(path, Device("alice", "tablet"))


async def test_a_failed_upgrade_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await make_version_1(path)
    with contextlib.closing(sqlite3.connect(path)) as before, before:
        before.execute("UPDATE outbox SET content = 'no JSON' WHERE client_msg_id = 'm3'")
    for _ in range(2):
        with pytest.raises(msgspec.DecodeError):
            await LocalStore.open(path, ALICE)
    with contextlib.closing(sqlite3.connect(path)) as before, before:
        before.execute("DELETE FROM outbox WHERE client_msg_id = 'm3'")
    store = await LocalStore.open(path, ALICE)
    assert list((await store.entries()).values()) == KEPT[:2]
    await store.close()


@pytest.mark.parametrize("existed", [False, True])
async def test_only_the_owner_of_a_store_can_read_it(tmp_path: Path, existed: bool) -> None:
    umask = os.umask(0o022)
    try:
        if existed:
            await (await LocalStore.open(tmp_path / "a.db", ALICE)).close()
            (tmp_path / "a.db").chmod(0o644)
        store = await LocalStore.open(tmp_path / "a.db", ALICE)
        await store.apply(changes(1, 2))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == {"a.db": 0o600, "a.db-wal": 0o600}
        await store.close()
    finally:
        os.umask(umask)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    await store.apply(changes(1, 2))
    await store.apply(Changes(marks=[Marks(TALK, "alice", 2, 1), Marks(TALK, "bob", 1, 1)]))
    await store.put(Entry(Send(TALK, "m1", Content(text="x"))))
    await store.put(Entry(Send(TALK, "m2", Content(text="y"))))
    await store.close()
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    memory = await store.load()
    assert [log.cursor for log in memory.logs] == [Position(2, Id(20))]
    assert memory.own_marks == (Marks(TALK, "alice", 2, 1),)
    assert memory.unsent == (OutboxKey(TALK, "m1"), OutboxKey(TALK, "m2"))
    assert memory.meta["ordinal"] == "2"
    await store.close()


async def test_concurrent_operations_are_done_in_order(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    done: list[int] = []
    futures = [store.apply(changes(seq, start=seq - 1)) for seq in range(1, 200)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: done.append(number))
    assert len(await store.events(TALK, 1, 1_000)) == 199
    await asyncio.gather(*futures)
    assert done == list(range(199))
    await store.close()


async def test_an_operation_that_fails_does_not_affect_others(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    await store.put(Entry(Send(TALK, "m1", Content(text="x"))))
    outcomes = await asyncio.gather(
        store.put(Entry(Send(TALK, "m2", Content(text="y")))),
        store.put(Entry(Send(TALK, "m1", Content(text="other")))),
        store.put(Entry(Send(TALK, "m3", Content(text="z")))),
        store.put(Entry(Send(TALK, "m1", Content(text="x")))),
        return_exceptions=True,
    )
    assert outcomes[0] is True
    assert isinstance(outcomes[1], Conflict)
    assert outcomes[2:] == [True, False]
    assert [key.client_msg_id for key in await store.entries()] == ["m1", "m2", "m3"]
    await store.close()


async def test_after_a_change_that_is_not_stored_no_later_change_is_stored(path: Path | None) -> None:
    """Otherwise the log would have a hole before its cursor."""
    store = await LocalStore.open(path, ALICE)
    await store.apply(changes(1))
    trigger = "BEGIN SELECT raise(ABORT, 'no room'); END"
    await store._database.submit(
        lambda connection: connection.execute(
            f"CREATE TEMP TRIGGER full BEFORE INSERT ON events WHEN new.seq = 2 {trigger}"
        )
    )
    outcomes = await asyncio.gather(
        store.apply(changes(2, start=1)),
        store.apply(changes(3, start=2)),
        store.put(Entry(Send(TALK, "m1", Content(text="x")))),
        return_exceptions=True,
    )
    assert [str(outcome) for outcome in outcomes] == [f"{store._database}: no room"] * 2 + ["True"]
    with pytest.raises(DeviceStoreError, match="no room"):
        await store.apply(changes(3, start=2))
    assert await store.events(TALK, 1, 9) == [event(1)]
    await store.close()


async def test_a_cancelled_write_happens_nevertheless(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    store.apply(changes(1)).cancel()
    assert await store.events(TALK, 1, 1) == [event(1)]
    await store.close()


async def test_unread_counts_the_messages_of_others_after_the_read_mark(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    made = changes(*range(1, 11))
    made.events[TALK, 10] = (10, event(10, "alice"))
    made.logs[TALK] = LogState(TALK, Position(10, Id(100)), 0, Position(13, Id(130)))
    made.marks.append(Marks(TALK, "alice", 10, 4))
    await store.apply(made)
    (summary,) = await store.summaries(10)
    assert (summary.unread, summary.unread_at_most, summary.head.seq, summary.read) == (5, 5 + 3, 13, 4)
    assert summary.last == event(10, "alice")
    await store.close()


SENDERS = st.lists(st.sampled_from(["alice", "bob"]), max_size=30)


@given(SENDERS, st.sets(st.integers(1, 30)), st.integers(0, 30), st.sampled_from([TALK, "u:alice"]))
def test_unread_is_between_its_bounds_whatever_part_of_the_log_is_held(
    senders: list[str], held: set[int], read: int, conversation: str
) -> None:
    if conversation == "u:alice":
        senders = ["alice"] * len(senders)
    log = [event(seq, sender, conversation) for seq, sender in enumerate(senders, 1)]
    here = [event for event in log if event.seq in held]
    read = min(read, len(log))
    cursor, head = (here or [event(0)])[-1].position, (log or [event(0)])[-1].position
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        made = Changes(marks=[Marks(conversation, "alice", read, read), Marks(conversation, "bob", 9, 9)])
        made.events = {(conversation, event.seq): (None, event) for event in here}
        made.logs[conversation] = LogState(conversation, cursor, 0, head)
        _apply(connection, made)
        (summary,) = _summaries(connection, "alice", 10, conversation)
    unread = [event for event in log if event.seq > read and event.sender != "alice"]
    assert summary.unread == sum(event in unread for event in here)
    assert summary.unread <= len(unread) <= summary.unread_at_most
    if all(event in here for event in log[read:]) or conversation == "u:alice":
        assert summary.unread == summary.unread_at_most
    assert summary.unread_at_most - summary.unread <= len(
        [event for event in log[read:] if event not in here]
    )


async def test_trimming_keeps_events_that_a_consumer_or_an_iterator_has_not_read(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    await store.apply(changes(*range(1, 101)))
    assert await store.consumer("bot") == 0
    await store.finish("bot", 30)
    assert await store.apply(Changes(trim=[(TALK, 80)])) == {TALK: 30}
    await store.finish("bot", 100)
    assert await store.apply(Changes(trim=[(TALK, 80)], wanted_after=50)) == {TALK: 50}
    assert await store.apply(Changes(trim=[(TALK, 80)])) == {TALK: 80}
    assert [event.seq for event in await store.events(TALK, 1, 100)] == list(range(81, 101))
    await store.close()


async def test_a_store_of_another_device_version_or_format_is_not_opened(tmp_path: Path) -> None:
    await (await LocalStore.open(tmp_path / "a.db", ALICE)).close()
    with pytest.raises(DeviceStoreError, match="belongs to alice@phone"):
        await LocalStore.open(tmp_path / "a.db", Device("bob", "phone"))
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DeviceStoreError, match="another version"):
        await LocalStore.open(tmp_path / "a.db", ALICE)
    (tmp_path / "b.db").write_text("not a database, but some text that is long enough" * 100)
    with pytest.raises(DeviceStoreError):
        await LocalStore.open(tmp_path / "b.db", ALICE)
    with pytest.raises(DeviceStoreError):
        await LocalStore.open(tmp_path / "nowhere" / "c.db", ALICE)


def recall_of(event: Event, seq: int) -> Event:
    body = RecallBody(event.position)
    return replace(
        event, seq=seq, id=Id(seq * 10), client_msg_id="r", content=Content(), kind="recall", recall=body
    )


SMALL = replace(event(1), content=Content(text="secret"))
LARGE = replace(event(2), content=Content(text="secret" * 5_000))
HELD = Changes(events={(TALK, event.seq): (event.seq, event) for event in (SMALL, LARGE)})
RECALLS = {(TALK, seq): (seq, recall_of(event, seq)) for seq, event in ((3, SMALL), (4, LARGE))}


def holds_the_secret(directory: Path) -> bool:
    return any(b"secret" in path.read_bytes() for path in directory.iterdir())


async def test_the_files_of_an_open_store_keep_nothing_of_a_recalled_message(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    await store.apply(HELD)
    assert holds_the_secret(tmp_path)
    await store.apply(Changes(events=RECALLS))
    assert not holds_the_secret(tmp_path)
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


async def test_the_files_of_an_open_store_keep_nothing_of_a_restarted_log(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    await store.apply(HELD)
    await store.apply(Changes(restarted={TALK}))
    assert not holds_the_secret(tmp_path)
    await store.close()


async def test_the_files_of_an_open_store_keep_nothing_of_a_discarded_message(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    entry = Entry(Send(TALK, "m1", LARGE.content))
    await store.put(entry)
    assert holds_the_secret(tmp_path)
    await store.discard(entry.key)
    assert not holds_the_secret(tmp_path)
    await store.close()


async def test_a_store_that_was_killed_before_it_erased_content_does_so_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await LocalStore.open(tmp_path / "a.db", ALICE)
    await store.apply(HELD)
    monkeypatch.setattr(database, "_truncate_log", lambda _: None)
    await store.apply(Changes(events=RECALLS))
    monkeypatch.undo()
    copies = tmp_path / "killed"
    copies.mkdir()
    for path in tmp_path.glob("a.db*"):
        shutil.copy(path, copies)
    await store.close()
    assert holds_the_secret(copies)
    store = await LocalStore.open(copies / "a.db", ALICE)
    assert not holds_the_secret(copies)
    await store.close()


class Answering(Requests):
    """Answers every question with one page."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def ask(self, *_: object) -> Page:
        return self._page


async def test_a_page_that_a_recall_has_overtaken_is_returned_without_the_content(path: Path | None) -> None:
    store = await LocalStore.open(path, ALICE)
    await store.apply(Changes(events={(TALK, 3): (1, recall_of(event(1), 3))}))
    page = Page(slices=(Slice(TALK, (event(1), event(2)), history=True),))
    replica = Replica(ALICE, Memory((), (), (), {}), adopting=True)

    async def commit() -> None:
        pass

    events = await Reader(replica, store, Answering(page), commit).history(TALK, None, 2)
    assert [event.content for event in events] == [Content(), event(2).content]
    await store.close()
