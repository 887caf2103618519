"""The commands of the pages that no test runs as they stand, each with the reason, and what is checked instead.

Every other command is run. One that is new in a page and cannot be run makes its test fail.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import typer.main
import yaml

from imqtt.cli.app import app
from tests.docs.pages import ROOT

type_of_check = Callable[[str], None]


def is_make_target(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def is_for_compose(command: str) -> None:
    """The file, the service and, for what it runs in one, the command exist."""
    words = command.split()
    whole = yaml.safe_load((ROOT / words[words.index("-f") + 1]).read_text())
    action = next(word for word in ("up", "run", "exec") if word in words)
    rest = words[words.index(action) + 1 :]
    if action == "up":
        scaled = [rest[number + 1].partition("=")[0] for number, word in enumerate(rest) if word == "--scale"]
        assert set(scaled) <= set(whole["services"])
        return
    [service, *inner] = [word for word in rest if not word.startswith("--")]
    assert service in whole["services"]
    is_imqtt_command(" ".join(inner if inner[0] == "imqtt" else ["imqtt", service, *inner]))


def is_imqtt_command(command: str) -> None:
    """The command and its options exist, and what is given for them can be read. It is not run."""
    _, *words = command.split()
    group = typer.main.get_command(app)
    name = "imqtt"
    while isinstance(group, click.Group) and words and words[0] in group.commands:
        name, group, words = f"{name} {words[0]}", group.commands[words[0]], words[1:]
    group.make_context(name, words, resilient_parsing=False).close()


def is_packages(command: str) -> None:
    assert re.fullmatch(r"apt-get install( [a-z0-9-]+)+", command)


def nothing(command: str) -> None:
    """Somebody else's program, with nothing of ours in its arguments."""
    assert not [word for word in command.split() if "/" in word and not Path(word).is_absolute()], command


class Reason(NamedTuple):
    why: str
    check: type_of_check


NOT_RUN = {
    r"make (test|check)": Reason("it is what runs this", is_make_target),
    r"make (demo|chaos|soak|fuzz|bench)": Reason("it takes minutes; CI and releases run it", is_make_target),
    r"make (proto|docs|lock|format)": Reason("it changes the checkout; `make check` says what it would", is_make_target),
    r"python -m tests\.simulation --seeds 100000": Reason("it takes half an hour; test_pages runs three", nothing),
    r"docker compose .*": Reason("it needs a container engine; its scripts run in tests/deploy", is_for_compose),
    r"apt-get install .*": Reason("it needs a network; `make` has installed them", is_packages),
    r"systemctl (restart|start|stop|enable --now|daemon-reload).*": Reason(
        "it needs systemd; what the unit says is started and stopped in its place", nothing
    ),
}


def reason(command: str) -> Reason | None:
    """Why a command is not run; None for one that is."""
    bare = re.sub(r"\s+#.*$", "", command)
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, bare, re.DOTALL)), None)
