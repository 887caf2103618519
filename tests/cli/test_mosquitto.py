"""A broker on a directory of its own: it starts, or says why not in words that help."""

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from imqtt.cli import installation, mosquitto
from imqtt.cli.installation import configuration, configure, executable
from imqtt.cli.login import log_in
from imqtt.cli.mosquitto import Mosquitto
from imqtt.cli.passwords import SERVER_ACCOUNT, Passwords, broker_pid
from imqtt.cli.ports import INTERNAL_HOST
from imqtt.errors import SetupError
from tests.cli.commands import imqtt


async def test_the_server_gets_in_on_the_internal_listener(broker: Mosquitto) -> None:
    assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)
    assert not log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, "guess")


async def test_ports_and_the_server_password_stay_through_a_restart(broker: Mosquitto) -> None:
    before = (broker.port, broker.websocket_port, broker.internal_port, broker.server_password)
    await broker.kill()
    await broker.start()
    assert (broker.port, broker.websocket_port, broker.internal_port, broker.server_password) == before


async def test_another_process_on_the_same_directory_gets_the_same_ports(tmp_path: Path) -> None:
    first = Mosquitto(tmp_path)
    async with first:
        pass
    async with Mosquitto(tmp_path) as second:
        assert (second.port, second.internal_port) == (first.port, first.internal_port)


async def test_passwords_can_be_given_before_it_starts(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    password = broker.passwords.add("alice@phone")
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)


async def test_a_directory_of_imqtt_0_1_is_migrated_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path)
    password = broker.passwords.add("alice@phone")
    broker.passwords.path.write_text(broker.passwords.path.read_text().replace("@", "/"))
    (tmp_path / "mosquitto.db").write_bytes(b"sessions of alice/phone")
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)
        assert not log_in(broker.host, broker.port, "alice/phone", password)
        assert not broker.passwords.outdated()
    assert "usernames are USER@DEVICE now" in caplog.text
    assert "Renamed: alice@phone" in caplog.text
    caplog.clear()
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)
    assert "Renamed" not in caplog.text


async def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path / "my data é") as broker:
        assert broker.running()
        password = broker.passwords.add("alice@phone")
        assert log_in(broker.host, broker.port, "alice@phone", password)


async def test_websockets_are_served(broker: Mosquitto) -> None:
    with socket.create_connection((broker.host, broker.websocket_port), 5) as connection:
        connection.sendall(
            b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 101")


async def test_nobody_but_its_user_reads_its_secrets(broker: Mosquitto) -> None:
    await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory)
    for path in [broker.directory, *broker.directory.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o007 == 0, path
        if path.is_file():
            assert mode == 0o600, path


async def test_a_port_in_use_is_named(broker: Mosquitto, tmp_path: Path) -> None:
    other = Mosquitto(tmp_path / "other", port=broker.port)
    with pytest.raises(SetupError, match=f"port {broker.port} on 127.0.0.1 is in use"):
        await other.start()


async def test_a_port_that_was_free_last_time_gives_way(broker: Mosquitto, tmp_path: Path) -> None:
    other = Mosquitto(tmp_path / "other")
    async with other:
        pass
    with socket.create_server(("127.0.0.1", other.port)):
        async with Mosquitto(tmp_path / "other") as again:
            assert again.port != other.port
            assert again.internal_port == other.internal_port


async def test_a_directory_has_one_broker(broker: Mosquitto) -> None:
    with pytest.raises(SetupError, match=f"{broker.directory} is in use by process {os.getpid()}"):
        await Mosquitto(broker.directory).start()
    assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot write in .*/file/data: Not a directory"):
        await Mosquitto(tmp_path / "file" / "data").start()


async def test_a_missing_mosquitto_is_told_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "PLACES", ())
    with pytest.raises(SetupError, match="apt install mosquitto"):
        executable()


async def test_it_is_found_where_debian_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("Mosquitto is elsewhere here")
    monkeypatch.setenv("PATH", "/nowhere")
    assert executable() == "/usr/sbin/mosquitto"


async def test_why_it_ended_at_its_start_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "acl").write_text("")
    text = (configuration() / "mosquitto.conf").read_text()
    (source / "mosquitto.conf").write_text(text + "no_such_option 1\n")
    monkeypatch.setattr(mosquitto, "configuration", lambda: source)
    broker = Mosquitto(tmp_path / "broker")
    with pytest.raises(SetupError, match=r"Unknown configuration variable .no_such_option."):
        await broker.start()
    assert broker.pid is None


async def test_a_broker_left_behind_by_a_killed_process_is_ended_first(tmp_path: Path) -> None:
    left = Mosquitto(tmp_path)
    await left.start()
    pid = left.pid
    left._let_go()  # as the kernel does when a process dies
    async with Mosquitto(tmp_path) as broker:
        assert broker.pid != pid
        assert await left.wait() == 0
        assert broker.port == left.port


async def test_a_pid_file_that_names_another_process_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.pid").write_text(str(os.getpid()))
    assert broker_pid(tmp_path / "mosquitto.pid") is None
    assert Passwords(tmp_path / "passwords", tmp_path / "mosquitto.pid").add("alice@phone")


async def test_it_is_told_when_it_ends(broker: Mosquitto) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    assert await broker.wait() == -signal.SIGKILL
    await broker.start()
    assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)


async def test_ending_a_session_drops_what_it_held_and_its_connection(broker: Mosquitto) -> None:
    password = broker.passwords.add("alice@phone")
    with persistent(broker, "alice@phone", password, present=False):
        pass
    with persistent(broker, "alice@phone", password, present=True) as device:
        broker.end_session("alice@phone")
        assert await asyncio.to_thread(device.recv, 1) == b""
    with persistent(broker, "alice@phone", password, present=False):
        pass


def persistent(broker: Mosquitto, username: str, password: str, *, present: bool) -> socket.socket:
    """A connection with a persistent session, which the broker says is `present` or not (MQTT 3.1.1)."""
    connection = socket.create_connection((broker.host, broker.port), 5)
    texts = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in ("any", username, password))
    body = b"\0\4MQTT\4\xc0\0\x3c" + texts
    connection.sendall(bytes((0x10, len(body))) + body)
    assert connection.recv(4) == bytes((0x20, 2, present, 0))
    return connection


def test_a_configuration_without_the_line_to_replace_is_refused() -> None:
    with pytest.raises(SetupError, match="0 lines that begin with 'pid_file'"):
        configure("persistence true\n", {"pid_file": "x"}, {})


def test_the_configuration_keeps_what_losing_messages_would_cost() -> None:
    lines = (configuration() / "mosquitto.conf").read_text().splitlines()
    for line in (
        "allow_anonymous false",
        "retain_available false",
        "max_inflight_messages 65534",
        "persistence true",
        "set_tcp_nodelay true",
    ):
        assert line in lines
    assert lines.count("use_username_as_clientid true") == 2
    assert not any(line.startswith(("message_size_limit", "per_listener_settings")) for line in lines)
