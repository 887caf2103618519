"""A broker with its own directory: it starts, or gives a helpful reason."""

import asyncio
import os
import pwd
import signal
import socket
import stat
from pathlib import Path

import pytest

from imqtt.errors import SetupError
from imqtt.mosquitto import broker as mosquitto
from imqtt.mosquitto import installation, system_user
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.installation import configuration, configure, executable
from imqtt.mosquitto.listeners import INTERNAL_HOST
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.passwords import SERVER_ACCOUNT, Passwords, broker_pid
from imqtt.mosquitto.system_user import broker_user, own_name
from tests.cli.commands import imqtt
from tests.services import eventually


async def test_the_server_can_log_in_on_the_internal_listener(broker: Mosquitto) -> None:
    assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)
    assert not log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, "guess")


async def test_ports_and_the_server_password_survive_a_restart(broker: Mosquitto) -> None:
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


async def test_passwords_can_be_set_before_the_broker_starts(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    password = broker.passwords.add("alice@phone")
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)


async def test_a_directory_of_imqtt_0_1_is_migrated_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path)
    password = directory_of_0_1(tmp_path, "alice@phone", "bob@phone")
    tmp_path.chmod(0o755)
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)
        assert not log_in(broker.host, broker.port, "alice/phone", password)
        assert not broker.passwords.outdated()
    assert "usernames are USER@DEVICE now" in caplog.text
    assert "Renamed: alice@phone, bob@phone" in caplog.text
    assert f"{tmp_path} was open to others (mode 0755)" in caplog.text
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert not {"passwords", "acl", "mosquitto.db", "mosquitto.conf"} & set(os.listdir(tmp_path))  # noqa: PTH208
    caplog.clear()
    async with broker:
        assert log_in(broker.host, broker.port, "alice@phone", password)
    assert "Renamed" not in caplog.text


def directory_of_0_1(directory: Path, *devices: str) -> str:
    """A data directory of imqtt 0.1 with these devices. Returns their password."""
    passwords = Passwords(directory / "passwords", directory / "mosquitto.pid")
    passwords.add_all(devices, "secret")
    passwords.path.write_text(passwords.path.read_text().replace("@", "/"))
    for name in ("acl", "mosquitto.conf", "mosquitto.log", "listeners.json", "mosquitto.db"):
        (directory / name).write_text("{}")
    return "secret"


