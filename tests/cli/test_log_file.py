"""The broker's log does not outgrow its bound, and tells the operator of trouble."""

import os
import stat
from pathlib import Path

import pytest

from imqtt.cli.log_file import LogFile
from imqtt.cli.login import log_in
from imqtt.cli.mosquitto import Mosquitto
from tests.services import eventually


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def log(tmp_path: Path, reports: list[str]) -> LogFile:
    log = LogFile(tmp_path / "mosquitto.log", reports.append, limit=1_000)
    log.begin()
    log.open_reports()
    return log


async def test_a_broker_that_refuses_a_device_again_and_again_fills_no_disk(broker: Mosquitto) -> None:
    broker._output.limit = 2_000
    before = broker.pid
    for _ in range(40):
        assert not log_in(broker.host, broker.port, "alice@phone", "wrong")
    older = broker.log.with_name("mosquitto.log.1")
    await eventually(older.exists)
    assert older.stat().st_size + broker.log.stat().st_size <= 4_000
    assert broker.pid == before
    password = broker.passwords.add("alice@phone")
    assert log_in(broker.host, broker.port, "alice@phone", password)
    await eventually(lambda: b"'alice@phone'" in older.read_bytes() + broker.log.read_bytes())


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
    log = LogFile(tmp_path / "mosquitto.log", print, limit=1_000)
    assert log.begin() == 1_000
    assert log.path.read_text().endswith("the end of mosquitto.log\n")
    assert log.older.stat().st_size == 1_000


def test_a_full_disk_loses_lines_but_reports_trouble(log: LogFile, reports: list[str]) -> None:
    log.path.parent.rename(log.path.parent.with_name("gone"))  # nothing can be written there
    log.write(b"2026-11-29T18:00:00: Error: No space left on device.\n")
    assert reports == ["Error: No space left on device."]


@pytest.mark.parametrize(
    "line",
    [
        'Unable to accept new connection, system socket count has been exceeded. Try increasing "ulimit -n".',
        "Error saving in-memory database, unable to open mosquitto.db.new for writing.",
        "Error: Out of memory.",
        "Warning: File passwords has world readable permissions.",
    ],
)
def test_trouble_is_reported(log: LogFile, reports: list[str], line: str) -> None:
    log.write(f"2026-11-29T18:00:00: {line}\n".encode())
    assert reports == [line]


@pytest.mark.parametrize(
    "line",
    [
        "Client alice@phone disconnected, not authorised.",
        "New client connected from 127.0.0.1:1 as Error (p2, c1, k30, u'alice@phone').",
        "Warning: Received PUBACK from alice@phone for an unknown packet identifier 7.",
        "Client alice@phone has exceeded its receive-maximum quota.",
        "The 'per_listener_settings' option is now deprecated and will be removed in version 3.0.",
    ],
)
def test_what_is_no_trouble_of_the_brokers_is_not(log: LogFile, reports: list[str], line: str) -> None:
    log.write(f"2026-11-29T18:00:00: {line}\n".encode())
    assert reports == []


def test_the_same_trouble_is_reported_once_in_a_while(
    log: LogFile, reports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        log.write(f"Error: connection {number}\n".encode())
    assert reports == ["Error: connection 0"]
    monkeypatch.setattr("imqtt.cli.log_file.QUIET_SECONDS", 0.0)
    log.write(b"Error: connection 5\n")
    assert reports[1:] == ["Error: connection 5 (4 times more since the last report)"]


def test_a_line_that_comes_in_pieces_is_one(log: LogFile, reports: list[str]) -> None:
    log.write(b"2026-11-29T18:00:00: Err")
    log.write(b"or: Out of")
    assert reports == []
    log.write(b" memory.\n")
    assert reports == ["Error: Out of memory."]


def test_reports_of_a_start_wait_for_its_success(log: LogFile, reports: list[str]) -> None:
    start = log.begin()
    log.write(b"1795976000: Error: Address already in use\n")
    assert reports == []
    assert log.last_words(start) == "Error: Address already in use"
    log.begin()
    log.write(b"Warning: of the second start\n")
    log.open_reports()
    assert reports == ["Warning: of the second start"]
    assert os.fspath(log.older).endswith("mosquitto.log.1")
