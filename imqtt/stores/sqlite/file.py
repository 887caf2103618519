"""The database file: its schema, opening it, and the lock that lets only one server write to it.

The layout of `events` was measured (CPU per row in batches of 100, 5,000 conversations, rows of 200 bytes).
Clustered by `(conversation, seq)`, a message costs 44 us and 460 bytes, since every insert hits the middle of
a page and splits it. In order of arrival with two narrow indexes it costs 24 us, and with numbers in place of
conversation names 14 us and 375 bytes.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from imqtt.errors import SetupError, StoreInUse
from imqtt.private_files import create_private_database, make_database_private, make_private
from imqtt.stores.base import HOW_TO_FINISH, Identity
from imqtt.stores.sqlite.errors import primary_code

APPLICATION_ID = 0x696D7174  # "imqt"; identifies the database to `file` and other programs
SCHEMA_VERSION = 3
SCHEMA_WITH_SEEN = 2  # `devices` has the column `seen`
SCHEMA_WITH_REGISTERS = 3  # `events` has the column `register`
OLDEST_SCHEMA = 1
OLDEST_SQLITE = (3, 35)  # the first with RETURNING

WRITER_CACHE_KIB = 65_536  # holds the pages to append to about 100,000 conversations
READER_CACHE_KIB = 4_096
LOG_BYTES_KEPT = 67_108_864  # a log that grew during a long read, such as a backup, is truncated to this
BUSY_SECONDS = 5.0  # waiting for another program that writes, such as a shell or a backup

SET_UNFINISHED = "INSERT INTO meta VALUES ('unfinished', 1) ON CONFLICT DO NOTHING"
SET_FINISHED = "DELETE FROM meta WHERE name = 'unfinished'"

_EVENTS_BY_REGISTER = """
CREATE INDEX events_by_register ON events (conversation, register, seq) WHERE register IS NOT NULL
"""

_SCHEMA = f"""
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

CREATE TABLE conversations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- Rows are never removed. Archiving sets `content` to NULL and leaves the rest. `register` is NULL in
-- events that set none.
CREATE TABLE events (
    conversation INTEGER NOT NULL REFERENCES conversations,
    seq INTEGER NOT NULL,
    id INTEGER NOT NULL,
    sender TEXT NOT NULL,
    device TEXT NOT NULL,
    client_msg_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    client_time INTEGER NOT NULL,
    digest BLOB NOT NULL,
    content TEXT,
    register TEXT
);
CREATE UNIQUE INDEX events_by_seq ON events (conversation, seq);
CREATE UNIQUE INDEX events_by_key ON events (conversation, sender, client_msg_id);
{_EVENTS_BY_REGISTER};

CREATE TABLE members (
    user TEXT NOT NULL,
    conversation INTEGER NOT NULL REFERENCES conversations,
    PRIMARY KEY (user, conversation)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS members_by_conversation ON members (conversation);

CREATE TABLE marks (
    conversation INTEGER NOT NULL REFERENCES conversations,
    user TEXT NOT NULL,
    delivered INTEGER NOT NULL,
    read INTEGER NOT NULL,
    PRIMARY KEY (conversation, user)
) WITHOUT ROWID;

CREATE TABLE devices (
    user TEXT NOT NULL,
    device TEXT NOT NULL,
    format TEXT NOT NULL,
    platform TEXT NOT NULL,
    max_packet INTEGER NOT NULL,
    seen INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user, device)
) WITHOUT ROWID;
"""


def open_to_write(path: Path) -> sqlite3.Connection:
    """Opens the database at `path` through `connect_to_write`. A new file is private. Raises `SetupError`."""
    _check_sqlite()
    if path.exists() and not path.is_file():
        raise SetupError(f"{path} is not a file; name another path for the store")
    if path.exists() and not os.access(path, os.W_OK):
        raise SetupError(f"{path} is read-only; change its permissions")
    _create_private(path)
    try:
        return connect_to_write(path)
    except sqlite3.Error as error:
        raise _setup_error(path, error) from error


def _create_private(path: Path) -> None:
    try:
        create_private_database(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be created: {error.strerror}; is the directory writable?") from error


def prepare(connection: sqlite3.Connection, path: Path, new: Identity, *, copying: bool = False) -> Identity:
    """Creates the store `new` in an empty database; returns the store's identity.

    `copying`: a new store is marked as an unfinished copy, and an unfinished copy is accepted. The files
    become private. Raises `SetupError` if the database cannot be used.
    """
    try:
        if _is_empty(connection, path):
            _create(connection, path, new, copying=copying)
        _complete(connection)
        identity = _check(connection, path, copying=copying)
        make_database_private(path)  # only once it is known to be imqtt's
        make_private(_lock_file(path))
        # `VACUUM INTO` makes a copy in another mode, in which `synchronous=FULL` guarantees less.
        _set_wal(connection, path)
        # SQLite opens a read-only file without an error; only the first write fails.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _setup_error(path, error) from error
    return identity


def inspect(path: Path) -> Identity:
    """Returns the identity of the existing database at `path`. Raises `SetupError`."""
    _check_sqlite()
    if not path.is_file():
        raise SetupError(f"there is no store at {path}")
    try:
        with contextlib.closing(connect_to_read(path)) as connection:
            if _is_empty(connection, path):
                raise SetupError(f"{path} is empty; start a server on it to create a store")
            return _check(connection, path)
    except sqlite3.Error as error:
        raise _setup_error(path, error) from error


def connect_to_write(path: Path) -> sqlite3.Connection:
    """A connection for writing, without an open transaction."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    return _configured(
        connection,
        "synchronous = FULL",  # a commit returns when the log is on the disk
        f"cache_size = -{WRITER_CACHE_KIB}",
        "wal_autocheckpoint = 0",  # see `imqtt.stores.sqlite.checkpoint`
        f"journal_size_limit = {LOG_BYTES_KEPT}",
        # A conversation's number is looked up in the transaction that uses it, so it cannot dangle. Checking
        # it again would cost another search per row.
        "foreign_keys = OFF",
    )


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A read-only connection. Another thread than the one that opens it may use it."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    return _configured(connection, f"cache_size = -{READER_CACHE_KIB}")


