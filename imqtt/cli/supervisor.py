"""`imqtt serve --workers N`: a parent that keeps N server processes running.

A Python process uses one core. The processes are workers like those on other machines, and share the
partitions through the same Redis.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import replace
from random import random

import msgspec

from imqtt.config import SETTINGS, ServerConfig
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError

log = logging.getLogger("imqtt.supervisor")

LIFELINE = "IMQTT_LIFELINE"  # in a worker's environment: it ends when its parent closes its stdin
END_SECONDS = 15.0  # for a worker to finish; then it is killed
STEADY_SECONDS = 60.0  # after this time, the next wait is the shortest again


async def run(config: ServerConfig, say_ready: Callable[[int], None]) -> None:
    """Keeps `config.workers` processes running until cancelled.

    Calls `say_ready` with the number of partitions when all workers are ready. Raises `SetupError` if a
    worker ends before it is ready; its error is on stderr.
    """
    if not config.store.startswith("mongodb") or not config.state.startswith(("redis", "unix")):
        raise SetupError(
            f"{config.workers} workers need a store and a state that many processes can use: give --store "
            "mongodb://... and --state redis://..., or omit --workers"
        )
    members = [_Member(number, _settings_of(config, number)) for number in range(config.workers)]
    try:
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(member.keep(), name=f"worker-{member.number}")
            partitions = [await member.ready for member in members]
            say_ready(partitions[0])
    except ExceptionGroup as group:
        # Not `except*`: before 3.11.4 (Debian 12 has 3.11.2), Python wraps its error in another group.
        ended, others = group.split(SetupError)
        if ended is None or others is not None:
            raise
        raise ended.exceptions[0] from None


def _settings_of(config: ServerConfig, number: int) -> ServerConfig:
    host, colon, port = config.health.rpartition(":")
    health = f"{host}:{int(port) + number}" if colon and port.isdecimal() else config.health
    return replace(config, workers=1, health=health)


class _Member:
    """A process that is restarted when it ends."""

    def __init__(self, number: int, config: ServerConfig) -> None:
        self.number = number
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
        settings = {one.variable: str(getattr(config, one.name)) for one in SETTINGS}
        self._environment = kept | settings | {LIFELINE: "stdin"}

    async def keep(self) -> None:
        attempt = 0
        while True:
            started = time.monotonic()
            status = await self._once()
            if not self.ready.done():
                raise SetupError(f"worker {self.number} ended with status {status} before it was ready")
            attempt = 1 if time.monotonic() - started > STEADY_SECONDS else attempt + 1
            wait = backoff(attempt, random())
            log.error("worker %d ended with status %s; restarting it in %.1f s", self.number, status, wait)
            await asyncio.sleep(wait)

    async def _once(self) -> int:
        command = (sys.executable, "-m", "imqtt", "serve", "--json")
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self._environment,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C reaches only the parent, which then ends its workers
        )
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            while line := await process.stdout.readline():
                with contextlib.suppress(msgspec.DecodeError):
                    output = msgspec.json.decode(line, type=dict[str, object])
                    if output.get("ready") and not self.ready.done():
                        self.ready.set_result(int(str(output["partitions"])))
            return await process.wait()
        finally:
            await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        log.error("worker process %d does not end and is killed", process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
