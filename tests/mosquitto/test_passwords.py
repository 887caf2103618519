"""Accounts: Mosquitto reads the written file, and changes take effect at once."""

import asyncio
import multiprocessing
import os
import pwd
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from imqtt.cli.names import parse_device
from imqtt.errors import SetupError
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.passwords import SERVER_ACCOUNT, Passwords
from tests.certificates import Authority, TlsMosquitto
from tests.services import eventually


def accepts(broker: Mosquitto, username: str, password: str) -> bool:
    return log_in(broker.host, broker.port, username, password)


async def test_an_added_device_can_log_in_at_once(broker: Mosquitto) -> None:
    password = broker.passwords.add("alice@phone")
    assert accepts(broker, "alice@phone", password)
    assert not accepts(broker, "alice@phone", password + "x")
    assert not accepts(broker, "alice@tablet", password)


async def test_a_login_over_tls_is_accepted_or_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    certificate = authority.issue("broker", hosts="IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=authority.file)
    async with TlsMosquitto(tmp_path / "broker", authority, certificate) as broker:
        broker.passwords.add("alice@phone", "secret")
        assert log_in("127.0.0.1", broker.tls_port, "alice@phone", "secret", trusting)
        assert not log_in("127.0.0.1", broker.tls_port, "alice@phone", "wrong", trusting)
        with pytest.raises(ssl.SSLCertVerificationError):
            log_in("127.0.0.1", broker.tls_port, "alice@phone", "secret", ssl.create_default_context())


async def test_a_changed_password_replaces_the_old_one_at_once(broker: Mosquitto) -> None:
    old = broker.passwords.add("alice@phone")
    new = broker.passwords.add("alice@phone")
    assert not accepts(broker, "alice@phone", old)
    assert accepts(broker, "alice@phone", new)


async def test_a_given_password_is_used_unchanged(broker: Mosquitto) -> None:
    assert broker.passwords.add("alice@phone", "päss:wörd") == "päss:wörd"
    assert accepts(broker, "alice@phone", "päss:wörd")


async def test_a_removed_device_is_refused_and_its_connection_ended(broker: Mosquitto) -> None:
    password = broker.passwords.add("alice@phone")
    other = broker.passwords.add("bob@phone")
    with connected(broker, "alice@phone", password) as alice, connected(broker, "bob@phone", other) as bob:
        assert broker.passwords.remove_all(["alice@phone"])
        assert await asyncio.to_thread(alice.recv, 1) == b""
        bob.sendall(b"\xc0\0")  # PINGREQ
        assert bob.recv(2) == b"\xd0\0"
    assert not accepts(broker, "alice@phone", password)
    assert broker.passwords.usernames() == ["bob@phone", SERVER_ACCOUNT]


async def test_removing_an_unknown_device_returns_false(broker: Mosquitto) -> None:
    assert not broker.passwords.remove_all(["alice@phone"])


async def test_many_devices_are_added_with_one_reload(broker: Mosquitto) -> None:
    given = broker.passwords.add_all([f"user{number}@phone" for number in range(200)])
    assert len(set(given.values())) == 200
    assert accepts(broker, "user0@phone", given["user0@phone"])
    assert accepts(broker, "user199@phone", given["user199@phone"])
    await eventually(lambda: broker.log.read_text().count("Reloading config") == 1)


def test_mosquittos_tool_and_imqtt_can_write_the_same_file(tmp_path: Path) -> None:
    passwords = Passwords(tmp_path / "passwords", tmp_path / "pid")
    passwords.add("alice@phone", "secret")
    tool = ["mosquitto_passwd", "-b", str(passwords.path), "bob@phone", "hidden"]
    subprocess.run(tool, check=True, capture_output=True)
    assert passwords.usernames() == ["alice@phone", "bob@phone"]
    assert passwords.holds("alice@phone", "secret")
    assert passwords.holds("bob@phone", "hidden")
    assert not passwords.holds("bob@phone", "secret")


def test_concurrent_processes_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_twenty, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(Passwords(path, tmp_path / "pid").usernames()) == 60


def _add_twenty(path: Path, writer: int) -> None:
    passwords = Passwords(path, path.with_name("pid"))
    for number in range(20):
        passwords.add(f"user{writer}@device{number}")


@pytest.mark.parametrize(
    "name",
    ["alice", "alice@", "@phone", "alice@phone@x", "al ice@phone", "alice@ph+ne", "älice@phone", "a:b@c", "",
     "alice/phone", "alice@pho/ne", "a" * 60 + "@phone", "alice@phone\nroot"],
)  # fmt: skip
def test_a_name_that_is_not_a_device_is_refused(tmp_path: Path, name: str) -> None:
    passwords = Passwords(tmp_path / "passwords", tmp_path / "pid")
    with pytest.raises(SetupError, match="USER@DEVICE"):
        passwords.add(name)
    assert passwords.usernames() == []


def test_a_device_is_parsed_with_either_separator() -> None:
    assert parse_device("alice@phone") == parse_device("alice/phone") == ("alice", "phone")


@pytest.mark.parametrize("name", ["alice", "alice/phone/x", "alice@phone/x", "a" * 60 + "/phone", "", "/"])
def test_an_invalid_device_is_refused_with_the_correct_form(name: str) -> None:
    with pytest.raises(SetupError, match="USER@DEVICE"):
        parse_device(name)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="password file"):
        Passwords(tmp_path / "file" / "passwords", tmp_path / "pid").add("alice@phone")


def connected(broker: Mosquitto, username: str, password: str) -> socket.socket:
    connection = socket.create_connection((broker.host, broker.port), 5)
    texts = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in ("any", username, password))
    body = b"\0\4MQTT\4\xc2\0\x3c" + texts
    connection.sendall(bytes((0x10, len(body))) + body)
    assert connection.recv(4) == b"\x20\2\0\0"
    return connection


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
async def test_a_file_keeps_its_mode_and_others_get_no_access(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "passwords"
    path.touch()
    path.chmod(mode)
    Passwords(path, tmp_path / "no.pid").add("alice@phone")
    assert path.stat().st_mode & 0o777 == mode & 0o770


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
async def test_a_file_that_root_creates_belongs_to_the_brokers_account(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    passwords = Passwords(path, tmp_path / "no.pid", account="nobody")
    for name in ("alice@phone", "alice@tablet"):  # created, and changed
        passwords.add(name)
        assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert path.stat().st_mode & 0o777 == 0o640
    unknown = Passwords(tmp_path / "other", tmp_path / "no.pid", account="no-such-account")
    unknown.add("alice@phone")
    assert unknown.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damaged",
    [
        "$7$x$c2FsdA==$ZGln",
        "$7$101$c2F$ZGln",
        "$7$0$c2FsdA==$ZGln",
        "$7$999999999999$c2FsdA==$ZGln",
        "$7$101$$",
    ],
)
def test_a_damaged_line_matches_no_password_and_can_be_replaced(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "passwords"
    file.write_text(f"alice@phone:{damaged}\nbob@phone:$7$101$c2FsdA==$ZGln\n")
    passwords = Passwords(file, tmp_path / "pid")
    assert not passwords.holds("alice@phone", "secret")
    passwords.add("alice@phone", "secret")
    assert passwords.holds("alice@phone", "secret")
    assert passwords.usernames() == ["alice@phone", "bob@phone"]


def test_a_file_that_is_not_a_password_file_is_reported_and_left_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_bytes(b"\xff\xfe:\n")
    with pytest.raises(SetupError, match=f"{file} is not a password file"):
        Passwords(file, tmp_path / "pid").add("alice@phone")
    assert file.read_bytes() == b"\xff\xfe:\n"
