"""Opening a SQLite store: each refusal states what the operator has to do."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from imqtt.errors import SetupError
from imqtt.model import Device, Registration
from imqtt.stores.base import Identity
from imqtt.stores.sqlite import file as sqlite_file
from imqtt.stores.sqlite.reader import SqliteReader
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import log, record
from tests.services import WITHIN

D = "d:alice:bob"


async def make_store(path: Path) -> None:
    store = await SqliteStore.open(path, Identity.draw(16))
    await store.append(log(D, 1, 3))
    await store.close()


async def check_events(path: Path, events: int) -> None:
    store = await SqliteStore.open(path, Identity.draw(16))
    assert len(await store.events_after(D, 0, 10)) == events
    await store.close()


async def refused(path: Path) -> str:
    with pytest.raises(SetupError) as caught:
        await SqliteStore.open(path, Identity.draw(16))
    return caught.value.reason


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert "is not a directory" in await refused(tmp_path / "nowhere" / "imqtt.db")
    assert not (tmp_path / "nowhere").exists()


async def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in await refused(tmp_path)


async def test_a_file_that_is_not_a_database_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    path.write_text("a shopping list that is long enough to be read as a header\n" * 100)
    before = path.read_bytes()
    assert "not an SQLite database" in await refused(path)
    assert path.read_bytes() == before


async def test_a_database_of_another_program_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    assert "another program" in await refused(path)
    assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    other.close()


async def test_a_database_of_a_newer_imqtt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await make_store(path)
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    assert "schema 99" in await refused(path)


async def make_older_store(path: Path, schema: int) -> None:
    """Schema 2 has no registers; schema 1, of version 0.1, also has no times when devices were last seen."""
    await make_store(path)
    with closing(sqlite3.connect(path)) as older, older:
        older.execute("INSERT INTO devices VALUES ('alice', 'phone', 'json', 'android', 4096, 0)")
        older.execute("DROP INDEX events_by_register")
        older.execute("ALTER TABLE events DROP COLUMN register")
        if schema == 1:
            older.execute("ALTER TABLE devices DROP COLUMN seen")
        older.execute(f"PRAGMA user_version = {schema}")


PHONE = Registration(Device("alice", "phone"), "json", "android", 4_096)


def schema_of(path: Path) -> tuple[int, list[str]]:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        statements = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'events_by_register'")
        columns = connection.execute("SELECT name FROM pragma_table_info('events')").fetchall()
        return version, [*(name for (name,) in columns), *(sql.strip() for (sql,) in statements)]


@pytest.mark.parametrize("schema", [1, 2])
async def test_a_store_of_an_older_imqtt_has_registers_once_it_is_opened(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "imqtt.db"
    await make_older_store(path, schema)
    for _ in range(2):
        store = await SqliteStore.open(path, Identity.draw(16))
        assert await store.registers([(D, "title")]) == {}
        assert await store.records_after(D, 0, 10) == log(D, 1, 3)
        await store.close()
    title = record(D, 4, register="title")
    store = await SqliteStore.open(path, Identity.draw(16))
    await store.append([title])
    assert await store.registers([(D, "title")]) == {(D, "title"): title.event}
    assert await store.records_after(D, 0, 10) == [*log(D, 1, 3), title]
    await store.close()
    await make_store(tmp_path / "new.db")
    assert schema_of(path) == schema_of(tmp_path / "new.db")


@pytest.mark.parametrize("schema", [1, 2])
async def test_a_store_of_an_older_imqtt_is_upgraded(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "imqtt.db"
    await make_older_store(path, schema)
    for seen in (0, 5):
        store = await SqliteStore.open(path, Identity.draw(16))
        assert await store.devices(["alice"]) == {"alice": (msgspec.structs.replace(PHONE, seen=seen),)}
        await store.put_devices([msgspec.structs.replace(PHONE, seen=5)])
        assert len(await store.events_after(D, 0, 10)) == 3
        await store.close()


@pytest.mark.parametrize("schema", [1, 2])
async def test_a_store_of_an_older_imqtt_can_be_read_without_an_upgrade(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "imqtt.db"
    await make_older_store(path, schema)
    reader = await SqliteReader.attach(path)
    assert await reader.devices(["alice"]) == {"alice": (PHONE,)}
    assert await reader.registrations(Device("", ""), 10) == [PHONE]
    assert await reader.records_after(D, 0, 10) == log(D, 1, 3)
    await reader.close()
    with closing(sqlite3.connect(path)) as older:
        assert older.execute("PRAGMA user_version").fetchone() == (schema,)


@pytest.fixture
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, str]:
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in directory.iterdir()}


NAMES = ("imqtt.db", "imqtt.db-wal", "imqtt.db-shm", "imqtt.db.lock", "imqtt.db.lock-journal")
ALL_PRIVATE = dict.fromkeys(NAMES, "0600")


@pytest.mark.usefixtures("_usual_umask")
async def test_a_store_and_its_auxiliary_files_are_private(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.append(log(D, 1, 3))
    assert modes(tmp_path) == ALL_PRIVATE
    await store.close()


@pytest.mark.usefixtures("_usual_umask")
async def test_a_store_that_all_users_could_read_is_made_private(tmp_path: Path) -> None:
    await make_store(tmp_path / "imqtt.db")
    shell = sqlite3.connect(tmp_path / "imqtt.db")  # keeps the auxiliary files
    shell.execute("SELECT * FROM meta").fetchall()
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.append(log(D, 4, 4))
    assert modes(tmp_path) == ALL_PRIVATE
    await store.close()
    shell.close()


async def test_a_refused_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    path.chmod(0o644)
    assert "another program" in await refused(path)
    assert modes(tmp_path)["other.db"] == "0644"


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    path.touch()
    await make_store(path)
    assert path.stat().st_size > 0


async def test_a_store_in_use_is_refused_within_a_process(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    store = await SqliteStore.open(path, Identity.draw(16))
    assert "in use by another imqtt server" in await refused(path)
    (tmp_path / "link.db").symlink_to(path)
    assert "in use by another imqtt server" in await refused(tmp_path / "link.db")
    await store.append(log(D, 1, 1))
    await store.close()
    await check_events(path, 1)


async def test_a_store_in_use_is_refused_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    store = await SqliteStore.open(path, Identity.draw(16))
    program = (
        "import asyncio, pathlib, sys\n"
        "from imqtt.stores.base import Identity\n"
        "from imqtt.stores.sqlite.store import SqliteStore\n"
        "asyncio.run(SqliteStore.open(pathlib.Path(sys.argv[1]), Identity.draw(16)))\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN,
    )
    assert other.returncode != 0
    assert "in use by another imqtt server" in other.stderr
    await store.close()


async def test_a_failed_opening_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    path.write_bytes(b"not a database" * 100)
    await refused(path)
    path.unlink()
    await make_store(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
async def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await make_store(path)
    path.chmod(0o400)
    assert "read-only" in await refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any directory")
async def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "writable" in await refused(tmp_path / "imqtt.db")
    tmp_path.chmod(0o700)


async def test_a_file_that_sqlite_may_only_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await make_store(path)
    connection = sqlite_file.connect_to_read(path)
    with pytest.raises(SetupError, match="read-only"):
        sqlite_file.prepare(connection, path, Identity.draw(16))
    connection.close()


async def test_a_store_locked_by_another_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    path = tmp_path / "imqtt.db"
    await make_store(path)
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    assert "locked by another program" in await refused(path)
    shell.execute("ROLLBACK")
    shell.close()
    await check_events(path, 3)


# --- reading only


async def test_a_reader_reads_beside_the_server(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    store = await SqliteStore.open(path, Identity.draw(5))
    await store.append(log(D, 1, 3))
    reader = await SqliteReader.attach(path)
    assert reader.identity.partitions == 5
    assert len(await reader.events_after(D, 0, 10)) == 3
    await store.append([record(D, 4)])
    assert len(await reader.events_after(D, 0, 10)) == 4
    await reader.close()
    await store.close()


async def test_a_reader_reads_without_a_server_too(tmp_path: Path) -> None:
    path = tmp_path / "imqtt.db"
    await make_store(path)
    reader = await SqliteReader.attach(path)
    assert len(await reader.events_after(D, 0, 10)) == 3
    await reader.close()
    await check_events(path, 3)


async def test_attaching_to_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no store"):
        await SqliteReader.attach(tmp_path / "imqtt.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_store_leaves_one_file_and_its_lock(tmp_path: Path) -> None:
    await make_store(tmp_path / "imqtt.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imqtt.db", "imqtt.db.lock"]


async def test_a_copy_in_another_journal_mode_is_switched_to_wal(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.close()
    with closing(sqlite3.connect(tmp_path / "imqtt.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))

    copy = await SqliteStore.open(tmp_path / "copy.db", Identity.draw(16))

    await copy.close()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
