"""Reads of a SQLite store, beside a server that writes to it or without one."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import astuple

from imqtt.bodies import stored_event
from imqtt.core.overlays import registers_of
from imqtt.errors import Unavailable
from imqtt.model import Device, Event, Head, Id, Key, Marks, Position, Registration, Stored
from imqtt.stores.base import END, Identity, Record
from imqtt.stores.sqlite import file as sqlite_file
from imqtt.stores.sqlite.errors import is_of_connection, read_error
from imqtt.stores.sqlite.threads import Threads

READERS = 8  # more than the reads of pages at once, so that a partition's own reads need not wait

_HEADS = """
SELECT c.name, e.seq, e.id
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = wanted.value
CROSS JOIN events AS e ON e.conversation = c.number
    AND e.seq = (SELECT max(seq) FROM events WHERE conversation = c.number)
"""

_FIND = """
SELECT wanted.key, e.seq, e.id, e.digest
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = json_extract(wanted.value, '$[0]')
CROSS JOIN events AS e ON e.conversation = c.number
    AND e.sender = json_extract(wanted.value, '$[1]')
    AND e.client_msg_id = json_extract(wanted.value, '$[2]')
"""

_IDS_AT = """
SELECT wanted.key, e.id
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = json_extract(wanted.value, '$[0]')
CROSS JOIN events AS e ON e.conversation = c.number AND e.seq = json_extract(wanted.value, '$[1]')
"""

_HEADS_AND_IDS = """
SELECT wanted.key, e.seq, e.id, coalesce((
    SELECT id FROM events WHERE conversation = c.number AND seq = json_extract(wanted.value, '$[1]')
), 0)
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = json_extract(wanted.value, '$[0]')
CROSS JOIN events AS e ON e.conversation = c.number
    AND e.seq = (SELECT max(seq) FROM events WHERE conversation = c.number)
