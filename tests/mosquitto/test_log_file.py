"""The size of the broker's log is bounded."""

import stat
from pathlib import Path

import pytest

from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.log_file import LogFile
from imqtt.mosquitto.login import log_in
from tests.services import eventually


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    log = LogFile(tmp_path / "mosquitto.log", limit=1_000)
    log.begin()
    return log


def logged(path: Path) -> bytes:
    """The text of a log that another thread writes; empty while that rotates it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


async def test_repeated_refusals_of_a_device_do_not_fill_the_disk(broker: Mosquitto) -> None:
    broker._output.limit = 2_000
    before = broker.pid
    for _ in range(40):
        assert not log_in(broker.host, broker.port, "alice@phone", "wrong")
    older = broker.log.with_name("mosquitto.log.1")
    await eventually(older.exists)
    assert len(logged(older)) + len(logged(broker.log)) <= 4_000
    assert broker.pid == before
    password = broker.passwords.add("alice@phone")
    assert log_in(broker.host, broker.port, "alice@phone", password)
    await eventually(lambda: b"'alice@phone'" in logged(older) + logged(broker.log))


def test_the_newest_lines_are_kept_privately(log: LogFile) -> None:
    for number in range(500):
        log.write(f"2026-11-29T18:00:00: line {number}\n".encode())
    kept = log.older.read_text() + log.path.read_text()
    assert kept.endswith("line 498\n2026-11-29T18:00:00: line 499\n")
    assert 1_000 < len(kept) <= 2_000
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_a_file_that_an_earlier_version_let_grow_is_cut_to_its_end(tmp_path: Path) -> None:
    for name in ("mosquitto.log", "mosquitto.log.1"):
        (tmp_path / name).write_text("old\n" * 1_000 + f"the end of {name}\n")
    log = LogFile(tmp_path / "mosquitto.log", limit=1_000)
    assert log.begin() == 1_000
    assert log.path.read_text().endswith("the end of mosquitto.log\n")
    assert log.older.stat().st_size == 1_000


def test_a_full_disk_loses_log_lines_and_raises_nothing(log: LogFile) -> None:
    log.path.parent.rename(log.path.parent.with_name("gone"))  # nothing can be written there
    log.write(b"2026-11-29T18:00:00: Error: No space left on device.\n")
    log.path.parent.mkdir()
    log.write(b"2026-11-29T18:00:01: Error: Still none.\n")
    assert log.last_errors() == "Error: Still none."
