"""`imqtt device`: credentials that hold, or no longer hold, when the command returns."""

import contextlib
import os
import pty
import sys
from pathlib import Path

import pytest

from imqtt.cli.login import log_in
from imqtt.cli.mosquitto import Mosquitto
from imqtt.cli.passwords import Passwords
from imqtt.cli.system_user import broker_user
from tests.cli.commands import environment, imqtt


async def test_an_added_device_gets_in(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "alice@tablet", "--data", broker.directory, "--json")
    assert added.status == 0
    for row in added.rows:
        assert log_in(broker.host, broker.port, row["device"], row["password"])


async def test_the_list_shows_who_may_connect(broker: Mosquitto) -> None:
    empty = await imqtt("device", "list", "--data", broker.directory)
    assert "No device has a credential yet" in empty.out
    await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory)
    await imqtt("device", "add", "bob@phone", "--data", broker.directory)
    listed = await imqtt("device", "list", "--data", broker.directory, "--json")
    assert listed.rows == [{"device": "alice@phone", "saved": True}, {"device": "bob@phone", "saved": False}]
    table = await imqtt("device", "list", "--data", broker.directory)
    assert "alice@phone" in table.out
    assert "imqtt-server" not in table.out


async def test_a_revoked_device_is_refused_and_forgotten(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory, "--json")
    password = added.rows[0]["password"]
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory, "--json")
    assert revoked.rows == [{"device": "alice@phone", "revoked": True}]
    assert not log_in(broker.host, broker.port, "alice@phone", password)
    assert not list((broker.directory / "credentials").iterdir())


async def test_a_device_that_exists_gets_a_new_password_only_on_request(broker: Mosquitto) -> None:
    await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    again = await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    assert (again.status, again.out) == (1, "")
    assert again.err == "imqtt: alice@phone has a credential already; --replace gives it a new one\n"
    replaced = await imqtt("device", "add", "alice@phone", "--replace", "--json", "--data", broker.directory)
    assert log_in(broker.host, broker.port, "alice@phone", replaced.rows[0]["password"])


async def test_a_password_can_be_given_without_showing_it_to_other_processes(broker: Mosquitto) -> None:
    for form in ([], ["--json", "--replace"]):
        added = await imqtt(
            "device", "add", "alice@phone", "--password-from", "-", "--data", broker.directory, *form,
            stdin="s3cret\n",
        )  # fmt: skip
        assert added.status == 0
        assert "alice@phone" in added.out
        assert "s3cret" not in added.out
        assert log_in(broker.host, broker.port, "alice@phone", "s3cret")


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_a_password_that_is_typed_is_not_shown(tmp_path: Path, source: str) -> None:
    (tmp_path / "passwords").touch()
    command = ["device", "add", "alice@phone", "--passwords", str(tmp_path / "passwords")]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "imqtt", *command, "--password-from", source, "--pid-file", "/nowhere"],
            environment(),
        )
    said = b""
    while b"Password: " not in said:
        said += os.read(terminal, 1_024)
    os.write(terminal, b"s3cret\n")
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while chunk := os.read(terminal, 1_024):
            said += chunk
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert status == 0, said
    assert b"s3cret" not in said
    assert Passwords(tmp_path / "passwords", tmp_path / "pid").holds("alice@phone", "s3cret")


async def test_who_is_not_there_cannot_be_revoked(broker: Mosquitto) -> None:
    outcome = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory)
    assert outcome.status == 1
    assert outcome.err == "imqtt: alice@phone has no credential; `imqtt device list` shows who has\n"


async def test_a_name_that_is_no_devices_is_refused(broker: Mosquitto) -> None:
    outcome = await imqtt("device", "add", "alice", "--data", broker.directory)
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: 'alice' is not a device: write USER@DEVICE")


async def test_names_of_dots_stay_in_the_data_directory(broker: Mosquitto) -> None:
    await imqtt("device", "add", "../..", "--save", "--data", broker.directory)
    assert [path.name for path in (broker.directory / "credentials").iterdir()] == ["..@.."]
    listed = await imqtt("device", "list", "--data", broker.directory, "--json")
    assert listed.rows == [{"device": "..@..", "saved": True}]