"""

# As `stored_event` takes them.
_EVENT = "e.seq, e.id, e.sender, e.device, e.client_msg_id, e.content, e.kind, e.client_time"
_LOG = "FROM conversations AS c CROSS JOIN events AS e ON e.conversation = c.number"
_EVENTS_AFTER = f"SELECT {_EVENT} {_LOG} WHERE c.name = ? AND e.seq > ? ORDER BY e.seq LIMIT ?"
_EVENTS_BEFORE = f"SELECT {_EVENT} {_LOG} WHERE c.name = ? AND e.seq < ? ORDER BY e.seq DESC LIMIT ?"

# `{register}` is the column, or NULL in a store of an older schema.
_RECORDS_AFTER = (
    f"SELECT {_EVENT}, e.digest, {{register}} {_LOG} WHERE c.name = ? AND e.seq > ? ORDER BY e.seq LIMIT ?"
)

# The parameter of the next two maps each conversation to a list of seqs or of registers.
_EVENTS_AT = f"""
SELECT c.name, item.value, {_EVENT}
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = wanted.key
CROSS JOIN json_each(wanted.value) AS item
CROSS JOIN events AS e ON e.conversation = c.number AND e.seq = item.value
"""  # noqa: S608 - made of constants

_REGISTERS = f"""
SELECT c.name, item.value, {_EVENT}
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = wanted.key
CROSS JOIN json_each(wanted.value) AS item
CROSS JOIN events AS e ON e.rowid = (
    SELECT rowid FROM events WHERE conversation = c.number AND register = item.value
    ORDER BY seq DESC LIMIT 1
)
"""  # noqa: S608 - made of constants

_HAS_REGISTERS = f"SELECT EXISTS (SELECT 1 {_LOG} WHERE c.name = ? AND e.register IS NOT NULL)"

_HEADS_OF = """
SELECT c.name, newest.seq, newest.id
FROM (
    SELECT e.conversation, e.seq, e.id
    FROM members AS m
    CROSS JOIN events AS e ON e.conversation = m.conversation
        AND e.seq = (SELECT max(seq) FROM events WHERE conversation = m.conversation)
    WHERE m.user = ? AND e.id < ?
    ORDER BY e.id DESC LIMIT ?
) AS newest
CROSS JOIN conversations AS c ON c.number = newest.conversation
ORDER BY newest.id DESC
"""

_MARKS = """
SELECT c.name, m.user, m.delivered, m.read
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = wanted.value
CROSS JOIN marks AS m ON m.conversation = c.number
ORDER BY m.user
"""

# `{seen}` is the column, or 0 in a store of an older schema.
_DEVICES = """
SELECT d.user, d.device, d.format, d.platform, d.max_packet, {seen}
FROM json_each(?) AS wanted CROSS JOIN devices AS d ON d.user = wanted.value
ORDER BY d.device
"""

_CONVERSATIONS_OF = """
SELECT c.name
FROM members AS m CROSS JOIN conversations AS c ON c.number = m.conversation
WHERE m.user = ? AND m.conversation > coalesce((SELECT number FROM conversations WHERE name = ?), 0)
ORDER BY m.conversation LIMIT ?
"""

_CONVERSATIONS = "SELECT name FROM conversations WHERE name > ? ORDER BY name LIMIT ?"

_MEMBERS = """
SELECT c.name, m.user
FROM json_each(?) AS wanted
CROSS JOIN conversations AS c ON c.name = wanted.value
CROSS JOIN members AS m ON m.conversation = c.number
ORDER BY m.user
"""

_REGISTRATIONS = """
SELECT d.user, d.device, d.format, d.platform, d.max_packet, {seen} FROM devices AS d
WHERE (d.user, d.device) > (?, ?) ORDER BY d.user, d.device LIMIT ?
"""

_encode = msgspec.json.encode

T = TypeVar("T")
K = TypeVar("K", int, str)


class SqliteReader:
    """The reads of `Store`. Each runs in a small pool of threads, which have a connection each.

    In WAL mode a read never waits for the writer, and sees everything committed before it began.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self.identity = identity
        self._threads = Threads(READERS, "imqtt-sqlite-reader")
        self._local = threading.local()
        self._connections: set[sqlite3.Connection] = set()
        self._reading = True

    @staticmethod
    async def attach(path: Path) -> "SqliteReader":
        """Opens a store for reading, whether or not a server has it open. Raises `SetupError`."""
        path = await asyncio.to_thread(path.resolve)
        return SqliteReader(path, await asyncio.to_thread(sqlite_file.inspect, path))

    async def close(self) -> None:
        self._reading = False
        await self._threads.close()
        while self._connections:
            self._connections.pop().close()

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        rows = await self._rows_of(_HEADS, conversations)
        return {name: Position(seq, Id(number)) for name, seq, number in rows}

    async def find(self, keys: Collection[Key]) -> dict[Key, Stored]:
        keys = list(keys)
        rows = await self._rows_of(_FIND, list(map(astuple, keys)))
        return {keys[place]: Stored(Position(seq, Id(number)), digest) for place, seq, number, digest in rows}

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        places = list(places)
        return {places[place]: number for place, number in await self._rows_of(_IDS_AT, places)}

    async def heads_and_ids(
        self, places: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], tuple[Position, int]]:
        places = list(places)
        rows = await self._rows_of(_HEADS_AND_IDS, places)
        return {places[place]: (Position(seq, Id(number)), held) for place, seq, number, held in rows}

    async def events_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Event]:
        return await self._read(lambda db: _events_of(db, _EVENTS_AT, places))

    async def registers(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Event]:
        return await self._read(lambda db: _events_of(db, _REGISTERS, wanted))

    async def events_after(self, conversation: str, seq: int, limit: int) -> list[Event]:
        return await self._read(lambda db: _events(db, _EVENTS_AFTER, conversation, seq, limit))

    async def events_with_registers(
        self, conversation: str, seq: int, limit: int
    ) -> tuple[list[Event], dict[tuple[str, str], Event]]:
        return await self._read(lambda db: _events_with_registers(db, conversation, seq, limit))

    async def events_before(self, conversation: str, seq: int, limit: int) -> list[Event]:
        before = seq or END
        events = await self._read(lambda db: _events(db, _EVENTS_BEFORE, conversation, before, limit))
        events.reverse()
        return events

    async def heads_of(self, user: str, before: int, limit: int) -> list[Head]:
        rows = await self._rows(_HEADS_OF, user, int(before) or END, limit)
        return [Head(name, seq, Id(number)) for name, seq, number in rows]

    async def conversations_of(self, after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        def read(db: sqlite3.Connection) -> dict[str, list[str]]:
            rows = {user: db.execute(_CONVERSATIONS_OF, (user, name, limit)) for user, name in after.items()}
            return {user: [name for (name,) in cursor.fetchall()] for user, cursor in rows.items()}

        return await self._read(read)

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]:
        marks: dict[str, list[Marks]] = {}
        for name, user, delivered, read in await self._rows_of(_MARKS, conversations):
            marks.setdefault(name, []).append(Marks(name, user, delivered, read))
        return marks

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        if not users:
            return {}
        lists: dict[str, list[Registration]] = {user: [] for user in users}
        for registration in await self._read(lambda db: _registrations(db, _DEVICES, _json(users))):
            lists[registration.device.user].append(registration)
        return {user: tuple(registrations) for user, registrations in lists.items()}

    async def conversations(self, after: str, limit: int) -> list[str]:
        # A conversation gets its number in the transaction that writes its first event, member or mark.
        return [name for (name,) in await self._rows(_CONVERSATIONS, after, limit)]

    async def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]:
        return await self._read(lambda db: _records(db, conversation, seq, limit))

    async def members(self, conversations: Collection[str]) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for name, user in await self._rows_of(_MEMBERS, conversations):
            members.setdefault(name, []).append(user)
        return members

    async def registrations(self, after: Device, limit: int) -> list[Registration]:
        return await self._read(lambda db: _registrations(db, _REGISTRATIONS, *after, limit))

    async def _rows_of(self, sql: str, wanted: Collection[object]) -> list[Any]:
        return await self._rows(sql, _json(wanted)) if wanted else []

    async def _rows(self, sql: str, *parameters: object) -> list[Any]:
        return await self._read(lambda db: db.execute(sql, parameters).fetchall())

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if not self._reading:
            raise Unavailable("the store is closed")
        return await self._threads.call(partial(self._carry_out, read))

    def _carry_out(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = sqlite_file.connect_to_read(self._path)
                self._connections.add(connection)
            return read(connection)
        except sqlite3.Error as error:
            if connection is not None and is_of_connection(error):
                self._local.connection = None
                self._connections.discard(connection)
                connection.close()
            raise read_error(error, self._path) from error


def _events(connection: sqlite3.Connection, sql: str, conversation: str, seq: int, limit: int) -> list[Event]:
    # All rows at once, since an unfinished statement would prevent the log from being reset.
    rows = connection.execute(sql, (conversation, seq, limit)).fetchall()
    return [stored_event(conversation, row) for row in rows]


def _events_with_registers(
    connection: sqlite3.Connection, conversation: str, seq: int, limit: int
) -> tuple[list[Event], dict[tuple[str, str], Event]]:
    # Few conversations have registers, and looking for each of a hundred takes a tenth of the page's time.
    events = _events(connection, _EVENTS_AFTER, conversation, seq, limit)
    (has_registers,) = connection.execute(_HAS_REGISTERS, (conversation,)).fetchone()
    return events, _events_of(connection, _REGISTERS, registers_of(events)) if has_registers else {}


def _events_of(
    connection: sqlite3.Connection, sql: str, wanted: Collection[tuple[str, K]]
) -> dict[tuple[str, K], Event]:
    items: dict[str, list[K]] = {}
    for conversation, item in wanted:
        items.setdefault(conversation, []).append(item)
    rows = connection.execute(sql, (_encode(items).decode(),)).fetchall()
    return {(conversation, item): stored_event(conversation, row) for conversation, item, *row in rows}


def _registrations(connection: sqlite3.Connection, sql: str, *parameters: object) -> list[Registration]:
    seen = "d.seen" if sqlite_file.schema_of(connection) >= sqlite_file.SCHEMA_WITH_SEEN else "0"
    rows = connection.execute(sql.format(seen=seen), parameters).fetchall()
    return [Registration(Device(user, device), *rest) for user, device, *rest in rows]


def _records(connection: sqlite3.Connection, conversation: str, seq: int, limit: int) -> list[Record]:
    known = sqlite_file.schema_of(connection) >= sqlite_file.SCHEMA_WITH_REGISTERS
    sql = _RECORDS_AFTER.format(register="e.register" if known else "NULL")
    rows = connection.execute(sql, (conversation, seq, limit)).fetchall()
    return [
        Record(
            stored_event(conversation, row[:8]), (row[5] or "").encode(), digest=row[8], register=row[9] or ""
        )
        for row in rows
    ]


def _json(values: Collection[object]) -> str:
    return _encode(list(values)).decode()
