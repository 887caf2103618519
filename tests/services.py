"""Real processes for tests: Mosquitto and an imqtt server on free ports, with their own directories."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.mosquitto.process import end_with_parent
from tests.forked import Forked, fork

READY = "imqtt is ready"  # the beginning of the ready line of `imqtt serve`
# A generous upper bound for busy machines. It measures nothing; it only ends a test that hangs.
WITHIN = 120.0


async def eventually(
    condition: Callable[[], Awaitable[object] | object], *, within: float = WITHIN, what: str = ""
) -> None:
    """Returns when `condition` holds; fails after `within` seconds and names `what` was awaited."""
    deadline = asyncio.get_running_loop().time() + within
    pause = 0.001
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s: {what or condition}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.05)


class ServerProcess:
    """`imqtt serve` as a process on a broker, with a store in `directory`.

    `settings` are those of `ServerConfig` and replace the defaults here. `command` is the Python module to
    run, and its arguments. With `forked`, it begins quickly: see `tests.forked`.
    """

    def __init__(
        self,
        broker: Mosquitto,
        directory: Path,
        *,
        command: Sequence[str] = ("imqtt", "serve"),
        forked: bool = False,
        **settings: object,
    ) -> None:
        self.broker = broker
        self._command = command
        self._forked = forked
        self.store = directory / "imqtt.db"
        self.log = directory / "server.log"
        self._settings = settings
        self._process: asyncio.subprocess.Process | Forked | None = None

    @property
    def pid(self) -> int | None:
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self, within: float = WITHIN) -> None:
        """Returns when the server is subscribed to all partitions; fails with its log if it ends first."""
        settings: Mapping[str, object] = {
            "broker_host": INTERNAL_HOST,
            "broker_port": self.broker.internal_port,
            "broker_username": SERVER_ACCOUNT,
            "broker_password": self.broker.server_password,
            "store": f"sqlite:///{self.store}",
            **self._settings,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
        environment |= {f"IMQTT_{name.upper()}": str(value) for name, value in settings.items()}
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            if self._forked:
                self._process = fork(*self._command, env=environment, out=log.fileno())
            else:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", *self._command, env=environment, stdout=log, stderr=log,
                    preexec_fn=end_with_parent(signal.SIGKILL),
                )  # fmt: skip
        process = self._process

        def is_ready() -> bool:
            output = self.log.read_bytes()[start:].decode(errors="replace")
            if process.returncode is not None:
                raise AssertionError(f"imqtt serve ended with {process.returncode}: {output}")
            return READY in output

        try:
            await eventually(is_ready, within=within, what="the server's ready line")
        except AssertionError:
            await self.kill()
            raise

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return await self._end(lambda process: process.terminate())

    async def kill(self) -> int:
        """SIGKILL."""
        return await self._end(lambda process: process.kill())

    async def _end(self, how: Callable[[asyncio.subprocess.Process | Forked], None]) -> int:
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            how(self._process)
        return await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.pid is not None:
            await self.kill()
