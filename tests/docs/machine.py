"""A separate machine for each page, so that its commands run unchanged.

Linux namespaces give it a network in which nothing listens yet, and directories whose changes are in memory:
the checkout as `make` leaves it, and for root /etc, /opt, /run and /var. Everything else (programs, users,
/tmp) is this machine's.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.services import WITHIN, eventually

IS_ROOT = os.geteuid() == 0
SYSTEM = (Path("/etc"), Path("/opt"), Path("/run"), Path("/var"))
DIRECTORIES = (*SYSTEM, ROOT) if IS_ROOT else (ROOT,)
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[^\[]|\r")


def broker_directory() -> list[str]:
    """The directories of the Mosquitto that `IMQTT_TEST_MOSQUITTO` names, if it is set."""
    program = os.environ.get("IMQTT_TEST_MOSQUITTO")
    if not program:
        return []
    sbin = Path(program).parent
    return [str(sbin), *(str(place) for place in (sbin.parent / "bin",) if place.is_dir())]


def python_directory() -> list[str]:
    """The directory of a `python3` of this process's version, unless the machine's own has that version."""
    ask = "import sys; print(*sys.version_info[:3])"
    own = subprocess.run(["/usr/bin/python3", "-c", ask], capture_output=True, text=True, check=False).stdout
    return [] if own.split() == [str(part) for part in sys.version_info[:3]] else [f"{sys.base_prefix}/bin"]


def as_root() -> list[str]:
    """The options that make an ordinary user root in a new namespace; none for root."""
    return [] if IS_ROOT else ["--user", "--map-root-user"]


needs_root = pytest.mark.skipif(not IS_ROOT, reason="the commands of the page need root")


def needs_namespaces() -> None:
    """Skips the test if this machine has no namespaces for its users."""
    probe = ["unshare", *as_root(), "--net", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine has no namespaces for its users, so pages cannot be followed here")


class Machine:
    """The namespaces, and the processes in them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.environment = {
            "HOME": str(scratch / "home"),
            "LANG": "C.UTF-8",
            "PATH": ":".join([*broker_directory(), *python_directory(), USUAL_PATH]),
            "TERM": "xterm-256color",
        }
        self._terminals: list[Terminal] = []

    async def start(self) -> None:
        self.scratch.mkdir()
        data = [ROOT / name for name in ("data", "imqtt.db", "deploy/secrets")]  # left by earlier work
        self._holder = await asyncio.create_subprocess_exec(
            "unshare", *as_root(), "--net", "--mount",
            sys.executable, Path(__file__).with_name("namespaced.py"),
            self.scratch, ":".join(map(str, DIRECTORIES)), ":".join(map(str, data)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        async with asyncio.timeout(WITHIN):
            assert await self._holder.stdout.readline() == b"ready\n"

    async def stop(self) -> None:
        """Ends all processes in the namespaces, and the namespaces with them."""
        for terminal in self._terminals:
            terminal.close()
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        await self._holder.wait()

    def inside(self, *command: object) -> list[str]:
        """The command line that runs `command` in the namespaces."""
        user = ["--user", "--preserve-credentials"] if as_root() else []
        target = ["nsenter", "--target", str(self._holder.pid), *user, "--net", "--mount", "--"]
        return [*target, *map(str, command)]

    async def run(self, command: str, terminal: "Terminal | None" = None) -> str:
        """Runs a command and returns its output of both streams. Fails unless the command succeeds."""
        return await (terminal or self.terminal()).run(command)

    def terminal(self) -> "Terminal":
        terminal = Terminal(self, len(self._terminals))
        self._terminals.append(terminal)
        return terminal

    async def read(self, path: str) -> str:
        return await self.run(f"cat {shlex.quote(path)}")

    def _processes(self) -> list[int]:
        """All processes in this network except the one that holds it."""
        own = Path(f"/proc/{self._holder.pid}/ns/net").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._holder.pid:
                with contextlib.suppress(OSError):
                    if (entry / "ns" / "net").readlink() == own:
                        found.append(int(entry.name))
        return found


class Terminal:
    """A shell: its directory and variables stay from one command to the next."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine = machine
        self._state = machine.scratch.with_name(f"{machine.scratch.name}-terminal{number}")
        self._state.write_text(f"cd {shlex.quote(str(ROOT))}\n")
        self._screen: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._shown = ""

    def copy(self) -> "Terminal":
        """Another terminal in the same directory and with the same variables."""
        other = self._machine.terminal()
        other._state.write_text(self._state.read_text())
        return other

    def _shell(self, command: str) -> list[str]:
        program = (
            '. "$1"; eval "$2"; status=$?; { export -p; printf "cd %q\\n" "$PWD"; } > "$1"; exit $status'
        )
        return self._machine.inside("bash", "-c", program, "bash", self._state, command)

    async def run(self, command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._shell(command), env=self._machine.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(WITHIN):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise AssertionError(f"not over after {WITHIN:g} s: {command}") from None
        assert process.returncode == 0, f"{command}\nends with {process.returncode}: {out.decode()}"
        return out.decode()

    async def start(self, command: str) -> None:
        """Starts a command that keeps running, on a pseudoterminal."""
        self._screen, end = pty.openpty()
        self._process = await asyncio.create_subprocess_exec(
            *self._shell(command), env=self._machine.environment, stdin=end, stdout=end, stderr=end,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(end)
        os.set_blocking(self._screen, False)
        asyncio.get_running_loop().add_reader(self._screen, self._read)

    async def shows(self, text: str) -> None:
        def done() -> bool:
            return text in self._shown or self._screen is None

        with contextlib.suppress(AssertionError):
            await eventually(done, within=WITHIN)
        if text not in self._shown:
            raise AssertionError(f"{text!r} is not on the screen, but:\n{self._shown[-3_000:]}")

    def type(self, keys: str) -> None:
        assert self._screen is not None
        os.write(self._screen, keys.encode())

    async def interrupt(self) -> int:
        """Types Ctrl-C and returns the command's exit status."""
        assert self._process is not None
        self.type("\x03")
        async with asyncio.timeout(WITHIN):
            return await self._process.wait()

    async def terminate(self) -> int:
        """Sends SIGTERM and returns the exit status of a command that began with `exec`."""
        assert self._process is not None
        self._process.terminate()
        async with asyncio.timeout(WITHIN):
            return await self._process.wait()

    def close(self) -> None:
        if self._screen is not None:
            asyncio.get_running_loop().remove_reader(self._screen)
            os.close(self._screen)
            self._screen = None

    @property
    def pid(self) -> int:
        """The pid of the command that keeps running, if it began with `exec`."""
        assert self._process is not None
        return self._process.pid

    @property
    def shown(self) -> str:
        return self._shown

    def _read(self) -> None:
        assert self._screen is not None
        try:
            data = os.read(self._screen, 65_536)
        except OSError:  # the command has ended
            self.close()
            return
        self._shown += CONTROL.sub("", data.decode(errors="replace"))


@contextlib.asynccontextmanager
async def machine(directory: Path) -> AsyncIterator[Machine]:
    needs_namespaces()
    machine = Machine(directory / "machine")
    await machine.start()
    try:
        yield machine
    finally:
        await machine.stop()