async def test_a_broker_of_imqtt_0_1_that_was_left_behind_is_ended(tmp_path: Path) -> None:
    directory_of_0_1(tmp_path, "alice@phone")
    configured = f"user {own_name()}\nlistener 0 {tmp_path}/socket\npid_file {tmp_path}/mosquitto.pid\n"
    (tmp_path / "mosquitto.conf").write_text(configured)
    left = await asyncio.create_subprocess_exec(
        executable(), "-c", str(tmp_path / "mosquitto.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    await eventually(lambda: broker_pid(tmp_path / "mosquitto.pid"), what="its pid file")
    async with Mosquitto(tmp_path) as broker:
        assert await left.wait() in (0, -signal.SIGTERM)  # perhaps before it installed its handler
        assert broker.pid != left.pid


async def test_if_a_device_has_an_old_and_a_new_name_the_new_one_keeps_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = Passwords(tmp_path / "passwords", tmp_path / "pid")
    passwords.add("alice@phone", "old")
    text = passwords.path.read_text().replace("@", "/")
    passwords.add("alice@phone", "new")
    passwords.path.write_text(text + passwords.path.read_text())
    async with Mosquitto(tmp_path) as broker:
        assert log_in(broker.host, broker.port, "alice@phone", "new")
        assert broker.passwords.usernames() == ["alice@phone", SERVER_ACCOUNT]
    assert "keep their password: alice@phone" in caplog.text


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


async def test_only_the_brokers_user_can_read_its_secrets(broker: Mosquitto) -> None:
    await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory)
    for path in [broker.directory, *broker.directory.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o007 == 0, path
        if path.is_file():
            assert mode == 0o600, path


async def test_root_runs_the_broker_as_another_user_who_can_read_only_its_own_files(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tmp_path.chmod(0o700)  # that user cannot enter the parent of the data directory
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mosquitto.db").write_bytes(b"")  # of root's
    async with Mosquitto(tmp_path / "data") as broker:
        assert broker.pid is not None
        user = broker_user()
        assert user is not None
        status = Path(f"/proc/{broker.pid}/status").read_text()
        assert f"Uid:\t{user.uid}\t{user.uid}\t{user.uid}\t{user.uid}\n" in status
        assert f"Gid:\t{user.gid}\t{user.gid}\t{user.gid}\t{user.gid}\n" in status
        for path in broker.files.home.iterdir():
            expected = 0 if path.name == "passwords.lock" else user.uid
            assert path.stat().st_uid == expected, path
        assert broker.files.home.stat().st_uid == 0
        assert broker.files.home.stat().st_mode & 0o022 == 0
        os.kill(broker.pid, signal.SIGUSR1)
        await eventually(broker.files.state.exists, what="its state on disk")
        password = broker.passwords.add("alice@phone")  # makes it reload the file
        assert log_in(broker.host, broker.port, "alice@phone", password)
    async with Mosquitto(tmp_path / "data"):
        pass


async def test_an_operator_can_choose_the_brokers_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    async with Mosquitto(tmp_path, user="nobody") as broker:
        assert Path(f"/proc/{broker.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    async with Mosquitto(tmp_path) as broker:  # and changes the choice
        assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)
    with pytest.raises(SetupError, match="there is no user 'nobody-at-all'"):
        await Mosquitto(tmp_path, user="nobody-at-all").start()


async def test_root_without_capabilities_runs_the_broker_as_root_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    async with Mosquitto(tmp_path):
        pass
    monkeypatch.setattr(system_user, "_CAPABILITIES", 1 << 60)
    async with Mosquitto(tmp_path) as broker:
        assert Path(f"/proc/{broker.pid}").stat().st_uid == 0
        assert broker.files.passwords.stat().st_uid == 0
    assert "Mosquitto runs as root: root lacks the capabilities" in caplog.text


async def test_the_broker_does_not_inherit_secrets_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMQTT_STORE_PASSWORD", "s3cret")
    async with Mosquitto(tmp_path) as broker:
        assert b"s3cret" not in Path(f"/proc/{broker.pid}/environ").read_bytes()


async def test_a_directory_with_other_files_keeps_its_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "project.txt").touch()
    for _ in range(2):
        async with Mosquitto(tmp_path) as broker:
            assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
            assert stat.S_IMODE(broker.files.home.stat().st_mode) & 0o007 == 0
            assert stat.S_IMODE(broker.log.stat().st_mode) == 0o600
        assert "others may enter the data directory" in caplog.text
        assert "project.txt" in caplog.text


async def test_a_link_in_the_brokers_directory_does_not_change_its_targets_owner_or_mode(
    tmp_path: Path,
) -> None:
    broker = Mosquitto(tmp_path / "data")
    async with broker:
        pass
    secrets = [tmp_path / "linked", tmp_path / "hard-linked"]
    for secret in secrets:
        secret.write_text("root's")
    broker.files.state.with_name("one").symlink_to(secrets[0])
    broker.files.state.with_name("two").hardlink_to(secrets[1])

    def access() -> list[tuple[int, int, int]]:
        return [(found.st_uid, found.st_gid, found.st_mode) for found in map(Path.stat, secrets)]

    before = access()
    async with broker:
        assert access() == before


async def test_the_process_that_uses_the_preferred_port_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with Mosquitto(tmp_path, preferred=(port, 0)) as broker:
            assert broker.port != port
            assert list(broker.displaced) == [port]
            assert f"(process {os.getpid()})" in broker.displaced[port]
    assert f"port {port} is in use by " in caplog.text
    assert f"devices connect to port {broker.port} instead" in caplog.text


async def test_the_preferred_port_is_used_if_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with Mosquitto(tmp_path, preferred=(port, 0)) as broker:
        assert broker.port == port
        assert not broker.displaced


async def test_a_port_in_use_is_named(broker: Mosquitto, tmp_path: Path) -> None:
    other = Mosquitto(tmp_path / "other", port=broker.port)
    with pytest.raises(SetupError, match=f"port {broker.port} on 127.0.0.1 is in use"):
        await other.start()


async def test_a_saved_port_that_is_in_use_is_replaced(broker: Mosquitto, tmp_path: Path) -> None:
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


async def test_a_missing_mosquitto_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "PLACES", ())
    with pytest.raises(SetupError, match="apt install mosquitto"):
        executable()


async def test_mosquitto_is_found_where_debian_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("Mosquitto is elsewhere here")
    monkeypatch.setenv("PATH", "/nowhere")
    assert executable() == "/usr/sbin/mosquitto"


async def test_an_error_at_the_start_quotes_mosquittos_log(
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
    left._lock.release()  # as the kernel does when a process dies
    async with Mosquitto(tmp_path) as broker:
        assert broker.pid != pid
        assert await left.wait() == 0
        assert broker.port == left.port


async def test_a_pid_file_that_names_another_process_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.pid").write_text(str(os.getpid()))
    assert broker_pid(tmp_path / "mosquitto.pid") is None
    assert Passwords(tmp_path / "passwords", tmp_path / "mosquitto.pid").add("alice@phone")


async def test_a_pid_file_that_names_another_mosquitto_is_ignored(broker: Mosquitto, tmp_path: Path) -> None:
    other = Mosquitto(tmp_path / "other")
    async with other:
        pass
    other.files.pid.write_text(str(broker.pid))  # as after a crash, when the number is given again
    assert not other.running()
    other.passwords.add("alice@phone")
    other.passwords.remove_all(["alice@phone"])
    async with other:
        assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)
    assert "Reloading config" not in broker.log.read_text()


async def test_wait_returns_the_exit_status_when_the_broker_ends(broker: Mosquitto) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    assert await broker.wait() == -signal.SIGKILL
    await broker.start()
    assert log_in(INTERNAL_HOST, broker.internal_port, SERVER_ACCOUNT, broker.server_password)


async def test_ending_a_session_removes_it_and_closes_its_connection(broker: Mosquitto) -> None:
    password = broker.passwords.add("alice@phone")
    with persistent(broker, "alice@phone", password, present=False):
        pass
    with persistent(broker, "alice@phone", password, present=True) as device:
        await asyncio.to_thread(broker.end_sessions, ["alice@phone"])
        assert await asyncio.to_thread(device.recv, 1) == b""
    with persistent(broker, "alice@phone", password, present=False):
        pass


def persistent(broker: Mosquitto, username: str, password: str, *, present: bool) -> socket.socket:
    """A connection with a persistent session that is `present` at the broker or not (MQTT 3.1.1)."""
    connection = socket.create_connection((broker.host, broker.port), 5)
    texts = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in ("any", username, password))
    body = b"\0\4MQTT\4\xc0\0\x3c" + texts
    connection.sendall(bytes((0x10, len(body))) + body)
    assert connection.recv(4) == bytes((0x20, 2, present, 0))
    return connection


def test_a_configuration_without_the_line_to_replace_is_refused() -> None:
    with pytest.raises(SetupError, match="0 lines that begin with 'pid_file'"):
        configure("persistence true\n", {"pid_file": "x"}, {})


def test_the_configuration_has_the_lines_without_which_messages_would_be_lost() -> None:
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
