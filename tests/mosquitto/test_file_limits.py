"""Devices cannot use up the broker's files, and a process without free files reports it."""

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imqtt.broker import LinkSettings, connect
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.file_limits import (
    FILES,
    PUBLIC_LISTENERS,
    RESERVED,
    limit_connections,
    public_connections,
)
from imqtt.mosquitto.installation import configuration
from imqtt.mosquitto.log_relay import BrokerLog
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.serving import serving
from tests.cli.commands import Up
from tests.ports import free_port
from tests.server.conftest import config_for
from tests.server.test_health import ask
from tests.services import WITHIN, eventually


@pytest.mark.parametrize("files", [64, 160, 1_024, 2_200, 65_536])
def test_the_connections_of_devices_leave_files_for_the_server(files: int) -> None:
    left = files - PUBLIC_LISTENERS * public_connections(files)
    assert min(RESERVED, files // 2) <= left <= min(RESERVED, files // 2) + 1


def test_every_public_listener_is_limited_and_the_internal_one_is_not() -> None:
    text = limit_connections((configuration() / "mosquitto.conf").read_text(), 10_000)
    *_, public, websockets, internal = re.split(r"^listener ", text, flags=re.MULTILINE)
    assert "\nmax_connections 4450\n" in public
    assert "\nmax_connections 4450\n" in websockets
    assert "max_connections" not in internal


def test_a_soft_limit_is_raised_as_far_as_allowed() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    code = (
        "import resource; from imqtt.mosquitto.file_limits import raise_file_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(wanted), str(wanted)]


class Phones:
    """Connections that are held, and opened again when they are cut."""

    def __init__(self, host: str, port: int, number: int) -> None:
        self._address = (host, port)
        self._number = number
        self.held = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._number):
                tasks.create_task(self._one())

    async def _one(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*self._address)
                self.held += 1
                try:
                    await reader.read(1)
                finally:
                    self.held -= 1
                    writer.close()
            await asyncio.sleep(0.02)


async def test_devices_that_use_all_their_connections_leave_room_for_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imqtt.mosquitto.broker.raise_file_limit", lambda: 160)
    broker = Mosquitto(tmp_path / "broker")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, limits[1]))  # which the broker inherits
    try:
        await broker.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    async with broker:
        phones = Phones(broker.host, broker.port, 200)
        task = asyncio.create_task(phones.run())
        try:
            await eventually(
                lambda: any(reason in broker.log.read_text() for reason in ("denied", "exceeded"))
            )
            async with asyncio.timeout(WITHIN), serving(config_for(broker, tmp_path)) as server:
                assert len(server.health().partitions) == 16
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_the_server_reconnects_to_a_killed_broker_though_devices_want_every_file(
    tmp_path: Path,
) -> None:
    health = free_port()
    async with Up(tmp_path / "data", "--health", f"127.0.0.1:{health}", files=160) as up:
        phones = Phones(up.ready["host"], up.ready["port"], 200)
        task = asyncio.create_task(phones.run())
        try:
            await eventually(lambda: "Mosquitto accepts no more devices" in up.log)
            assert "160" in up.log
            os.kill(up.ready["broker_pid"], signal.SIGKILL)
            await eventually(lambda: "Mosquitto runs again" in up.log)

            async def serving_all() -> bool:
                status, body = await ask(health)
                return "200" in status and len(json.loads(body)["partitions"]) == 16

            await eventually(serving_all)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_the_broker_knows_the_servers_sessions_after_a_crash_in_its_first_minute(
    tmp_path: Path,
) -> None:
    """Otherwise commands that devices send before the server is back would be lost."""
    up = Up(tmp_path / "data")
    await up.start()
    await eventually((tmp_path / "data" / "broker" / "state" / "mosquitto.db").exists)
    os.kill(up.ready["broker_pid"], signal.SIGKILL)
    await up.end(signal.SIGKILL)
    async with Mosquitto(tmp_path / "data") as broker:
        link = await connect(
            LinkSettings(
                INTERNAL_HOST, broker.internal_port, "imqtt-server-15", username=SERVER_ACCOUNT,
                password=broker.server_password,
            )
        )  # fmt: skip
        assert link.session_present
        await link.close()


async def test_a_server_that_runs_out_of_files_reports_it_and_continues_when_some_are_free(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imqtt.server.open_files.LOOK_SECONDS", 0.02)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(config_for(broker, tmp_path)) as server:
        used = len(list(Path("/proc/self/fd").iterdir()))
        taken: list[socket.socket] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(socket.socket())
            await eventually(lambda: "none is left" in server.health().process)
            assert f"may have {used + 20} open" in server.health().process
            assert server.health().status == "degraded"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for file in taken:
                file.close()
        await eventually(lambda: server.health().status == "ok")
        await eventually(lambda: "there are file descriptors again" in caplog.text)


# --- Mosquitto's log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "mosquitto.log"
    path.write_text("2026-01-01T00:00:00: Error: an old one\n")
    return path


def add(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("line", "relayed"),
    [
        (
            "Unable to accept new connection, system socket count has been exceeded. Try increasing …",
            "Mosquitto has no file descriptors left",
        ),
        ("Client connection from 1.2.3.4 denied access by tcpd.", "Mosquitto has no file descriptors left"),
        ("Client connection from ::1 denied: max_connections exceeded.", "Mosquitto accepts no more devices"),
        ("Warning: File passwords has world readable permissions.", "File passwords has world readable"),
        ("Error saving in-memory database, unable to open /x for writing.", "unable to open /x for writing"),
    ],
)
async def test_the_brokers_problems_are_relayed_once(
    log: Path, caplog: pytest.LogCaptureFixture, line: str, relayed: str
) -> None:
    caplog.set_level(logging.INFO, "imqtt")
    broker_log = BrokerLog(log)
    for _ in range(100):
        add(log, f"2026-01-01T00:00:01: {line}\n")
    add(log, "2026-01-01T00:00:01: New connection from 1.2.3.4:5 on port 1883.\n")
    broker_log.look()
    broker_log.look()
    assert len(caplog.messages) == 1
    assert relayed in caplog.messages[0]


@pytest.mark.parametrize(
    "line",
    [
        "Client alice@phone disconnected, not authorised.",
        "New client connected from 127.0.0.1:1 as Error (p2, c1, k30, u'alice@phone').",
        "Warning: Received PUBACK from alice@phone for an unknown packet identifier 7.",
    ],
)
async def test_lines_about_clients_are_not_relayed(
    log: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    broker_log = BrokerLog(log)
    add(log, f"2026-01-01T00:00:01: {line}\n")
    broker_log.look()
    assert not caplog.messages


async def test_warnings_from_the_brokers_start_are_relayed_once_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path)
    broker.files.state.parent.mkdir(parents=True)
    broker.files.state.touch()
    async with broker:
        BrokerLog(broker.log, broker.log_start).look()
    assert "Mosquitto warns: Warning: Persistence file is empty." in caplog.text


async def test_an_incomplete_line_is_read_once_it_is_complete_and_a_new_file_from_its_beginning(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker_log = BrokerLog(log)
    add(log, "1768000000: Error: one of two ha")
    broker_log.look()
    assert not caplog.messages
    add(log, "lves\n")
    broker_log.look()
    assert caplog.messages == ["Mosquitto reports an error: Error: one of two halves"]
    log.rename(log.with_suffix(".1"))
    broker_log.look()  # while there is no file
    log.write_text("1768000000: Error: after the rotation\n")
    broker_log.look()
    assert "after the rotation" in caplog.messages[1]
