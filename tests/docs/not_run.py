"""The commands of the pages that no test runs unchanged: the reason, and the check that replaces the run.

Every other command is run, so a new command that cannot be run fails its page's test.
"""

import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

import typer.main
import yaml
from typer.core import TyperCommand

from imqtt.cli.app import app
from tests.docs.pages import ROOT

Check = Callable[[str], None]
"""Fails for a command that could not be run."""


def is_make_target(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def is_for_compose(command: str) -> None:
    """Checks that the file and the service exist, and the command if it runs one in a service."""
    words = command.split()
    whole = yaml.safe_load((ROOT / words[words.index("-f") + 1]).read_text())
    action = next(word for word in ("up", "run", "exec") if word in words)
    rest = words[words.index(action) + 1 :]
    if action == "up":
        scaled = [rest[number + 1].partition("=")[0] for number, word in enumerate(rest) if word == "--scale"]
        assert not set(scaled) - set(whole["services"]), scaled
        return
    [service, *inner] = [word for word in rest if not word.startswith("--")]
    assert service in whole["services"], service
    is_imqtt_command(" ".join(inner if inner[0] == "imqtt" else ["imqtt", service, *inner]))


def is_imqtt_command(command: str) -> None:
    """Checks that the command and its options exist and that its arguments can be parsed."""
    found, words = _found(command)
    found.make_context("imqtt", words).close()


def is_mentioned_imqtt_command(text: str) -> None:
    """Checks that the command and its options exist. Required arguments may be missing."""
    found, words = _found(text)
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        assert not word.startswith("-") or word.partition("=")[0] in options | {"--help"}, f"{text}: {word}"


def _found(command: str) -> tuple[TyperCommand, list[str]]:
    """The command that a line names, and the words that follow it."""
    found = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    while commands := getattr(found, "commands", None):
        if not words or words[0].startswith("-"):
            break
        assert words[0] in commands, f"imqtt has no command {words[0]!r}"
        found, words = commands[words[0]], words[1:]
    return found, words


def is_for_units(command: str) -> None:
    """Checks that each unit is one of imqtt's, or the broker's."""
    for unit in command.split()[2:]:
        if not unit.startswith("-"):
            assert unit == "mosquitto" or (ROOT / "deploy" / f"{unit}.service").exists(), unit


def is_packages(command: str) -> None:
    assert re.fullmatch(r"apt-get install( [a-z0-9-]+)+", command)


def has_its_module(command: str) -> None:
    module = command.split()[2].replace(".", "/")
    assert (ROOT / module / "__main__.py").exists(), module


class Reason(NamedTuple):
    why: str
    check: Check


NOT_RUN = {
    r"make (test|check)": Reason("it runs these tests", is_make_target),
    r"make (demo|verify|chaos|soak|fuzz|bench)": Reason(
        "it takes minutes; CI and releases run it", is_make_target
    ),
    r"make (proto|docs|lock|format)": Reason(
        "it changes the checkout; `make check` tells what would change", is_make_target
    ),
    r"python -m tests\.verification\.simulation --seeds 100000": Reason(
        "it takes half an hour; test_pages runs three", has_its_module
    ),
    r"docker compose .*": Reason(
        "it needs a container engine; its scripts run in tests/deploy", is_for_compose
    ),
    r"apt-get install .*": Reason("it needs a network; `make` has installed them", is_packages),
    r"systemctl (restart|start|stop|enable --now|daemon-reload).*": Reason(
        "it needs systemd; the unit's command is started and stopped instead", is_for_units
    ),
}


def reason(command: str) -> Reason | None:
    """Why a command is not run; None if it is run."""
    bare = re.sub(r"\s+#.*$", "", command)
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, bare, re.DOTALL)), None)
