"""Running `imqtt` commands."""

import asyncio
import contextlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest import mock

from imqtt.cli.app import run
from imqtt.mosquitto.process import end_with_parent
from tests.ports import free_port
from tests.services import WITHIN, eventually


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object of a command with one result."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        """The objects of a list, one on each line."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """The environment without settings for imqtt, and with a terminal width that wraps nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"} | more


async def imqtt(*arguments: object, stdin: str = "", **variables: str) -> Outcome:
    """Runs a command in a thread of this process, which is faster than starting a process.

    Not for commands that take signals. One at a time.
    """
    return await asyncio.to_thread(_run, list(map(str, arguments)), stdin, variables)


def _run(arguments: list[str], stdin: str, variables: dict[str, str]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    with (
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch("sys.stdin", given),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = run(arguments)
    return Outcome(status, out.getvalue(), err.getvalue())


async def imqtt_process(*arguments: object, within: float = WITHIN, **variables: str) -> Outcome:
    """Runs a command as a process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", *map(str, arguments),
        env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


class Up:
    """A process of `imqtt up --json`. `ready` is its first output.

    `files`: the limit of open files of this process, its broker and other children.
    """

    def __init__(self, data: Path, *arguments: object, files: int = 0) -> None:
        self.data = data
        self.ready: dict[str, Any] = {}
        self._arguments = arguments
        self._files = files
        self._log = data.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """Its stderr."""
        return self._log.read_text()

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "imqtt", "up", "--json", "--data", str(self.data), "--verbose",
                "--port", str(free_port()), "--websocket-port", str(free_port()), *map(str, self._arguments),
                env=environment(), stdout=asyncio.subprocess.PIPE, stderr=log, preexec_fn=self._beginning(),
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN):
            line = await self._process.stdout.readline()
        assert line, self.log
        self.ready = json.loads(line)

    def _beginning(self) -> Callable[[], None]:
        ends_with_parent = end_with_parent(signal.SIGKILL)

        def begin() -> None:
            ends_with_parent()
            if self._files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))

        return begin

    async def end(self, how: signal.Signals = signal.SIGINT) -> int:
        """Returns the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        async with asyncio.timeout(WITHIN):
            return await self.process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        await eventually(lambda: not is_alive(self.ready["broker_pid"]), what="the broker's end")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