async def test_devices_can_be_added_while_nothing_runs(broker: Mosquitto) -> None:
    await broker.stop()
    added = await imqtt("device", "add", "alice@phone", "--data", broker.directory, "--json")
    await broker.start()
    assert log_in(broker.host, broker.port, "alice@phone", added.rows[0]["password"])


async def test_a_directory_without_data_is_told_apart(tmp_path: Path) -> None:
    outcome = await imqtt("device", "list", "--data", tmp_path / "nowhere")
    assert outcome.status == 1
    assert "nowhere is no data directory" in outcome.err
    assert not (tmp_path / "nowhere").exists()


async def test_a_broker_of_ones_own_is_told_by_its_password_file(broker: Mosquitto) -> None:
    where = ("--passwords", broker.passwords.path)
    pid_file = ("--pid-file", broker.files.pid)
    added = await imqtt("device", "add", "alice@phone", "--json", *where, *pid_file)
    assert added.status == 0
    listed = await imqtt("device", "list", "--json", *where)
    assert [row["device"] for row in listed.rows] == ["alice@phone"]
    assert (await imqtt("device", "revoke", "alice@phone", *where, *pid_file)).status == 0


async def test_the_servers_own_account_is_added_with_its_password(tmp_path: Path) -> None:
    (tmp_path / "broker-password").write_text("0123abcd\n")
    where = ("--passwords", tmp_path / "passwords")
    options = (*where, "--pid-file", tmp_path / "no.pid")
    assert (await imqtt("device", "add", "imqtt-server", *options)).status == 1  # a random one helps nobody
    await imqtt("device", "add", "imqtt-server", *options, "--password-from", tmp_path / "broker-password")
    passwords = Passwords(tmp_path / "passwords", tmp_path / "no.pid")
    assert passwords.holds("imqtt-server", "0123abcd")
    assert (await imqtt("device", "list", *where, "--json")).out == ""


async def test_a_directory_of_imqtt_0_1_is_refused_until_it_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "listeners.json").write_text("{}")
    (tmp_path / "passwords").write_text("alice/phone:$7$101$salt$hash\n")
    for command in (("list",), ("add", "bob@phone"), ("revoke", "alice@phone")):
        refused = await imqtt("device", *command, "--data", tmp_path)
        assert refused.status == 1
        assert f"(re)start `imqtt up --data {tmp_path}`, which migrates it" in refused.err
    assert (tmp_path / "passwords").read_text() == "alice/phone:$7$101$salt$hash\n"


async def test_an_operators_password_file_of_imqtt_0_1_is_migrated_on_request(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    passwords = Passwords(file, tmp_path / "pid")
    passwords.add("alice@phone", "secret")
    file.write_text(file.read_text().replace("@", "/") + "bridge:$7$101$salt$hash\n")
    file.chmod(0o640)
    added = await imqtt("device", "add", "bob@phone", "--passwords", file, "--pid-file", tmp_path / "pid")
    assert added.status == 0
    assert f"(alice/phone): `imqtt device migrate --passwords {file}` renames them" in added.err
    migrated = await imqtt("device", "migrate", "--passwords", file)
    assert migrated.out == "Renamed: alice@phone. Restart Mosquitto now.\n"
    assert passwords.usernames() == ["alice@phone", "bob@phone", "bridge"]
    assert passwords.holds("alice@phone", "secret")
    assert file.stat().st_mode & 0o777 == 0o640  # the broker's group still reads it
    again = await imqtt("device", "migrate", "--passwords", file)
    assert "has no device of imqtt 0.1" in again.out


async def test_the_broker_of_an_operator_reads_a_password_file_that_root_creates(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    await imqtt("device", "add", "alice@phone", "--passwords", tmp_path / "passwords", "--pid-file", "/none")
    user = broker_user()
    assert user is not None
    created = (tmp_path / "passwords").stat()
    assert (created.st_uid, created.st_gid, created.st_mode & 0o777) == (user.uid, user.gid, 0o640)
