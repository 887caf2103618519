"""If its disk is full, failing, read-only or locked, a SQLite store stores nothing in part, and continues."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from imqtt.errors import SetupError, StoreFull, StoreReadOnly, StoreUnreachable
from imqtt.model import Content, Device, Marks, Registration
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown
from imqtt.stores.sqlite import checkpoint as sqlite_checkpoint
from imqtt.stores.sqlite import file as sqlite_file
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import log, record

D = "d:alice:bob"
LARGE = Content(text="x" * 20_000)


async def fill_disk(store: SqliteStore) -> int:
    """Appends until the disk is full; returns the last seq that was stored."""
    last = 0
    with contextlib.suppress(StoreFull):
        while True:
            await store.append([record(D, last + 1, content=LARGE)])
            last += 1
    return last


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteStore]:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.append(log(D, 1, 3))
    yield store
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def pragma(store: SqliteStore, text: str) -> None:
    await store._writer.submit(lambda tables: tables.connection.execute(f"PRAGMA {text}").fetchall())


@contextlib.contextmanager
def no_files_left() -> Iterator[None]:
    """This process can open no more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
async def test_a_reader_without_a_file_descriptor_names_the_limit(store: SqliteStore) -> None:
    with no_files_left(), pytest.raises(StoreUnreachable, match=r"Too many open files.*LimitNOFILE"):
        await store.heads([D])
    assert await store.heads([D])


async def seqs(store: SqliteStore, conversation: str) -> list[int]:
    return [event.seq for event in await store.events_after(conversation, 0, 10_000)]


async def test_when_the_database_may_not_grow_every_request_of_the_transaction_fails(
    store: SqliteStore,
) -> None:
    await pragma(store, "max_page_count = 1")  # SQLite raises this to the current size
    outcomes = await asyncio.gather(
        store.append([record("u:alice", seq, content=LARGE) for seq in range(1, 20)]),
        store.append([record("u:bob", 1, content=LARGE)]),
        store.raise_marks([Marks(D, "bob", 3, 3)]),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, StoreFull) for outcome in outcomes)
    assert await store.heads([D, "u:alice", "u:bob"]) == {D: record(D, 3).event.position}
    assert await store.marks([D]) == {}

    await pragma(store, "max_page_count = 1000000")
    await store.append([record("u:alice", seq, content=LARGE) for seq in range(1, 20)])
    assert await seqs(store, "u:alice") == list(range(1, 20))


async def test_a_full_disk_loses_nothing_and_accepts_writes_again_when_there_is_room(
    small_disk: Path,
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(300_000))
    path = small_disk / "imqtt.db"
    store = await SqliteStore.open(path, Identity.draw(16))
    last = await fill_disk(store)
    assert last > 0
    assert await seqs(store, D) == list(range(1, last + 1))
    with pytest.raises(StoreFull):
        await store.append([record(D, last + 1, content=LARGE)])

    ballast.unlink()
    await store.append([record(D, last + 1, content=LARGE)])
    await store.close()
    store = await SqliteStore.open(path, Identity.draw(16))
    assert await seqs(store, D) == list(range(1, last + 2))
    await store.close()


async def test_creating_a_store_on_a_full_disk_is_refused(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1_048_576))
    with pytest.raises(SetupError, match=r"disk of .* is full|cannot be"):
        await SqliteStore.open(small_disk / "imqtt.db", Identity.draw(16))


async def test_a_disk_that_fails_leaves_the_outcome_unknown_and_a_retry_settles_it(
    store: SqliteStore,
) -> None:
    records = [record("u:alice", seq, content=LARGE) for seq in range(1, 10)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))  # writes beyond it fail, as on a bad disk
    try:
        with pytest.raises(OutcomeUnknown):
            await store.append(records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with contextlib.suppress(AppendConflict):
        await store.append(records)
    assert await seqs(store, "u:alice") == list(range(1, 10))
    assert await seqs(store, D) == [1, 2, 3]


async def test_a_store_that_turns_read_only_raises_store_read_only(store: SqliteStore) -> None:
    await pragma(store, "query_only = 1")
    with pytest.raises(StoreReadOnly):
        await store.append(log(D, 4, 4))
    with pytest.raises(StoreReadOnly):
        await store.put_devices([Registration(Device("alice", "phone"), "json")])
    assert await seqs(store, D) == [1, 2, 3]


async def test_an_append_has_an_unknown_outcome_while_another_program_writes(
    store: SqliteStore, tmp_path: Path
) -> None:
    shell = sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutcomeUnknown, match="another program"):
        await store.append(log(D, 4, 4))
    assert await seqs(store, D) == [1, 2, 3]
    shell.execute("ROLLBACK")
    shell.close()
    await store.append(log(D, 4, 4))
    assert await seqs(store, D) == [1, 2, 3, 4]


class CannotRollBack:
    """A connection whose disk fails on a rollback."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        if statement == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *parameters)


async def test_a_conflict_that_cannot_be_rolled_back_is_no_refusal(store: SqliteStore) -> None:
    tables = store._writer._tables
    assert tables is not None
    tables.connection = CannotRollBack(tables.connection)  # type: ignore[assignment]  # as far as it is used
    with pytest.raises(AppendConflict):
        await store.append(log(D, 3, 4))
    await store.append(log(D, 4, 5))
    assert await seqs(store, D) == [1, 2, 3, 4, 5]


async def test_a_gap_is_never_stored_for_a_conversation_that_does_not_exist(store: SqliteStore) -> None:
    with pytest.raises(AppendConflict):
        await store.append(log("u:alice", 5, 6))
    assert await store.heads(["u:alice"]) == {}


async def test_waiting_requests_share_a_transaction(store: SqliteStore) -> None:
    groups: list[int] = []
    commit = store._writer._commit

    def counting(requests: list[object]) -> object:
        groups.append(len(requests))
        return commit(requests)  # type: ignore[arg-type]  # passed on unchanged

    store._writer._commit = counting  # type: ignore[assignment,method-assign]  # counts each group
    await asyncio.gather(*(store.append(log(f"d:p{number}:q", 1, 2)) for number in range(100)))
    assert sum(groups) == 100
    assert len(groups) < 20


async def test_the_write_ahead_log_does_not_grow_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_checkpoint, "INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(sqlite_checkpoint, "LOG_PAGES", 50)
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    sizes: list[int] = []
    for seq in range(1, 801):
        await store.append([record("u:alice", seq, content=LARGE)])
        sizes.append((tmp_path / "imqtt.db-wal").stat().st_size)
    assert max(sizes) < 800 * 20_000 / 2
    assert len(await seqs(store, "u:alice")) == 800
    await store.close()
