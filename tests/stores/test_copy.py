"""Copying a store: all of it, once, whatever happens meanwhile; no unfinished copy is ever served."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from imqtt.errors import SetupError, StoreInUse, StoreUnreachable
from imqtt.model import Content, Device, Marks, Position, Registration
from imqtt.stores import attach_store, open_store
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, RecordRefused, Store
from imqtt.stores.copy import source as copy_source
from imqtt.stores.copy.comparison import CopyDiffers
from imqtt.stores.copy.copier import copy, survey
from imqtt.stores.copy.source import Progress, Source
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import log, record
from tests.mongodb import MongoServer, database_url
from tests.services import eventually

D = "d:alice:bob"
IDENTITY = Identity(7, "0123456789abcdef")


async def fill(store: Store, conversations: int = 40, events: int = 5, longest: int = 2_300) -> None:
    """Conversations of one to `events` events, one of many, and everything else that a store keeps."""
    names = [f"d:alice:user{number}" for number in range(conversations)]
    for number, name in enumerate(names):
        await store.put_members([("alice", name), (f"user{number}", name)])
        await store.append(log(name, 1, 1 + number % events))
        await store.raise_marks([Marks(name, "alice", 1, number % 2)])
    await store.put_members([("alice", D), ("bob", D)])
    await store.append(log(D, 1, longest))
    await store.append([record(D, longest + 1, content=Content(data=b"x" * 60_000, content_type="a/b"))])
    await store.put_members([("alice", "g:7")])
    await store.append([record("g:7", seq, register="" if seq == 2 else "title") for seq in range(1, 4)])
    await store.put_members([("carol", "d:carol:dave")])  # its first event was never stored
    await store.put_devices(
        [Registration(Device("alice", f"d{number}"), "json", "x", number) for number in range(30)]
    )


async def everything(store: Source) -> object:
    names = await store.conversations("", 100_000)
    return (
        store.identity,
        {name: await store.records_after(name, 0, 100_000) for name in names},
        await store.members(names),
        await store.marks(names),
        await store.registrations(Device("", ""), 100_000),
    )


Open = Callable[..., Awaitable[Store]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def url(tmp_path: Path) -> Callable[[str], str]:
    """The address of a store of this name; the same each time."""
    addresses: dict[str, str] = {}

    def address(name: str) -> str:
        if name not in addresses:
            in_mongodb = name.startswith("mongodb")
            addresses[name] = database_url() if in_mongodb else f"sqlite:///{tmp_path / name}.db"
        return addresses[name]

    return address


@pytest.fixture
def opened(url: Callable[[str], str], stack: AsyncExitStack) -> Open:
    """`await opened("source")`: a store that is closed after the test; in MongoDB if its name begins so."""

    async def make(name: str, identity: Identity = IDENTITY, **options: bool) -> Store:
        store = await open_store(url(name), identity, **options)
        stack.push_async_callback(store.close)
        return store

    return make


async def test_a_copy_holds_everything(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)
    reports: list[Progress] = []
    copied = await copy(source, target, tell=reports.append)
    assert await everything(target) == await everything(source)
    assert (copied.conversations, copied.events, copied.added) == (43, 2_424, 2_424)
    assert (copied.members, copied.marks, copied.devices) == (84, 40, 30)
    assert {report.phase for report in reports} == {"comparing", "copying", "verifying"}
    last = [report for report in reports if report.phase == "copying"][-1]
    assert (last.events, last.conversations) == (last.all_events, last.all_conversations) == (2_424, 43)


@pytest.mark.parametrize(
    ("first", "second"),
    [("sqlite", "mongodb"), ("mongodb", "sqlite"), ("mongodb", "mongodb-2")],
)
async def test_a_copy_works_between_stores_of_each_kind(
    opened: Open, url: Callable[[str], str], first: str, second: str
) -> None:
    """The copy is interrupted, continued, brought up to date, and the source is read beside a server."""
    source, target = await opened(first), await opened(second, copying=True)
    await fill(source, 20, longest=300)
    reached = asyncio.Event()

    def tell(progress: Progress) -> None:
        if progress.phase == "copying" and progress.events:
            reached.set()

    running = asyncio.create_task(copy(source, target, tell=tell))
    await reached.wait()
    running.cancel()
    await asyncio.wait([running])
    await target.close()
    for refused in (open_store(url(second), IDENTITY), attach_store(url(second))):
        with pytest.raises(SetupError, match="unfinished copy; run the same `imqtt store copy` again"):
            await refused
    target = await opened(second, copying=True)
    copied = await copy(source, target)
    assert await everything(target) == await everything(source)
    assert copied.events == 364
    titles = await target.registers([("g:7", "title")])
    assert [event.seq for event in titles.values()] == [3]
    await source.append(log("d:new:one", 1, 2))
    beside = await attach_store(url(first))
    assert (await copy(beside, target, live=True)).added == 2
    await beside.close()
    assert await everything(target) == await everything(source)
    for again in (open_store(url(first), IDENTITY), open_store(url(second), IDENTITY, copying=True)):
        with pytest.raises(StoreInUse):
            await again
    await target.close()
    await opened(second)


async def test_an_empty_store_can_be_copied(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    assert (await copy(source, target)).events == 0
    assert await everything(target) == await everything(source)


async def test_a_second_copy_adds_what_is_new(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)
    first = await copy(source, target)
    assert (await copy(source, target))._replace(added=first.added) == first
    await source.append([record(D, 2_302), *log("d:new:one", 1, 2)])
    await source.raise_marks([Marks(D, "bob", 5, 5)])
    await source.put_devices([Registration(Device("alice", "d0"), "protobuf")])
    second = await copy(source, target)
    assert second.added == 3
    assert second.digest != first.digest
    assert await everything(target) == await everything(source)


async def test_the_digest_tells_whether_two_copies_hold_the_same(opened: Open) -> None:
    source = await opened("source")
    await fill(source)
    copies = [await copy(source, await opened(name, copying=True)) for name in "ab"]
    assert copies[0].digest == copies[1].digest


# --- invalid targets


async def test_a_target_of_another_store_is_refused_with_both_identities(opened: Open) -> None:
    source = await opened("source")
    await fill(source)
    other = await opened("other", Identity(3, "fedcba9876543210"))
    with pytest.raises(SetupError, match=r"fedcba9876543210 of 3 .*0123456789abcdef of 7 .*empty: remove it"):
        await copy(source, other)
    await other.append(log(D, 1, 1))
    with pytest.raises(SetupError, match="name another target"):
        await copy(source, other)
    assert await everything(other) != await everything(source)


async def test_a_target_with_newer_events_is_refused_and_left_unchanged(opened: Open, tmp_path: Path) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await source.append(log(D, 1, 3))
    await copy(source, target)
    await target.append(log(D, 4, 4))
    with pytest.raises(SetupError, match="event 4 of d:alice:bob"):
        await copy(source, target)
    await source.append([record(D, 4, number=99), record(D, 5)])
    with pytest.raises(SetupError, match="event 4 of d:alice:bob"):
        await copy(source, target)
    assert await target.records_after(D, 0, 10) == log(D, 1, 4)
    await target.close()
    await opened("target")  # it is not an unfinished copy


async def test_a_target_with_a_conversation_of_its_own_is_refused(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await copy(source, target)
    await target.append(log("u:zoe", 1, 1))
    with pytest.raises(SetupError, match="event 1 of u:zoe"):
        await survey(source, target)


# --- differences


async def difference_after(opened: Open, tmp_path: Path, statement: str) -> CopyDiffers:
    """The difference that a second run finds after the statement has changed the copy."""
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)
    await copy(source, target)
    await target.close()
    with closing(sqlite3.connect(tmp_path / "target.db")) as connection, connection:
        connection.execute(statement)
    target = await opened("target", copying=True)
    with pytest.raises(CopyDiffers) as caught:
        await copy(source, target)
    await target.close()
    with pytest.raises(SetupError, match="unfinished copy"):
        await opened("target")
    return caught.value


NUMBER = "(SELECT number FROM conversations WHERE name = 'd:alice:bob')"


@pytest.mark.parametrize(
    "change",
    ["content = '{}'", "digest = x'00'", "sender = 'x'", "device = 'x'", "client_msg_id = 'x'", "kind = 'x'",
     "client_time = 1", "id = id + 1", "register = 'title'"],
)  # fmt: skip
async def test_an_event_that_differs_is_named(opened: Open, tmp_path: Path, change: str) -> None:
    found = await difference_after(
        opened, tmp_path, f"UPDATE events SET {change} WHERE seq = 1234 AND conversation = {NUMBER}"
    )
    assert (found.conversation, found.seq) == (D, 1_234)
    assert "event 1234 of d:alice:bob" in found.reason


async def test_an_event_that_is_missing_is_named(opened: Open, tmp_path: Path) -> None:
    found = await difference_after(
        opened, tmp_path, f"DELETE FROM events WHERE seq = 7 AND conversation = {NUMBER}"
    )
    assert (found.conversation, found.seq) == (D, 7)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (f"INSERT INTO members VALUES ('mallory', {NUMBER})", "mallory is a member of d:alice:bob"),
        (f"INSERT INTO marks VALUES ({NUMBER}, 'bob', 2, 1)", "the marks of bob in d:alice:bob"),
        ("INSERT INTO conversations VALUES (999, 'u:zoe')", "the target has u:zoe"),
    ],
)
async def test_any_other_difference_is_named(
    opened: Open, tmp_path: Path, statement: str, named: str
) -> None:
    assert named in (await difference_after(opened, tmp_path, statement)).reason


async def test_devices_and_their_last_seen_times_are_updated(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    phone, tablet = (Registration(Device("alice", name), "json", seen=1_000) for name in ("phone", "tablet"))
    await source.put_devices([phone, tablet])
    await copy(source, target)
    assert await target.devices(["alice"]) == {"alice": (phone, tablet)}
    await source.remove_device(phone.device)
    await source.see_devices({tablet.device: 2_000})
    copied = await copy(source, target)
    assert copied.devices == 1
    assert await target.devices(["alice"]) == {"alice": (replace(tablet, seen=2_000),)}


async def test_a_gap_in_the_source_is_found(opened: Open, tmp_path: Path) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await source.append(log(D, 1, 10))
    with closing(sqlite3.connect(tmp_path / "source.db")) as connection, connection:
        connection.execute("DELETE FROM events WHERE seq = 5")
    with pytest.raises(CopyDiffers, match="gap"):
        await copy(source, target)


# --- faults during the copy


class FaultyTarget:
    """A store that fails at times, after it has done nothing, a part, or all of a request."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.appends = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def append(self, records: Sequence[Record]) -> None:
        self.appends += 1
        if self.appends % 4 == 1:
            raise OutcomeUnknown("nothing was stored")
        if self.appends % 4 == 2:
            await self._store.append(records[: len(records) // 2])
            raise OutcomeUnknown("a half was stored")
        await self._store.append(records)
        if self.appends % 4 == 3:
            raise OutcomeUnknown("all was stored")

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        if self.appends % 3 == 1:
            self.appends += 1
            raise StoreUnreachable("away for a moment")
        return await self._store.heads(conversations)


async def test_a_target_that_fails_at_times_only_delays_the_copy(opened: Open) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)
    copied = await copy(source, FaultyTarget(target))  # type: ignore[arg-type]  # delegates the rest
    assert copied.added == 2_424
    assert await everything(target) == await everything(source)


async def test_a_killed_and_restarted_mongodb_only_delays_the_copy(
    opened: Open, tmp_path: Path, stack: AsyncExitStack
) -> None:
    source = await opened("source")
    await fill(source, 10, longest=3_000)
    mongo = await stack.enter_async_context(MongoServer(tmp_path / "mongodb"))
    target = await open_store(mongo.url, IDENTITY, copying=True)
    stack.push_async_callback(target.close)
    reached = asyncio.Event()

    def tell(progress: Progress) -> None:
        if progress.phase == "copying" and progress.events:
            reached.set()

    running = asyncio.create_task(copy(source, target, tell=tell))
    await reached.wait()
    await mongo.kill()
    await mongo.start()
    assert (await running).added == 3_034
    assert await everything(target) == await everything(source)


async def test_a_target_that_stays_away_ends_the_copy(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_source, "RETRY_SECONDS", 0.05)
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)

    async def away(_: object) -> None:
        raise OutcomeUnknown("away")

    real = target.append
    monkeypatch.setattr(target, "append", away)
    with pytest.raises(OutcomeUnknown):
        await copy(source, target)
    monkeypatch.setattr(target, "append", real)
    await copy(source, target)
    assert await everything(target) == await everything(source)


