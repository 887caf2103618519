"""The connection that writes, and its group commit.

Writes submitted within one iteration of the event loop share a transaction: a synchronous commit costs about
200 us, however many rows it has. Commands that arrive during a commit wait in the sockets and share the next
one.

The writer runs in the event loop's thread and blocks it during a commit. With a thread of its own, each
statement of a commit releases Python's global lock, and a busy event loop returns it only after up to 5 ms,
several times per commit. There is also little that the loop could do meanwhile: its next decisions depend on
the commit.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imqtt.errors import Unavailable
from imqtt.stores.base import AppendConflict, Record
from imqtt.stores.sqlite import file as sqlite_file
from imqtt.stores.sqlite.checkpoint import Checkpointer
from imqtt.stores.sqlite.errors import is_of_all, is_of_connection, write_error
from imqtt.stores.sqlite.tables import Tables


class Request(NamedTuple):
    """One caller's write: records to append, and a function to call in the same transaction."""

    future: asyncio.Future[Any]
    records: Sequence[Record]
    write: Callable[[Tables], Any]


Outcome = tuple[Any, Exception | None]  # a result, or the error to raise


class Writer:
    """Owns the connection that writes. Belongs to the event loop that created it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._tables: Tables | None = Tables(connection)
        self._loop = asyncio.get_running_loop()
        self._submitted: list[Request] = []
        self._checkpointer = Checkpointer(path)
        self._closed = False

    def submit(self, write: Callable[[Tables], Any], records: Sequence[Record] = ()) -> asyncio.Future[Any]:
        """Inserts `records` and calls `write` in a transaction, in order of submission.

        `write` may be called twice. The future fails with `AppendConflict` if a record's seq or key is taken.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(Unavailable("the store is closed"))
            return future
        if not self._submitted:
            # After everything that is ready to run now, since it may submit as well.
            self._loop.call_soon(self._flush)
        self._submitted.append(Request(future, records, write))
        return future

    def close(self) -> None:
        if self._closed:
            return
        self._flush()
        self._closed = True
        self._checkpointer.stop()
        if self._tables is not None:
            self._checkpointer.checkpoint(self._tables.connection, "TRUNCATE")
        self._disconnect()

    def _flush(self) -> None:
        requests, self._submitted = self._submitted, []
        if not requests:
            return
        for request, (result, error) in zip(requests, self._commit(requests), strict=True):
            if request.future.done():
                continue  # its caller was cancelled; its write is kept
            if error is None:
                request.future.set_result(result)
            else:
                request.future.set_exception(error)
        self._checkpointer.committed()
        if self._checkpointer.due and self._tables is not None:
            self._checkpointer.checkpoint(self._tables.connection)

    def _commit(self, requests: Sequence[Request]) -> list[Outcome]:
        """One outcome per request, in order. Never raises, and leaves no transaction open."""
        try:
            try:
                return self._together(self._connected(), requests)
            except Exception as error:
                self._roll_back()
                if is_of_all(error):
                    raise
                return self._one_by_one(self._connected(), requests)
        except Exception as error:  # noqa: BLE001 - each caller gets it
            self._roll_back()
            if is_of_connection(error):
                self._disconnect()
            failure = write_error(error, self._path)
            failure.__cause__ = error
            return [(None, failure)] * len(requests)

    def _together(self, tables: Tables, requests: Sequence[Request]) -> list[Outcome]:
        """All in one transaction, and all records in one insert. Raises if any request fails."""
        tables.connection.execute("BEGIN IMMEDIATE")
        tables.put_events([record for request in requests for record in request.records])
        results = [request.write(tables) for request in requests]
        tables.connection.execute("COMMIT")
        return [(result, None) for result in results]

    def _one_by_one(self, tables: Tables, requests: Sequence[Request]) -> list[Outcome]:
        """All in one transaction; a request that fails does not affect the others."""
        connection = tables.connection
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for request in requests:
            connection.execute("SAVEPOINT request")
            try:
                tables.put_events(request.records)
                outcomes.append((request.write(tables), None))
            except Exception as error:
                if is_of_all(error):
                    raise
                connection.execute("ROLLBACK TO request")
                tables.forget()
                taken = request.records and isinstance(error, sqlite3.IntegrityError)
                failure = AppendConflict(0) if taken else write_error(error, self._path)
                failure.__cause__ = error
                outcomes.append((None, failure))
            connection.execute("RELEASE request")
        connection.execute("COMMIT")
        return outcomes

    def _connected(self) -> Tables:
        if self._tables is None:
            self._tables = Tables(sqlite_file.connect_to_write(self._path))
        return self._tables

    def _disconnect(self) -> None:
        if self._tables is not None:
            with contextlib.suppress(sqlite3.Error):
                self._tables.connection.close()
            self._tables = None

    def _roll_back(self) -> None:
        if self._tables is None:
            return
        self._tables.forget()
        # After some errors, such as a full disk, SQLite has already rolled back.
        if self._tables.connection.in_transaction:
            try:
                self._tables.connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()
