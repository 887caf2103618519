"""Errors about a locked file name the process that holds the lock."""

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt import lock_holder
from imqtt.client.store import LocalStore
from imqtt.errors import DeviceStoreInUse
from imqtt.lock_holder import Holder, holder_of
from imqtt.model import Device
from tests.services import WITHIN

ALICE = Device("alice", "phone")
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("COMMIT")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that has the store `alice.db` open, as a client does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(tmp_path / "alice.db"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN):
        assert await process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    await process.wait()


async def test_the_error_names_the_process_and_its_command(
    other: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    with pytest.raises(
        DeviceStoreInUse, match=f"alice.db is in use by process {other.pid} .*import sqlite3"
    ) as caught:
        await LocalStore.open(tmp_path / "alice.db", ALICE)
    assert "\n" not in caught.value.reason  # although the command line has line breaks


async def test_the_error_names_another_client_of_this_process_which_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "alice.db"
    store = await LocalStore.open(path, ALICE)
    for _ in range(2):
        with pytest.raises(DeviceStoreInUse, match="in use by another client of this process"):
            await LocalStore.open(path, ALICE)
    probe = await asyncio.create_subprocess_exec(sys.executable, "-c", TRY, str(path))
    assert await probe.wait() == 3
    await store.close()


TRY = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("SELECT count(*) FROM outbox")
except sqlite3.OperationalError:
    sys.exit(3)
"""


def test_an_unlocked_file_has_no_holder(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "alice.db").close()
    assert holder_of(tmp_path / "alice.db") is None
    assert holder_of(tmp_path / "missing.db") is None


@pytest.mark.skipif(shutil.which("lsof") is None, reason="lsof is not installed")
def test_without_proc_lsof_finds_the_holder(
    other: asyncio.subprocess.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_holder, "LOCKS", tmp_path / "none")
    found = holder_of(tmp_path / "alice.db")
    assert found is not None
    assert found.pid == other.pid


def test_a_long_command_is_shortened() -> None:
    assert str(Holder(1, "")) == "process 1"
    assert len(str(Holder(1, "x" * 1_000))) < 250
