"""What SQLite's errors mean for whoever waits for a write or a read."""

import sqlite3
from pathlib import Path

from imqtt.errors import ImqttError, StoreFull, StoreReadOnly, StoreUnreachable
from imqtt.problems import explain
from imqtt.stores.base import OutcomeUnknown, RecordRefused

# What the whole transaction fails with, whichever request it was that met it.
_OF_ALL = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_SCHEMA,
}  # fmt: skip


def primary_code(error: BaseException) -> int:
    """SQLite's result code without its extension; 0 for what Python's module raises by itself."""
    code = getattr(error, "sqlite_errorcode", 0)
    return int(code) & 0xFF


def is_of_all(error: Exception) -> bool:
    """Whether an error says something about the database, and not about one request's values."""
    return primary_code(error) in _OF_ALL


def is_of_connection(error: Exception) -> bool:
    """Whether it is better to go on with another connection."""
    return is_of_all(error) and primary_code(error) not in (
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
    )  # fmt: skip


def write_error(error: Exception, path: Path) -> ImqttError:
    """What a failed write is to its caller. A taken key is not looked at here."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull("the store's disk is full; try again when there is room", retry_after=10_000)
    if code == sqlite3.SQLITE_READONLY:
        return StoreReadOnly(f"the store may not be written: {error}", retry_after=10_000)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OutcomeUnknown("another program holds the store's write lock")
    if is_of_all(error):
        return OutcomeUnknown(f"the store failed: {_cause(error, path)}")
    return RecordRefused(f"{type(error).__name__}: {error}")


def read_error(error: sqlite3.Error, path: Path) -> ImqttError:
    """What a failed read is to its caller."""
    return StoreUnreachable(f"the store cannot be read: {_cause(error, path)}", retry_after=1_000)


def _cause(error: Exception, path: Path) -> str:
    """SQLite says only that it cannot open the file, not why: there may be no file descriptor left."""
    if primary_code(error) == sqlite3.SQLITE_CANTOPEN:
        try:
            path.open("rb").close()
        except OSError as reason:
            return explain(reason)
    return str(error)
