"""Settings from flags, the environment and a file."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from imqtt.cli.app import app
from imqtt.cli.settings import BadSetting, server_config
from imqtt.config import SETTINGS, ServerConfig, Setting, read_settings, unknown_variables
from imqtt.errors import SetupError
from imqtt.model import Accepted
from imqtt.mosquitto.broker import Mosquitto
from imqtt.serving import serving
from tests.cli.commands import imqtt
from tests.device import RawDevice
from tests.server.conftest import config_for

NUMBERS = [setting for setting in SETTINGS if setting.number]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
        monkeypatch.delenv(f"{setting.variable}_FILE", raising=False)
    monkeypatch.delenv("IMQTT_CONFIG", raising=False)


def settings_file(directory: Path, *lines: str, mode: int = 0o640) -> str:
    path = directory / "imqtt.toml"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return str(path)


def other(setting_default: str | int) -> str | int:
    return setting_default + 7 if isinstance(setting_default, int) else "something/else"


def test_every_setting_can_be_given_in_the_file(tmp_path: Path) -> None:
    lines = [f"{one.name} = {other(one.default)!r}" for one in SETTINGS]
    config = server_config({"config": settings_file(tmp_path, *lines)})
    assert [getattr(config, one.name) for one in SETTINGS] == [other(one.default) for one in SETTINGS]


def test_every_setting_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in SETTINGS:
        monkeypatch.setenv(one.variable, str(other(one.default)))
    config = server_config({})
    assert [getattr(config, one.name) for one in SETTINGS] == [other(one.default) for one in SETTINGS]


def test_a_flag_overrides_the_environment_which_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, str | None] = {}
    assert server_config(flags).max_batch == ServerConfig().max_batch
    flags["config"] = settings_file(tmp_path, "max_batch = 10")
    assert server_config(flags).max_batch == 10
    monkeypatch.setenv("IMQTT_MAX_BATCH", "20")
    assert server_config(flags).max_batch == 20
    flags["max_batch"] = "30"
    assert server_config(flags).max_batch == 30


def test_the_variable_names_the_file_if_no_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMQTT_CONFIG", settings_file(tmp_path, "max_batch = 10"))
    assert server_config({}).max_batch == 10


def test_a_secret_follows_the_same_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def secret(name: str) -> str:
        (tmp_path / name).write_text(f"{name}\n")
        return str(tmp_path / name)

    flags: dict[str, str | None] = {"config": settings_file(tmp_path, 'broker_password = "in the file"')}
    assert server_config(flags).broker_password == "in the file"
    flags["config"] = settings_file(tmp_path, f'broker_password_file = "{secret("beside")}"')
    assert server_config(flags).broker_password == "beside"
    monkeypatch.setenv("IMQTT_BROKER_PASSWORD", "in the variable")
    assert server_config(flags).broker_password == "in the variable"
    monkeypatch.setenv("IMQTT_BROKER_PASSWORD_FILE", secret("named"))
    assert server_config(flags).broker_password == "named"
    flags["broker_password_file"] = secret("flagged")
    assert server_config(flags).broker_password == "flagged"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('broker_hots = "x"', "broker_hots: no such setting; did you mean broker_host?"),
        ('broker-host = "x"', "broker-host: no such setting; did you mean broker_host?"),
        ('zzz = "x"', "zzz: no such setting"),
        (
            'store_pasword_file = "x"',
            "store_pasword_file: no such setting; did you mean store_password_file?",
        ),
        ("[broker]\nhost = 1", "broker: no such setting"),
        ('max_batch = "500"', "max_batch: '500' is not a whole number"),
        ("max_batch = true", "max_batch: True is not a whole number"),
        ("max_batch = 1.5", "max_batch: 1.5 is not a whole number"),
        ("max_batch = 0", "max_batch: 0 is less than 1 (commands, 1 to 10,000)"),
        ("max_batch = 20_000", "max_batch: 20000 is more than 10000 (commands, 1 to 10,000)"),
        ("partitions = -1", "partitions: -1 is less than 0 (partitions, 0 to 1,024)"),
        ("broker_port = 65536", "broker_port: 65536 is more than 65535 (1 to 65,535)"),
        ("store = 5", "store: not a text in quotes"),
        ("broker_password = 12345", "broker_password: not a text in quotes"),
        ("max_batch = ", "is not TOML"),
    ],
)
def test_an_invalid_line_is_reported_with_its_file_and_key(tmp_path: Path, line: str, message: str) -> None:
    path = settings_file(tmp_path, line)
    with pytest.raises(BadSetting) as refused:
        server_config({"config": path})
    assert path in refused.value.message
    assert message in refused.value.message
    assert "12345" not in refused.value.message


async def test_the_command_reports_an_invalid_line_in_one_line(tmp_path: Path) -> None:
    path = settings_file(tmp_path, 'stor = "sqlite:///x.db"')
    outcome = await imqtt("serve", "--config", path)
    message = f"imqtt: {path}: stor: no such setting; did you mean store?\n"
    assert (outcome.status, outcome.out, outcome.err) == (2, "", message)


async def test_a_missing_settings_file_is_an_error(tmp_path: Path) -> None:
    outcome = await imqtt("serve", IMQTT_CONFIG=str(tmp_path / "none.toml"))
    assert outcome.status == 2
    assert (
        outcome.err == f"imqtt: cannot read the settings in {tmp_path}/none.toml: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ('state_password = "secret"', "use state_password_file"),
        ('state = "redis://:secret@host/0"', "use state_password_file"),
        ('store = "mongodb://imqtt:secret@host/imqtt"', "use store_password_file"),
    ],
)
def test_a_password_in_a_file_that_all_users_can_read_is_refused(
    tmp_path: Path, line: str, instead: str
) -> None:
    with pytest.raises(SetupError, match=instead) as refused:
        read_settings(Path(settings_file(tmp_path, line, mode=0o644)))
    assert "secret@" not in refused.value.reason
    assert '"secret"' not in refused.value.reason
    read_settings(Path(settings_file(tmp_path, line, mode=0o640)))


def test_a_file_without_passwords_may_be_readable_by_all_users(tmp_path: Path) -> None:
    lines = ('store = "mongodb://imqtt@host/imqtt"', 'store_password_file = "/nowhere"')
    read_settings(Path(settings_file(tmp_path, *lines, mode=0o644)))


def test_a_secret_and_its_file_cannot_both_be_given(tmp_path: Path) -> None:
    lines = ('state_password = "a"', 'state_password_file = "b"')
    with pytest.raises(SetupError, match="only one of them"):
        read_settings(Path(settings_file(tmp_path, *lines)))


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda one: one.name)
def test_a_number_is_refused_outside_its_bounds(setting: Setting) -> None:
    name = setting.name
    for number in (setting.least, setting.default, setting.most):
        assert getattr(ServerConfig.from_environment({}, **{name: number}), name) == number
    for number, relation in ((setting.least - 1, "less"), (setting.most + 1, "more"), (10**30, "more")):
        with pytest.raises(SetupError, match=f"^{name}: {number} is {relation} than"):
            ServerConfig.from_environment({}, **{name: str(number)})


@pytest.mark.parametrize("end", ["least", "most"])
async def test_a_server_runs_with_every_number_at_the_end_of_its_bounds(
    broker: Mosquitto, tmp_path: Path, end: str
) -> None:
    # They depend on the broker, on MongoDB, on the time of a start, and on the number of connections.
    others = ("broker_port", "workers", "worker_ttl", "partitions")
    given = {number.name: getattr(number, end) for number in NUMBERS if number.name not in others}
    async with serving(config_for(broker, tmp_path, **given)), RawDevice(broker, "alice@phone") as phone:
        welcome, _ = await phone.hello()
        assert welcome.limits.rate == given["device_rate"]
        assert isinstance(await phone.send("u:alice", "1", "x"), Accepted)


def test_the_description_of_every_number_has_its_unit() -> None:
    described = {number.name: number.bounds for number in NUMBERS}
    assert described["max_packet"] == "bytes, 2,048 to 16,777,216"
    assert described["worker_ttl"] == "seconds, 1 to 60"
    assert [name for name, bounds in described.items() if not re.match("[a-z]", bounds)] == ["broker_port"]


async def test_a_number_out_of_bounds_ends_the_command_in_one_line() -> None:
    outcome = await imqtt("serve", "--max-batch", "20000")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == "imqtt: max_batch: 20000 is more than 10000 (commands, 1 to 10,000)\n"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("IMQTT_MAX_BACTH", "IMQTT_MAX_BATCH"),
        ("IMQTT_STORE_PASWORD_FILE", "IMQTT_STORE_PASSWORD_FILE"),
        ("IMQTT_PARTITION", "IMQTT_PARTITIONS"),
        ("IMQTT_CONFG", "IMQTT_CONFIG"),
        ("IMQTT_BROKER_PASSWORDS", "IMQTT_BROKER_PASSWORD"),
    ],
)
async def test_a_misspelt_variable_is_an_error(name: str, meant: str) -> None:
    outcome = await imqtt("serve", **{name: "1"})
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == f"imqtt: {name}: no such setting; did you mean {meant}?\n"


def test_unknown_variables_of_other_programs_are_listed() -> None:
    kubernetes = ["IMQTT_PORT", "IMQTT_PORT_1883_TCP_ADDR", "IMQTT_SERVICE_HOST", "IMQTT_SERVICE_PORT"]
    known = ["IMQTT_USER", "IMQTT_BROKER", "IMQTT_TEST_REDIS", "IMQTT_DEBUG", "IMQTT_STATE_PASSWORD_FILE"]
    environment = dict.fromkeys([*kubernetes, *known, "IMQTTX", "PATH"], "1")
    assert unknown_variables(environment) == kubernetes


def test_no_password_shows_in_the_settings_repr() -> None:
    config = ServerConfig(
        broker_password="hidden1",
        store="mongodb://imqtt:hidden2@host/imqtt",
        store_password="hidden3",
        state="redis://:hidden4@host/0",
        state_password="hidden5",
    )
    assert "hidden" not in repr(config)
    assert "store='mongodb://imqtt:***@host/imqtt'" in repr(config)
    assert "max_batch=500" in repr(config)


def test_every_variable_of_the_command_line_is_known() -> None:
    options = [option for command in _commands(typer.main.get_command(app)) for option in command.params]
    variables = {str(option.envvar): "" for option in options if getattr(option, "envvar", None)}
    assert len(variables) > 3
    assert unknown_variables(variables) == []


def _commands(command: Any) -> list[Any]:
    return [
        command,
        *(one for child in getattr(command, "commands", {}).values() for one in _commands(child)),
    ]
