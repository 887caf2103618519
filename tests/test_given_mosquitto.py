"""Choosing another Mosquitto for all tests, and the errors for one that cannot be used."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imqtt.mosquitto.installation import executable
from tests.services import WITHIN

SHOW = """\
import shutil
from imqtt.mosquitto.installation import executable
from tests.given_mosquitto import use_given
use_given()
print(executable())
print(shutil.which("mosquitto_pub"))
"""

NO_WEBSOCKETS = """\
echo "mosquitto version 2.0.18"
[ "$1" = -h ] || { echo "Error: Websockets support not available."; exit 3; }
"""


def run_on(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "IMQTT_TEST_MOSQUITTO": str(program)},
        capture_output=True, text=True, check=False, timeout=WITHIN,
    )  # fmt: skip


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def programs() -> Iterator[Path]:
    """A directory that all users may enter, because Mosquitto does not run as root."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


def test_the_given_mosquitto_is_run_with_its_tools(programs: Path) -> None:
    program = script(programs / "sbin" / "mosquitto-9", f'exec "{executable()}" "$@"')
    tool = script(programs / "bin" / "mosquitto_pub", "exit 0")
    done = run_on(program)
    assert done.returncode == 0, done.stderr
    found, found_tool = (Path(line) for line in done.stdout.splitlines())
    assert found.name == "mosquitto"
    assert not found.exists(), "links remain"
    assert found_tool.parent == found.parent, f"{tool} is not used"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be run: No such file"),
        ("echo 'Usage: some other program'", "is not the Mosquitto broker"),
        ("echo 'mosquitto version 1.6.12'", "is Mosquitto 1.6.12; imqtt needs 2.0"),
        (NO_WEBSOCKETS, "built with websockets"),
    ],
)  # fmt: skip
def test_an_unusable_mosquitto_is_refused_with_the_reason(programs: Path, text: str | None, why: str) -> None:
    program = programs / "mosquitto"
    if text is not None:
        script(program, text)
    done = run_on(program)
    assert done.returncode == 1
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
