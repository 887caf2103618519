"""`imqtt up`: a broker and the server on one directory, and nothing left behind."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from imqtt.cli.login import log_in
from tests.cli.commands import Up, environment, imqtt, imqtt_process, is_alive
from tests.services import eventually


async def test_it_is_ready_soon_and_says_where(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        assert up.ready["ready"]
        assert up.ready["seconds"] < 3
        assert up.ready["data"] == str(tmp_path / "data")
        assert up.ready["partitions"] == 16
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).json[0][
            "password"
        ]
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_both_with_status_0(tmp_path: Path, how: signal.Signals) -> None:
    up = Up(tmp_path / "data")
    await up.start()
    assert await up.end(how) == 0
    assert not is_alive(up.ready["broker_pid"])
    assert "Traceback" not in up.log


async def test_data_and_ports_outlive_it(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    async with up:
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).json[0][
            "password"
        ]
        ports = up.ready["internal_port"]
    async with Up(tmp_path / "data") as up:
        assert up.ready["internal_port"] == ports
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


async def test_a_data_directory_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        second = await imqtt_process("up", "--data", up.data)
        assert second.status == 1
        assert second.err == (f"imqtt: the data directory {up.data} is in use by process {up.process.pid}\n")
        assert is_alive(up.ready["broker_pid"])


async def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        second = await imqtt_process("up", "--data", tmp_path / "other", "--port", up.ready["port"])
        assert second.status == 1
        assert f"port {up.ready['port']} on 127.0.0.1 is in use" in second.err
        assert second.err.count("\n") == 1


async def test_a_broker_that_dies_is_started_again(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        os.kill(up.ready["broker_pid"], signal.SIGKILL)
        await eventually(lambda: "Mosquitto runs again" in up.log, what="another broker")
        assert "Mosquitto ended by SIGKILL; starting it again" in up.log
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).json[0][
            "password"
        ]
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the next start ends the broker")
async def test_kill_9_leaves_no_broker_behind(tmp_path: Path) -> None:
    killed = Up(tmp_path / "data")
    await killed.start()
    await killed.end(signal.SIGKILL)
    await eventually(lambda: not is_alive(killed.ready["broker_pid"]), what="the end of the broker")


async def test_after_kill_9_it_starts_on_the_same_directory(tmp_path: Path) -> None:
    killed = Up(tmp_path / "data")
    await killed.start()
    await killed.end(signal.SIGKILL)
    async with Up(tmp_path / "data") as up:
        assert up.ready["broker_pid"] != killed.ready["broker_pid"]
        await eventually(
            lambda: not is_alive(killed.ready["broker_pid"]), what="the end of the broker left behind"
        )


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = await imqtt_process("up", "--data", tmp_path / "file" / "data")
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: cannot write in ")
    assert outcome.err.count("\n") == 1


async def test_what_ends_the_server_ends_it_all(tmp_path: Path) -> None:
    (tmp_path / "data" / "imqtt.db").mkdir(parents=True)
    outcome = await imqtt_process("up", "--data", tmp_path / "data", "--port", "0")
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: ")
    assert outcome.err.count("\n") == 1
    assert "imqtt.db" in outcome.err
    assert not (tmp_path / "data" / "mosquitto.pid").exists()  # Mosquitto removes it when it ends


async def test_a_bad_setting_is_told_before_anything_starts(tmp_path: Path) -> None:
    outcome = await imqtt_process("up", "--data", tmp_path / "data", "--max-batch", "0")
    assert (outcome.status, outcome.err) == (2, "imqtt: max_batch: 0 is less than 1\n")
    assert not (tmp_path / "data").exists()


async def test_people_are_told_what_to_do_next(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "up", "--data", str(tmp_path / "data"),
        env=environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    deadline = time.monotonic() + 30
    while "imqtt chat" not in said and time.monotonic() < deadline:
        said += (await process.stdout.readline()).decode()
    process.send_signal(signal.SIGINT)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 0
    assert f"imqtt device add alice@phone --save --data {tmp_path / 'data'}" in said
    assert "imqtt has ended" in rest