async def test_an_event_that_the_target_cannot_hold_is_named(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await fill(source)
    real = target.append

    async def refusing(records: Sequence[Record]) -> None:
        if any(record.event.conversation == D and record.event.seq == 77 for record in records):
            raise RecordRefused("no")
        await real(records)

    monkeypatch.setattr(target, "append", refusing)
    with pytest.raises(SetupError, match="cannot store event 77 of d:alice:bob"):
        await copy(source, target)


async def test_another_writer_to_the_target_is_noticed(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = await opened("source"), await opened("target", copying=True)
    await source.append(log(D, 1, 3))

    async def taken(_: object) -> None:
        raise AppendConflict(0)

    monkeypatch.setattr(target, "append", taken)
    with pytest.raises(CopyDiffers, match="refuses the events of d:alice:bob after 0"):
        await copy(source, target)


# --- an unfinished copy


async def test_only_a_copy_may_open_an_unfinished_copy(opened: Open, tmp_path: Path) -> None:
    target = await opened("target", copying=True)
    await target.append(log(D, 1, 2))
    await target.close()
    url = f"sqlite:///{tmp_path / 'target.db'}"
    with pytest.raises(SetupError, match=r"unfinished copy; run the same `imqtt store copy` again"):
        await open_store(url, IDENTITY)
    with pytest.raises(SetupError, match="unfinished copy"):
        await attach_store(url)
    await (await open_store(url, IDENTITY, copying=True)).close()


async def test_an_interrupted_copy_stays_unfinished_and_can_be_continued(
    opened: Open, tmp_path: Path
) -> None:
    source = await opened("source")
    await fill(source, 300, 5)
    for events in (1, 500, 1_500, 2_500):
        target = await opened("target", copying=True)
        reached = asyncio.Event()

        def tell(progress: Progress, reached: asyncio.Event = reached, events: int = events) -> None:
            if progress.phase == "copying" and progress.events >= events:
                reached.set()

        running = asyncio.create_task(copy(source, target, tell=tell))
        await reached.wait()
        running.cancel()
        await asyncio.wait([running])
        await target.close()
        if running.cancelled():
            with pytest.raises(SetupError, match="unfinished copy"):
                await opened("target")
    target = await opened("target", copying=True)
    copied = await copy(source, target)
    assert copied.added < copied.events
    assert await everything(target) == await everything(source)
    await target.close()
    await opened("target")


async def test_a_copy_can_be_killed_at_any_moment_and_run_again(opened: Open, tmp_path: Path) -> None:
    source = await opened("source")
    await fill(source, 400, 20)
    await source.close()
    arguments = (
        sys.executable, "-m", "imqtt", "store", "copy", "--quiet",
        f"sqlite:///{tmp_path / 'source.db'}", f"sqlite:///{tmp_path / 'target.db'}",
    )  # fmt: skip
    copied = 0

    async def grown(least: int) -> bool:
        if not (tmp_path / "target.db").exists():
            return False
        with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
            try:
                return bool(connection.execute("SELECT count(*) >= ? FROM events", (least,)).fetchone()[0])
            except sqlite3.OperationalError:
                return False

    for _ in range(5):
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL)
        copied += 700
        await eventually(
            lambda copied=copied, process=process: process.returncode is not None or grown(copied)
        )
        if process.returncode is None:
            process.kill()
        await process.wait()
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    assert await everything(await opened("target")) == await everything(await opened("source"))


# --- beside a server


async def test_an_open_store_can_be_read_only_live(opened: Open, tmp_path: Path) -> None:
    served = await opened("source")
    await fill(served)
    url = f"sqlite:///{tmp_path / 'source.db'}"
    with pytest.raises(StoreInUse, match="in use"):
        await open_store(url, IDENTITY)
    source = await attach_store(url)
    target = await opened("target", copying=True)
    await copy(source, target, live=True)
    assert await everything(target) == await everything(served)
    await source.close()


async def test_a_copy_made_while_others_write_has_a_prefix_of_each_log(opened: Open, tmp_path: Path) -> None:
    served = await opened("source")
    await fill(served, 200)
    source = await attach_store(f"sqlite:///{tmp_path / 'source.db'}")
    target = await opened("target", copying=True)
    before = dict(await served.heads(await served.conversations("", 10_000)))
    ending = asyncio.Event()

    async def write() -> None:
        """Writes as a server does: members before the event, marks up to the head."""
        number = 0
        while not ending.is_set():
            number += 1
            name, new = f"d:alice:user{number % 200}", f"d:alice:user{number % 200}x{number}"
            head = (await served.heads([name]))[name].seq
            await served.put_members([("alice", new)])
            await served.append([record(name, head + 1), record(new, 1)])
            await served.raise_marks([Marks(name, "alice", head + 1, head + 1), Marks(new, "alice", 1, 1)])
            await served.put_devices([Registration(Device("alice", f"e{number % 50}"), "json", str(number))])
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    copied = await copy(source, target, live=True)
    ending.set()
    await writing
    names = await target.conversations("", 100_000)
    heads, members = await target.heads(names), await target.members(names)
    assert copied.events == sum(head.seq for head in heads.values())
    for name, head in before.items():
        assert heads[name].seq >= head.seq
    for name, head in heads.items():
        assert await target.records_after(name, 0, 10_000) == (await served.records_after(name, 0, head.seq))
        assert "alice" in members[name]
    for name, marks in (await target.marks(names)).items():
        assert all(mark.delivered <= heads[name].seq and mark.read <= heads[name].seq for mark in marks)
    await source.close()


async def test_memory_does_not_grow_with_the_store(opened: Open) -> None:
    """Many large events in one log: the copy holds a bounded number of bytes at once."""
    source, target = await opened("source"), await opened("target", copying=True)
    for first in range(1, 1_001, 50):
        content = Content(data=b"x" * 60_000, content_type="a/b")
        await source.append([record(D, seq, content=content) for seq in range(first, first + 50)])
    largest = 0
    real = SqliteStore.append

    async def measured(store: SqliteStore, records: Sequence[Record]) -> None:
        nonlocal largest
        largest = max(largest, sum(len(record.body) for record in records))
        await real(store, records)

    SqliteStore.append = measured  # type: ignore[method-assign]
    try:
        await copy(source, target)
    finally:
        SqliteStore.append = real  # type: ignore[method-assign]
    assert 1 << 20 <= largest <= (1 << 20) + copy_source.FIRST_EVENTS * 80_200
