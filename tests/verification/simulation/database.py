"""A device's `Database` with the statements of the real one, in virtual time and without a thread.

A device's file is a SQLite database in memory. It belongs to the simulated `Disk`, so it survives the process
that has it open: the next process finds everything that was committed, and nothing else.
"""

import sqlite3
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imqtt.errors import DeviceStoreError
from tests.verification.simulation.loop import Loop, Process, current

T = TypeVar("T")

DELAY = (0.000_05, 0.002)  # seconds until submitted operations are committed

Operation = Callable[[sqlite3.Connection], T]


class File:
    """A database, and the process that has it open.

    `failing`: the share of transactions that fail because the disk is full.
    """

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.version = 0
        self.failing = 0.0
        self.holder: Process | None = None

    def create(self, schema: str, version: int) -> None:
        self.connection.deserialize(_created(schema))
        self.version = version


class Disk:
    """The files of all devices, by path. Processes of `loop` open them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.files: dict[Path, File] = {}

    def file(self, path: Path | None) -> File:
        """The file at this path; without a path, a new one."""
        if path is None:
            return File()
        if path not in self.files:
            self.files[path] = File()
        return self.files[path]


class _Job(NamedTuple):
    operation: Operation[Any]
    chained: bool
    done: "Future[Any]"


class SimDatabase:
    """A device's database. Operations that are submitted while a transaction waits become part of it."""

    def __init__(self, disk: Disk, path: Path | None) -> None:
        self._file = disk.file(path)
        self._name = str(path or "the temporary store")
        self._loop = disk.loop
        self._waiting: list[_Job] = []
        self._broken: Exception | None = None
        self._closing: Future[None] | None = None

    def __str__(self) -> str:
        return self._name

    async def open(self, schema: str, version: int, upgrades: Mapping[int, Operation[object]]) -> None:
        """Like `Database.open`. Raises `DeviceStoreError` while a live process has the file open."""
        name, file = self._name, self._file
        process = current()
        assert process is not None, "a device's store belongs to a process"
        await self._pause()
        if file.holder is not None and file.holder.alive:
            raise DeviceStoreError(f"{name} is in use by another process")
        if not file.version:
            file.create(schema, version)
        elif file.version > version:
            raise DeviceStoreError(
                f"{name} was written by another version of imqtt ({file.version}, not {version})"
            )
        while file.version < version:
            upgrades[file.version](file.connection)
            file.version += 1
        file.holder = process

    def submit(
        self, operation: Operation[T], *, durable: bool = False, chained: bool = False, erases: bool = False
    ) -> "Future[T]":
        """Like `Database.submit`. `durable` makes no difference: here only processes are killed."""
        done: Future[T] = self._loop.create_future()
        if self._closing is not None:
            done.set_exception(DeviceStoreError(f"{self._name}: the client is closed"))
            return done
        self._waiting.append(_Job(operation, chained, done))
        if len(self._waiting) == 1:
            self._loop.call_later(self._delay(), self._commit)
        return done

    async def close(self) -> None:
        """Finishes the submitted operations, and releases the file."""
        if self._closing is not None:
            return
        self._closing = self._loop.create_future()
        if self._waiting:
            await self._closing
        else:
            await self._pause()
        self._file.holder = None

    def _commit(self) -> None:
        """One transaction. A process may be killed before or after it, but not within it."""
        jobs, self._waiting = self._waiting, []
        for job, answer in zip(jobs, self._answers(jobs), strict=True):
            if job.done.done():
                continue
            if isinstance(answer, Exception):
                job.done.set_exception(answer)
            else:
                job.done.set_result(answer)
        if self._closing is not None:
            self._closing.set_result(None)

    def _answers(self, jobs: Sequence[_Job]) -> list[Any]:
        connection = self._file.connection
        try:
            connection.execute("BEGIN")
            self._check_space()
            answers = [self._answer(job, connection) for job in jobs]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is passed to the caller of `submit`
            connection.execute("ROLLBACK")
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._answers([job])]
            answer = DeviceStoreError(f"{self._name}: {error}") if isinstance(error, sqlite3.Error) else error
            if jobs[0].chained:
                self._broken = answer
            return [answer]
        return answers

    def _check_space(self) -> None:
        if self._file.failing and self._loop.random.random() < self._file.failing:
            raise sqlite3.OperationalError("database or disk is full")

    def _answer(self, job: _Job, connection: sqlite3.Connection) -> Any:
        if job.chained and self._broken is not None:
            raise self._broken
        return job.operation(connection)

    async def _pause(self) -> None:
        paused: Future[None] = self._loop.create_future()
        self._loop.call_later(self._delay(), paused.set_result, None)
        await paused

    def _delay(self) -> float:
        return DELAY[0] + (DELAY[1] - DELAY[0]) * self._loop.random.random()


@cache
def _created(schema: str) -> bytes:
    """An empty database. Creating one for each device would take 190 us; copying this one takes 3."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema)
    return connection.serialize()
