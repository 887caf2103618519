"""`imqtt serve`: the server on a separate broker."""

import asyncio
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from tests.cli.commands import environment, imqtt_process
from tests.ports import listeners
from tests.services import WITHIN, ServerProcess, eventually


async def test_sigterm_ends_the_server_cleanly(broker: Mosquitto, tmp_path: Path) -> None:
    server = ServerProcess(broker, tmp_path)
    await server.start()
    assert await server.stop() == 0
    log = server.log.read_text()
    assert f"imqtt is ready: 16 partitions on {INTERNAL_HOST}:{broker.internal_port}" in log
    assert "Traceback" not in log


async def test_the_password_can_be_in_a_file(broker: Mosquitto, tmp_path: Path) -> None:
    right = tmp_path / "right"
    right.write_text(f"{broker.server_password}\n")
    async with ServerProcess(broker, tmp_path, broker_password="wrong", broker_password_file=right):
        pass
    (tmp_path / "wrong").write_text("guess\n")
    refused = await imqtt_process(
        "serve", "--broker-port", broker.internal_port, "--broker-password-file", tmp_path / "wrong",
        "--store", f"sqlite:///{tmp_path / 'imqtt.db'}", "--quiet",
    )  # fmt: skip
    assert refused.status == 1
    assert "the broker does not take the server" in refused.err.splitlines()[-1]
    assert "guess" not in refused.err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_the_server_waits_for_a_broker_and_can_be_ended_meanwhile(
    tmp_path: Path, how: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "serve", "--broker-port", "1",
        "--store", f"sqlite:///{tmp_path / 'imqtt.db'}",
        env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WITHIN):
            assert b"no connection" in await process.stderr.readline()
            process.send_signal(how)
            _, rest = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b"Traceback" not in rest


async def test_a_health_port_that_is_taken_ends_the_server_at_once_with_one_line(tmp_path: Path) -> None:
    with socket.create_server((INTERNAL_HOST, 0)) as taken:
        address = f"{INTERNAL_HOST}:{taken.getsockname()[1]}"
        ended = await imqtt_process(
            "serve", "--broker-port", "1", "--health", address,
            "--store", f"sqlite:///{tmp_path / 'imqtt.db'}",
        )  # fmt: skip
    assert ended.status == 1
    assert ended.err == (
        f"imqtt: --health: cannot listen on {address}: Address already in use; "
        "stop what listens there, or give another port\n"
    )


async def test_waiting_for_the_broker_is_logged_once_at_the_start_and_once_at_the_end(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker", **listeners())
    await broker.start()
    await broker.stop()
    server = ServerProcess(broker, tmp_path)
    starting = asyncio.create_task(server.start())
    where = f"the broker at {INTERNAL_HOST}:{broker.internal_port}"

    def warnings() -> list[str]:
        lines = server.log.read_text().splitlines() if server.log.exists() else []
        return [line.partition(" WARNING ")[2] for line in lines if " WARNING " in line]

    await eventually(warnings, what="a warning")
    await broker.start()
    await starting
    await eventually(lambda: len(warnings()) > 1, what="the broker's return")
    assert re.fullmatch(
        rf"imqtt\.server\.\w+: no connection to {where} \([\w -]+\): Connection refused", warnings()[0]
    )
    assert re.match(rf"imqtt\.server\.\w+: every connection to {where} works again, after ", warnings()[1])
    assert len(warnings()) == 2
    await server.stop()
    await broker.stop()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--broker-certificate", "c.pem"), "broker_certificate asks for TLS"),
        (("--broker-port", "8883"), "broker_port 8883 asks for TLS"),
        (("--broker-key", "k.pem", "--broker-ca", "ca.pem"), "broker_key is a key without a certificate"),
    ],
)
async def test_settings_that_request_tls_incompletely_are_refused(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    store = tmp_path / "imqtt.db"
    refused = await imqtt_process("serve", *flags, "--store", f"sqlite:///{store}", "--quiet")
    assert refused.status == 1
    assert message in refused.err
    assert not store.exists()  # nothing was started
