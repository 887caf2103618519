"""Help and errors of the command line."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from imqtt.config import ServerConfig
from tests.cli.commands import imqtt, imqtt_process

COMMANDS = [
    (), ("up",), ("serve",), ("device",), ("device", "add"), ("device", "list"), ("device", "revoke"),
    ("device", "migrate"), ("device", "forget"), ("send",), ("recall",), ("tail",), ("history",), ("chat",),
    ("outbox",), ("outbox", "list"), ("outbox", "discard"), ("workers",), ("store",), ("store", "copy"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_every_command_has_help(command: tuple[str, ...]) -> None:
    outcome = await imqtt(*command, "--help")
    assert outcome.status == 0
    assert "Usage: " + " ".join(("imqtt", *command)) in outcome.out
    assert len(outcome.out) > 300
    assert outcome.err == ""


async def test_every_setting_is_a_flag_with_its_variable_and_default() -> None:
    output = (await imqtt("serve", "--help")).out
    for setting in fields(ServerConfig):
        flag = "--" + setting.name.replace("_", "-")
        assert flag in output
        assert f"IMQTT_{setting.name.upper()}" in output
        if setting.metadata["secret"]:
            assert flag + "-file" in output
        elif setting.default:
            assert str(setting.default) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--max-batch", "many"), "max_batch: 'many' is not a whole number"),
        (("serve", "--max-batch", "0"), "max_batch: 0 is less than 1 (commands, 1 to 10,000)"),
        (("serve", "--partitions", "5000"), "partitions: 5000 is more than 1024 (partitions, 0 to 1,024)"),
        (("serf",), "No such command 'serf'. Did you mean 'serve'?"),
        (("device", "add"), "Missing argument 'USER@DEVICE'."),
    ],
)
async def test_usage_errors_print_one_line_and_exit_with_status_2(
    arguments: tuple[str, ...], message: str
) -> None:
    outcome = await imqtt(*arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"imqtt: {message}\n")


async def test_a_misspelt_flag_is_reported_with_a_suggestion() -> None:
    outcome = await imqtt("serve", "--max-bach", "1")
    assert outcome.status == 2
    assert outcome.err.startswith("imqtt: No such option: --max-bach (Possible options: --max-batch")
    assert outcome.err.count("\n") == 1


async def test_a_bad_variable_is_reported_like_a_bad_flag() -> None:
    outcome = await imqtt("serve", IMQTT_BROKER_PORT="mqtt")
    assert (outcome.status, outcome.err) == (2, "imqtt: broker_port: 'mqtt' is not a whole number\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--store", "mongo://nowhere"), "unknown kind of store 'mongo://nowhere'"),
        (("--state", "redis:"), "unknown kind of state 'redis:'"),
        (
            ("--broker-password-file", "/nowhere/password"),
            "cannot read a password from /nowhere/password: No such file",
        ),
    ],
)
async def test_serve_refuses_impossible_settings_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'imqtt.db'}"
    outcome = await imqtt_process("serve", *arguments, IMQTT_STORE=store)
    assert outcome.status == 1
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


async def test_the_version_is_printed() -> None:
    assert (await imqtt("--version")).out.startswith("imqtt 0.")


async def test_imqtt_runs_as_a_module_with_its_exit_status() -> None:
    wrong = await imqtt_process("serf")
    assert (wrong.status, wrong.err) == (2, "imqtt: No such command 'serf'. Did you mean 'serve'?\n")


def test_help_imports_no_heavy_modules() -> None:
    check = (
        "import sys\nsys.argv = ['imqtt', 'up', '--help']\nfrom imqtt.cli import main\nmain()\n"
        "heavy = {'aiomqtt', 'mqtt5', 'sqlite3', 'prompt_toolkit', 'uvloop', 'asyncio', 'imqtt.server.app',"
        " 'imqtt.client'}\nprint(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