def _configured(connection: sqlite3.Connection, *settings: str) -> sqlite3.Connection:
    try:
        for setting in settings:
            connection.execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def lock(path: Path) -> sqlite3.Connection:
    """Holds `<path>.lock` until the returned connection is closed or the process ends. Raises `SetupError`.

    The lock is an exclusive transaction on an empty database. SQLite locks correctly on every system, even
    within one process, and the store itself stays open to readers.
    """
    file = _lock_file(path)
    _create_private(file)
    try:
        connection = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise SetupError(f"{file} cannot be opened: {error}; is the directory writable?") from error
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        connection.close()
        if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreInUse(
                f"{path} is in use by another imqtt server; stop that server, or name another path"
            ) from error
        raise SetupError(f"{file} cannot be locked: {error}; is the directory writable?") from error
    return connection


def schema_of(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise SetupError(
            f"Python's SQLite is version {sqlite3.sqlite_version}; the store needs {oldest} or newer"
        )


def _is_empty(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is empty. Raises `SetupError` if it belongs to another program."""
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    if application == APPLICATION_ID:
        return False
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application or tables:
        raise SetupError(f"{path} is a database of another program; name another path for the store")
    return True


def _set_wal(connection: sqlite3.Connection, path: Path) -> None:
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise SetupError(f"{path.parent} is on a file system without shared memory, which SQLite's WAL needs")


def _create(connection: sqlite3.Connection, path: Path, new: Identity, *, copying: bool) -> None:
    # The log contains whole pages, so larger pages write more per message (8 KiB: twice the log). With 4 KiB
    # a commit writes 30 % more for messages of 200 bytes, and takes twice the CPU for messages of 2,000; with
    # 1 KiB the latter spill into chains of pages.
    connection.execute("PRAGMA page_size = 2048")
    _set_wal(connection, path)
    # One transaction: if it is interrupted, the database is still empty.
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", new._asdict().items())
    if copying:
        connection.execute(SET_UNFINISHED)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _complete(connection: sqlite3.Connection) -> None:
    """Adds what is missing from a store of an older version: a cluster, indexes, columns."""
    version = schema_of(connection)
    if not OLDEST_SCHEMA <= version <= SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE INDEX IF NOT EXISTS members_by_conversation ON members (conversation)")
    connection.execute(
        "INSERT INTO meta VALUES ('cluster', ?) ON CONFLICT DO NOTHING", (Identity.draw(0).cluster,)
    )
    if version < SCHEMA_WITH_SEEN:
        connection.execute("ALTER TABLE devices ADD COLUMN seen INTEGER NOT NULL DEFAULT 0")
    if version < SCHEMA_WITH_REGISTERS:
        connection.execute("ALTER TABLE events ADD COLUMN register TEXT")
        connection.execute(_EVENTS_BY_REGISTER)
    if version < SCHEMA_VERSION:  # on a full disk a complete store can still be opened
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path, *, copying: bool = False) -> Identity:
    version = schema_of(connection)
    if not OLDEST_SCHEMA <= version <= SCHEMA_VERSION:
        raise SetupError(
            f"{path} has schema {version}, and this imqtt supports {OLDEST_SCHEMA} to {SCHEMA_VERSION}; "
            "use the imqtt that created it, or a newer one"
        )
    found = dict(connection.execute("SELECT name, value FROM meta"))
    if "partitions" not in found:
        raise SetupError(f"{path} does not contain its number of partitions; restore it from a backup")
    if "unfinished" in found and not copying:
        raise SetupError(f"{path} is an unfinished copy; {HOW_TO_FINISH}")
    return Identity(found["partitions"], found.get("cluster", ""))


def _setup_error(path: Path, error: sqlite3.Error) -> SetupError:
    code = primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return SetupError(f"{path} is not an SQLite database; name another path for the store")
    if code == sqlite3.SQLITE_READONLY:
        return SetupError(f"{path} is read-only; change its permissions")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SetupError(f"{path} is locked by another program; stop that program, then start again")
    if code == sqlite3.SQLITE_FULL:
        return SetupError(f"the disk of {path} is full")
    return SetupError(f"{path} cannot be opened: {error}")
