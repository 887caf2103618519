"""`imqtt serve --workers N`: a parent that keeps N server processes running.

Python runs one thread at a time, so a machine's cores are used by processes. They are workers like those of
other machines, and share the partitions through the same Redis.
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

LIFELINE = "IMQTT_LIFELINE"  # in a worker's environment: it ends when its stdin, the parent's, does
END_SECONDS = 15.0  # for a worker to finish what it began; then it is killed
STEADY_SECONDS = 60.0  # a worker that ran for so long is started again at once


async def run(config: ServerConfig, say_ready: Callable[[int], None]) -> None:
    """Keeps `config.workers` processes running, until cancelled.

    `say_ready` gets the number of partitions when all of them serve. Raises `SetupError` when a worker ends
    before it has served: what it said of that is on stderr.
    """
    if not config.store.startswith("mongodb") or not config.state.startswith(("redis", "unix")):
        raise SetupError(
            f"{config.workers} workers share a store and a state that many processes can use: give --store "
            "mongodb://... and --state redis://..., or leave --workers at 1"
        )
    members = [_Member(number, _settings_of(config, number)) for number in range(config.workers)]
    try:
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(member.keep(), name=f"worker-{member.number}")
            partitions = [await member.ready for member in members]
            say_ready(partitions[0])
    except ExceptionGroup as group:
        # Not `except*`: what that raises is wrapped once more by Python before 3.11.4, such as Debian 12's.
        ended, others = group.split(SetupError)
        if ended is None or others is not None:
            raise
        raise ended.exceptions[0] from None


def _settings_of(config: ServerConfig, number: int) -> ServerConfig:
    host, colon, port = config.health.rpartition(":")
    health = f"{host}:{int(port) + number}" if colon and port.isdecimal() else config.health
    return replace(config, workers=1, health=health)


class _Member:
    """One process, and the next one when it dies."""

    def __init__(self, number: int, config: ServerConfig) -> None:
        self.number = number
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
        settings = {it.variable: str(getattr(config, it.name)) for it in SETTINGS}
        self._environment = kept | settings | {LIFELINE: "stdin"}

    async def keep(self) -> None:
        attempt = 0
        while True:
            started = time.monotonic()
            status = await self._once()
            if not self.ready.done():
                raise SetupError(f"worker {self.number} ended before it served, with status {status}")
            attempt = 1 if time.monotonic() - started > STEADY_SECONDS else attempt + 1
            wait = backoff(attempt, random())
            log.error("worker %d ended with status %s; another one in %.1f s", self.number, status, wait)
            await asyncio.sleep(wait)

    async def _once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "imqtt",
            "serve",
            "--json",
            env=self._environment,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which then ends them in order
        )
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            while line := await process.stdout.readline():
                with contextlib.suppress(msgspec.DecodeError):
                    said = msgspec.json.decode(line, type=dict[str, object])
                    if said.get("ready") and not self.ready.done():
                        self.ready.set_result(int(str(said["partitions"])))
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
        log.error("worker process %d does not end; killed", process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
