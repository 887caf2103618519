"""`imqtt device`: credentials that hold, or no longer hold, when the command returns."""

from pathlib import Path

from imqtt.cli.login import log_in
from imqtt.cli.mosquitto import Mosquitto
from tests.cli.commands import imqtt


async def test_an_added_device_gets_in(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "alice@tablet", "--data", broker.directory, "--json")
    assert added.status == 0
    for row in added.json:
        assert log_in(broker.host, broker.port, row["device"], row["password"])


async def test_the_list_shows_who_may_connect(broker: Mosquitto) -> None:
    empty = await imqtt("device", "list", "--data", broker.directory)
    assert "No device has a credential yet" in empty.out
    await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory)
    await imqtt("device", "add", "bob@phone", "--data", broker.directory)
    listed = await imqtt("device", "list", "--data", broker.directory, "--json")
    assert listed.json == [{"device": "alice@phone", "saved": True}, {"device": "bob@phone", "saved": False}]
    table = await imqtt("device", "list", "--data", broker.directory)
    assert "alice@phone" in table.out
    assert "imqtt-server" not in table.out


async def test_a_revoked_device_is_refused_and_forgotten(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory, "--json")
    password = added.json[0]["password"]
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory, "--json")
    assert revoked.json == [{"device": "alice@phone", "revoked": True}]
    assert not log_in(broker.host, broker.port, "alice@phone", password)
    assert not list((broker.directory / "credentials").iterdir())


async def test_a_device_that_exists_gets_a_new_password_only_on_request(broker: Mosquitto) -> None:
    await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    again = await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    assert (again.status, again.out) == (1, "")
    assert again.err == "imqtt: alice@phone has a credential already; --replace gives it a new one\n"
    replaced = await imqtt("device", "add", "alice@phone", "--replace", "--json", "--data", broker.directory)
    assert log_in(broker.host, broker.port, "alice@phone", replaced.json[0]["password"])


async def test_a_password_can_be_given_without_showing_it_to_other_processes(broker: Mosquitto) -> None:
    await imqtt(
        "device", "add", "alice@phone", "--password-from", "-", "--data", broker.directory, stdin="s3cret\n"
    )
    assert log_in(broker.host, broker.port, "alice@phone", "s3cret")


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
    assert listed.json == [{"device": "..@..", "saved": True}]


async def test_devices_can_be_added_while_nothing_runs(broker: Mosquitto) -> None:
    await broker.stop()
    added = await imqtt("device", "add", "alice@phone", "--data", broker.directory, "--json")
    await broker.start()
    assert log_in(broker.host, broker.port, "alice@phone", added.json[0]["password"])


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
    assert [row["device"] for row in listed.json] == ["alice@phone"]
    assert (await imqtt("device", "revoke", "alice@phone", *where, *pid_file)).status == 0
