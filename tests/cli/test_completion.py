"""Shell completion."""

import contextlib
import io
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from imqtt.cli import main
from imqtt.cli.data import DataDirectory
from imqtt.model import Device
from tests.cli.commands import environment
from tests.services import WITHIN


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with credentials on which nothing runs."""
    (tmp_path / "listeners.json").write_text("{}")
    (tmp_path / "broker").mkdir()
    names = ("alice@phone", "alice@tablet", "bob@laptop", "imqtt-server")
    (tmp_path / "broker" / "passwords").write_text("".join(f"{name}:$7$101$salt$hash\n" for name in names))
    DataDirectory(tmp_path).save(Device("alice", "phone"), "secret")
    return tmp_path


def offered(line: str, **variables: str) -> list[str]:
    """The completions of the last word of a command line, as zsh and fish split it."""
    asked = {
        "_IMQTT_COMPLETE": "complete_bash",
        "COMP_WORDS": line.replace(" ", "\n"),
        "COMP_CWORD": str(line.count(" ")),
    }
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(**asked, **variables), clear=True),
        contextlib.redirect_stdout(out),
    ):
        assert main() == 0
    return out.getvalue().split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("imqtt device revoke al", ["alice@phone", "alice@tablet"]),
        ("imqtt device revoke alice@t", ["alice@tablet"]),
        ("imqtt device revoke alice@phone ", ["alice@tablet", "bob@laptop"]),
        ("imqtt device add --replace b", ["bob@laptop"]),
        ("imqtt chat ", ["alice", "bob"]),
        ("imqtt send b", ["bob"]),
        ("imqtt tail alice b", ["bob"]),
        ("imqtt history b", ["bob"]),
        ("imqtt recall b", ["bob"]),
        ("imqtt chat bob --user ", ["alice"]),
        ("imqtt chat bob --user alice --device ", ["phone"]),
        ("imqtt chat bob --user bob --device ", []),
        ("imqtt device revoke carol", []),
    ],
)
def test_users_and_devices_are_offered(data: Path, line: str, words: list[str]) -> None:
    assert offered(line, IMQTT_DATA=str(data)) == words


def test_the_data_directory_may_be_an_option(data: Path) -> None:
    assert offered(f"imqtt device revoke --data {data} b") == ["bob@laptop"]


def test_files_that_cannot_be_read_offer_nothing(tmp_path: Path) -> None:
    assert offered("imqtt chat ", IMQTT_DATA=str(tmp_path / "nowhere")) == []
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "passwords").write_bytes(b"alice@phone:\xff\n")
    assert offered("imqtt chat ", IMQTT_DATA=str(tmp_path)) == []


@pytest.fixture
def bash(data: Path, tmp_path: Path) -> Iterator["Bash"]:
    path = shutil.which("bash")
    if path is None:
        pytest.skip("bash is not installed")
    bash = Bash(path, data)
    yield bash
    bash.end()


def test_bash_completes_devices_though_it_splits_words_at_the_at_sign(bash: "Bash") -> None:
    assert bash.completed("imqtt device revoke bo") == "imqtt device revoke bob@laptop "
    assert bash.completed("imqtt device revoke al") == "imqtt device revoke alice@"
    assert bash.completed("imqtt device revoke alice@t") == "imqtt device revoke alice@tablet "
    assert bash.completed("imqtt device revoke bob@") == "imqtt device revoke bob@laptop "
    assert bash.completed("imqtt chat b") == "imqtt chat bob "


def test_completion_imports_no_heavy_modules() -> None:
    check = (
        "import sys\nfrom imqtt.cli.app import app\nimport imqtt.cli.completion\n"
        "heavy = {'google.protobuf', 'aiomqtt', 'mqtt5', 'sqlite3', 'prompt_toolkit', 'uvloop', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Bash:
    """An interactive bash in a terminal, with imqtt's completion."""

    def __init__(self, path: str, data: Path) -> None:
        script = subprocess.run(
            [sys.executable, "-m", "imqtt"],
            env=environment(_IMQTT_COMPLETE="source_bash"), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        (data / "rc").write_text(f"PS1='READY '\n{script}")
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            variables = environment(TERM="dumb", IMQTT_DATA=str(data), PATH=programs)
            os.execve(path, [path, "--noprofile", "--rcfile", str(data / "rc"), "-i"], variables)
        self._read_until("READY")

    def completed(self, line: str) -> str:
        """The line after a TAB at its end."""
        os.write(self._terminal, f"{line}\t".encode())
        # Ctrl-A, a mark and Return print the present line.
        os.write(self._terminal, b"\x01echo '<\x05>'\n")
        return self._read_until(r"^<(.*)>\r?$")

    def end(self) -> None:
        os.close(self._terminal)
        os.waitpid(self._process, 0)

    def _read_until(self, pattern: str) -> str:
        """Waits for a match. Returns its last group."""
        output = ""
        deadline = time.monotonic() + WITHIN
        while (found := re.search(pattern, output, re.MULTILINE)) is None:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, output
            output += os.read(self._terminal, 4_096).decode()
        return found.group(found.lastindex or 0)
