"""The thread that writes, and its group commit.

Requests queue up while a transaction is being committed, and all that are waiting then share the next one:
a commit in full sync costs some 200 us however many rows it has.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from imqtt.errors import Unavailable
from imqtt.stores import sqlite_file
from imqtt.stores.base import AppendConflict, Record
from imqtt.stores.sqlite_checkpoint import Checkpointer
from imqtt.stores.sqlite_errors import is_of_all, is_of_connection, write_error
from imqtt.stores.sqlite_statements import put_events


class Request(NamedTuple):
    """One caller's write: records to append, or else something to do in a transaction."""

    future: asyncio.Future[Any]
    records: Sequence[Record] | None
    write: Callable[[sqlite3.Connection], Any] | None

    def carry_out(self, connection: sqlite3.Connection) -> Any:
        if self.records is not None:
            return put_events(connection, self.records)
        assert self.write is not None  # noqa: S101 - one of the two is there
        return self.write(connection)


Outcome = tuple[Any, Exception | None]  # a result, or the error to raise


class Writer:
    """Owns the one connection that writes. `submit` and `close` belong to the event loop."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._checkpointer = Checkpointer(path)
        self._closing = False
        self._closed = self._loop.create_future()
        # Not to be waited for by an interpreter that ends without `close`: what it has not committed was
        # acknowledged to nobody.
        self._thread = threading.Thread(target=self._run, name="imqtt-sqlite-writer", daemon=True)
        self._thread.start()

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """The future fails with `AppendConflict` where a seq or key is taken."""
        return self._submit(records, None)

    def submit(self, write: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        """Has `write` carried out in a transaction, in order of submission. It may be called twice."""
        return self._submit(None, write)

    async def close(self) -> None:
        """Commits what is queued, brings the log into the database, and ends the thread."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await asyncio.shield(self._closed)

    def _submit(
        self, records: Sequence[Record] | None, write: Callable[[sqlite3.Connection], Any] | None
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closing:
            future.set_exception(Unavailable("the store is closed"))
        else:
            self._queue.put(Request(future, records, write))
        return future

    # --- in the thread

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            group = [self._queue.get()]
            # This thread alone takes from the queue, so what it holds is there for the taking.
            group += [self._queue.get_nowait() for _ in range(self._queue.qsize())]
            requests = [request for request in group if request is not None]
            open_for_more = len(requests) == len(group)
            if requests:
                self._deliver(requests, self._commit(requests))
                self._checkpointer.committed()
                if self._checkpointer.due and self._connection is not None:
                    self._checkpointer.checkpoint(self._connection)
        self._checkpointer.stop()
        if self._connection is not None:
            self._checkpointer.checkpoint(self._connection, "TRUNCATE")
        self._disconnect()
        with contextlib.suppress(RuntimeError):  # the loop was closed without waiting
            self._loop.call_soon_threadsafe(self._done)

    def _commit(self, requests: Sequence[Request]) -> list[Outcome]:
        """One outcome for each request, in order. Never raises, and leaves no transaction open."""
        try:
            connection = self._connect()
            try:
                return self._together(connection, requests)
            except Exception as error:
                self._roll_back(connection)
                if is_of_all(error):
                    raise
                return self._one_by_one(connection, requests)
        except Exception as error:  # noqa: BLE001 - this thread must live, and each caller be told
            if self._connection is not None:
                self._roll_back(self._connection)
                if is_of_connection(error):
                    self._disconnect()
            failure = write_error(error)
            failure.__cause__ = error
            return [(None, failure)] * len(requests)

    def _together(self, connection: sqlite3.Connection, requests: Sequence[Request]) -> list[Outcome]:
        """All in one transaction, and all records in one insert. Raises if any of it fails."""
        connection.execute("BEGIN IMMEDIATE")
        put_events(connection, [record for it in requests if it.records is not None for record in it.records])
        results = [None if it.records is not None else it.carry_out(connection) for it in requests]
        connection.execute("COMMIT")
        return [(result, None) for result in results]

    def _one_by_one(self, connection: sqlite3.Connection, requests: Sequence[Request]) -> list[Outcome]:
        """All in one transaction, but what one request fails with costs nobody else."""
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for request in requests:
            connection.execute("SAVEPOINT request")
            try:
                outcomes.append((request.carry_out(connection), None))
            except Exception as error:
                if is_of_all(error):
                    raise
                connection.execute("ROLLBACK TO request")
                taken = request.records is not None and isinstance(error, sqlite3.IntegrityError)
                failure = AppendConflict(0) if taken else write_error(error)
                failure.__cause__ = error
                outcomes.append((None, failure))
            connection.execute("RELEASE request")
        connection.execute("COMMIT")
        return outcomes

    def _deliver(self, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, requests, outcomes)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite_file.connect_to_write(self._path)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # SQLite has rolled back by itself after some errors, such as a full disk.
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()

    def _done(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


def _settle(requests: Sequence[Request], outcomes: Sequence[Outcome]) -> None:
    for request, (result, error) in zip(requests, outcomes, strict=True):
        if request.future.done():
            continue  # its caller was cancelled; what it wrote stands
        if error is None:
            request.future.set_result(result)
        else:
            request.future.set_exception(error)
