"""Translates SQLite's errors into those of the stores' interface."""

import sqlite3
from pathlib import Path

from imqtt.errors import ImqttError, StoreFull, StoreReadOnly, StoreUnreachable
from imqtt.problems import explain
from imqtt.stores.base import OutcomeUnknown, RecordRefused

# Both kinds fail the whole transaction, whichever request caused them.
_PASSING = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
}  # fmt: skip
_OF_CONNECTION = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_SCHEMA,
}  # fmt: skip


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for errors of Python's module."""
    code = getattr(error, "sqlite_errorcode", 0)
    return int(code) & 0xFF


def is_of_all(error: Exception) -> bool:
    """Whether the error concerns the database rather than the values of one request."""
    return primary_code(error) in _PASSING | _OF_CONNECTION


def is_of_connection(error: Exception) -> bool:
    """Whether the connection should be replaced."""
    return primary_code(error) in _OF_CONNECTION


def write_error(error: Exception, path: Path) -> ImqttError:
    """The error for the caller of a failed write, except for a duplicate key."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull("the store's disk is full", retry_after=10_000)
    if code == sqlite3.SQLITE_READONLY:
        return StoreReadOnly(f"the store is read-only: {error}", retry_after=10_000)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OutcomeUnknown("another program holds the store's write lock")
    if is_of_all(error):
        return OutcomeUnknown(f"the store failed: {_cause(error, path)}")
    return RecordRefused(f"{type(error).__name__}: {error}")


def read_error(error: sqlite3.Error, path: Path) -> ImqttError:
    """The error for the caller of a failed read."""
    return StoreUnreachable(f"the store cannot be read: {_cause(error, path)}", retry_after=1_000)


def _cause(error: Exception, path: Path) -> str:
    """The error's text. If SQLite cannot open the file, opening it here tells why, such as too many files."""
    if primary_code(error) == sqlite3.SQLITE_CANTOPEN:
        try:
            path.open("rb").close()
        except OSError as reason:
            return explain(reason)
    return str(error)
