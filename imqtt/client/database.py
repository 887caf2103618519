"""A SQLite file with its own thread, so that no write blocks the event loop.

Operations run in the order of submission. Those submitted while one transaction runs form the next one.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

from imqtt.errors import DeviceStoreError, DeviceStoreInUse, SetupError
from imqtt.lock_holder import holder_of
from imqtt.private_files import create_private_database, make_database_private

T = TypeVar("T")

Operation = Callable[[sqlite3.Connection], T]
Upgrades = Mapping[int, Operation[object]]


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Operation[Any]
    durable: bool
    chained: bool
    erases: bool
    done: "asyncio.Future[Any]"


class Database(Protocol):
    """A device's database. It is opened once."""

    async def open(self, schema: str, version: int, upgrades: Upgrades) -> None:
        """Creates the tables of `schema` if there are none. Raises `DeviceStoreError`.

        `upgrades[n]` changes the tables of version n to those of version n + 1. Opening an older version
        applies them in one transaction.
        """

    def submit(
        self, operation: Operation[T], *, durable: bool = False, chained: bool = False, erases: bool = False
    ) -> "asyncio.Future[T]":
        """Runs `operation` in a transaction, even if nobody awaits the future.

        A committed transaction survives the end of the process. With `durable` it also survives a crash of
        the machine, at the cost of an fsync: for data that exists nowhere else. `chained` operations build on
        each other: after one has failed, all later ones fail with it. After one that `erases`, no file still
        holds the removed data, at the cost of a checkpoint.
        """

    async def close(self) -> None:
        """Finishes the submitted operations and releases the database."""


class SqliteDatabase(Database):
    """One exclusive connection: a second process that opens the file gets `DeviceStoreInUse`.

    The file is private to its owner. Without a path, the database is temporary: SQLite keeps it in memory and
    moves it to a temporary file as it grows.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "imqtt-device-store")
        self._lock = Lock()
        self._waiting: list[_Job] = []
        self._working = False
        self._broken: Exception | None = None  # the error of a failed chained operation
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    def __str__(self) -> str:
        return str(self._path or "the temporary store")

    async def open(self, schema: str, version: int, upgrades: Upgrades) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._loop.run_in_executor(self._thread, self._open, schema, version, upgrades)
        except BaseException:
            # A cancellation does not stop the thread, and the file would stay locked.
            self._closed = True
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)
            raise

    def submit(
        self, operation: Operation[T], *, durable: bool = False, chained: bool = False, erases: bool = False
    ) -> "asyncio.Future[T]":
        done: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            done.set_exception(DeviceStoreError(f"{self}: the client is closed"))
            return done
        with self._lock:
            self._waiting.append(_Job(operation, durable, chained, erases, done))
            if self._working:
                return done
            self._working = True
        self._thread.submit(self._work)
        return done

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        closing = self._loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(closing)

    # --- in the thread

    def _open(self, schema: str, version: int, upgrades: Upgrades) -> None:
        try:
            if self._path is not None:
                create_private_database(self._path)
            connection = sqlite3.connect(
                str(self._path or ""), timeout=0.5, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                if self._path is not None:
                    connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA cache_size = -8192")
                # Removed content must not stay in free pages. Not every SQLite's default.
                connection.execute("PRAGMA secure_delete = ON")
                self._prepare(connection, schema, version, upgrades)
                _truncate_log(connection)  # an earlier process may have been killed before it did
                if self._path is not None:
                    make_database_private(self._path)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self._error(error) from error
        except OSError as error:
            raise DeviceStoreError(f"{self} cannot be created: {error.strerror}") from error
        except SetupError as error:
            raise DeviceStoreError(error.reason) from error
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection, schema: str, version: int, upgrades: Upgrades) -> None:
        connection.execute("BEGIN EXCLUSIVE")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise DeviceStoreError(f"{self} was written by another version of imqtt ({found}, not {version})")
        if found == 0:
            for statement in filter(str.strip, schema.split(";")):
                connection.execute(statement)
        else:
            for older in range(found, version):
                upgrades[older](connection)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")

    def _work(self) -> None:
        while True:
            with self._lock:
                jobs, self._waiting = self._waiting, []
                if not jobs:
                    self._working = False
                    return
            answers = self._commit(jobs)
            # The loop may be closed already; then nobody waits either.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_tell, jobs, answers)

    def _commit(self, jobs: list[_Job]) -> list[Any]:
        connection = self._connection
        assert connection is not None  # noqa: S101 - nothing is submitted before it is open
        try:
            connection.execute(
                f"PRAGMA synchronous = {'FULL' if any(job.durable for job in jobs) else 'NORMAL'}"
            )
            connection.execute("BEGIN IMMEDIATE")
            answers = [self._answer(job, connection) for job in jobs]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is the result of the operation
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._commit([job])]
            answer = self._error(error) if isinstance(error, sqlite3.Error) else error
            if jobs[0].chained:
                self._broken = answer
            return [answer]
        if any(job.erases for job in jobs):
            _truncate_log(connection)
        return answers

    def _answer(self, job: _Job, connection: sqlite3.Connection) -> Any:
        if job.chained and self._broken is not None:
            raise self._broken
        return job.operation(connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._work()
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()

    def _error(self, error: sqlite3.Error) -> DeviceStoreError:
        if "locked" in str(error):
            holder = None if self._path is None else holder_of(self._path)
            if holder is not None and holder.pid == os.getpid():
                return DeviceStoreInUse(f"{self} is in use by another client of this process")
            return DeviceStoreInUse(f"{self} is in use by {holder or 'another process'}")
        return DeviceStoreError(f"{self}: {error}")


def _truncate_log(connection: sqlite3.Connection) -> None:
    """Copies the log into the database and empties it. After an error, the next checkpoint copies it."""
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _tell(jobs: list[_Job], answers: list[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.done.done():
            continue
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)
