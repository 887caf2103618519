"""`imqtt up` runs a broker and the server on one directory, and ends them together."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imqtt.mosquitto.listeners import is_exposed
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.process import end_with_parent
from tests.cli.commands import Up, environment, imqtt, imqtt_process, is_alive
from tests.given_mosquitto import installed_version
from tests.ports import free_port
from tests.services import WITHIN, eventually


async def test_up_reports_when_it_is_ready_and_where(tmp_path: Path) -> None:
    began = time.monotonic()
    async with Up(tmp_path / "data") as up:
        assert up.ready["ready"]
        assert 0 < up.ready["seconds"] < time.monotonic() - began
        assert up.ready["data"] == str(tmp_path / "data")
        assert up.ready["partitions"] == 16
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).rows[0][
            "password"
        ]
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_broker_and_server_with_status_0(tmp_path: Path, how: signal.Signals) -> None:
    up = Up(tmp_path / "data")
    await up.start()
    assert await up.end(how) == 0
    assert not is_alive(up.ready["broker_pid"])
    assert "Traceback" not in up.log


async def test_data_and_ports_survive_a_restart(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    async with up:
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).rows[0][
            "password"
        ]
        ports = up.ready["internal_port"]
    async with Up(tmp_path / "data") as up:
        assert up.ready["internal_port"] == ports
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


async def test_a_browsers_port_that_is_open_to_other_machines_is_reported(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        port = up.ready["websocket_port"]
        assert not is_exposed("127.0.0.1", up.ready["port"])
        warning = f"the browsers' port {port} is open on every address of this machine, not only on 127.0.0.1"
        assert (warning in up.log) == is_exposed("127.0.0.1", port) == (installed_version() < (2, 1))
    async with Up(tmp_path / "open", "--host", "0.0.0.0") as up:
        assert "every address" not in up.log


async def test_a_data_directory_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        second = await imqtt_process("up", "--data", up.data)
        assert second.status == 1
        assert second.err.startswith(
            f"imqtt: the data directory {up.data} is in use by process {up.process.pid} ("
        )
        assert " up " in second.err
        assert second.err.endswith("): end it, or use another --data\n")
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
        assert "Mosquitto ended by SIGKILL; restarting it" in up.log
        password = (await imqtt("device", "add", "alice@phone", "--data", up.data, "--json")).rows[0][
            "password"
        ]
        assert log_in(up.ready["host"], up.ready["port"], "alice@phone", password)


async def test_a_port_taken_while_the_broker_was_down_is_reported_once_with_its_process(
    tmp_path: Path,
) -> None:
    async with Up(tmp_path / "data") as up:
        host, port = up.ready["host"], up.ready["port"]
        os.kill(up.ready["broker_pid"], signal.SIGKILL)
        with await _server_on(host, port):
            broker_log = tmp_path / "data" / "mosquitto.log"
            await eventually(lambda: broker_log.read_text().count("Address already in use") >= 3)
            assert up.log.count("Mosquitto did not start") == 1
            if sys.platform == "linux":
                assert f"port {port} by " in up.log
                assert f"(process {os.getpid()})" in up.log
        await eventually(lambda: "Mosquitto runs again" in up.log, what="another broker")


async def _server_on(host: str, port: int) -> socket.socket:
    """Listens on a port once it is free."""
    while True:
        try:
            return socket.create_server((host, port))
        except OSError:
            await asyncio.sleep(0)


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


async def test_an_error_of_the_server_ends_the_broker_too(tmp_path: Path) -> None:
    (tmp_path / "data" / "imqtt.db").mkdir(parents=True)
    ports = ("--port", free_port(), "--websocket-port", free_port())
    outcome = await imqtt_process("up", "--data", tmp_path / "data", *ports)
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: ")
    assert outcome.err.count("\n") == 1
    assert "imqtt.db" in outcome.err
    assert not (tmp_path / "data" / "mosquitto.pid").exists()  # Mosquitto removes it when it ends


async def test_a_bad_setting_is_reported_before_anything_starts(tmp_path: Path) -> None:
    outcome = await imqtt_process("up", "--data", tmp_path / "data", "--max-batch", "0")
    assert (outcome.status, outcome.err) == (
        2,
        "imqtt: max_batch: 0 is less than 1 (commands, 1 to 10,000)\n",
    )
    assert not (tmp_path / "data").exists()


async def test_the_printed_hints_work_when_they_are_pasted(tmp_path: Path) -> None:
    data = tmp_path / "my data"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "up", "--data", str(data), "--port", str(free_port()),
        "--websocket-port", str(free_port()),
        env=environment(), stdout=asyncio.subprocess.PIPE, preexec_fn=end_with_parent(),
    )  # fmt: skip
    assert process.stdout is not None
    output = ""
    async with asyncio.timeout(WITHIN):
        while "imqtt chat" not in output:
            output += (await process.stdout.readline()).decode()
    lines = [line for line in output.splitlines() if line.startswith("  export ")]
    script = "\n".join([*lines, "env"])
    shell = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True)
    variables = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    added = await imqtt("device", "add", "alice@phone", "--save", IMQTT_DATA=variables["IMQTT_DATA"])
    assert added.status == 0
    sent = await imqtt("send", "alice", "a note", IMQTT_DATA=variables["IMQTT_DATA"])
    assert sent.out == "stored: u:alice 1\n"
    assert variables["IMQTT_BROKER"] == f"{variables['MQTT_HOST']}:{variables['MQTT_PORT']}"
    with socket.create_connection((variables["MQTT_HOST"], int(variables["MQTT_PORT"]))):
        pass
    process.send_signal(signal.SIGINT)
    rest = (await process.stdout.read()).decode()
    assert await process.wait() == 0
    assert f"imqtt device add alice@phone bob@phone --save --data '{data}'" in output
    assert "imqtt has ended" in rest


async def test_a_port_in_use_is_reported_with_the_port_that_devices_use_instead(tmp_path: Path) -> None:
    async with Up(tmp_path / "data") as up:
        port = up.ready["port"]
    with socket.create_server(("127.0.0.1", port)):
        again = Up(tmp_path / "data", "--port", "0")
        async with again:
            assert again.ready["port"] != port
            assert list(again.ready["ports_in_use"]) == [str(port)]
            assert again.ready["environment"]["MQTT_PORT"] == str(again.ready["port"])
            assert again.ready["environment"]["IMQTT_BROKER"] == f"127.0.0.1:{again.ready['port']}"
            assert again.ready["environment"]["IMQTT_DATA"] == str(tmp_path / "data")
        assert f"port {port} is in use by " in again.log
        assert f"devices connect to port {again.ready['port']} instead" in again.log


async def test_settings_that_up_sets_itself_are_reported_as_ignored(tmp_path: Path) -> None:
    file = tmp_path / "imqtt.toml"
    file.write_text('state = "redis://127.0.0.1"\nmax_batch = 200\n')
    (tmp_path / "data").write_text("")  # which ends it soon
    given = {"IMQTT_STORE": "mongodb://x/imqtt", "IMQTT_BROKER_PASSWORD_FILE": os.devnull}
    asked = ("up", "--data", tmp_path / "data", "--config", file)
    warning, *_ = (await imqtt(*asked, IMQTT_BROKER="127.0.0.1:1", **given)).err.splitlines()
    assert warning.startswith("imqtt: ignored by `imqtt up`, which sets them itself: ")
    assert sorted(warning.rpartition(": ")[2].split(", ")) == sorted([*given, f"state in {file}"])
    file.write_text("max_batch = 200\n")
    assert "ignored" not in (await imqtt(*asked, IMQTT_BROKER="127.0.0.1:1")).err
