"""A device's log, cursors, marks and outbox, in one SQLite file.

Related changes are written in one transaction: events with the cursor that covers them, and the event of an
accepted command with its removal from the outbox. So the device may be killed at any time.
"""

import sqlite3
from asyncio import Future
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import astuple

from imqtt.client.database import Database, SqliteDatabase
from imqtt.client.values import Summary
from imqtt.core.changes import Changes, LogState, Memory, Place
from imqtt.core.outbox import Entry, OutboxKey
from imqtt.core.overlays import counts_as_unread, overlaid, register_of, registers_of, target_of
from imqtt.core.partitions import home_of
from imqtt.core.rules import change_of
from imqtt.errors import Conflict, DeviceStoreError
from imqtt.model import (
    AnyLogCommand,
    Content,
    Device,
    Event,
    Id,
    Marks,
    Position,
    Send,
    json_decoder,
    to_json_type,
)
from imqtt.protocol import Format, encode_command

VERSION = 2

OUTBOX = """
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT, conversation TEXT NOT NULL, client_msg_id TEXT NOT NULL,
    command BLOB NOT NULL, refused TEXT NOT NULL, reason TEXT NOT NULL,
    UNIQUE (conversation, client_msg_id)
)"""

# The events that change messages. `target` is the message's seq; the event may be ahead of the log.
REGISTERS = """
CREATE TABLE registers (
    conversation TEXT NOT NULL, register TEXT NOT NULL, target INTEGER NOT NULL, seq INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (conversation, register)
) WITHOUT ROWID"""

# An event's `sender` is empty if it does not count as unread.
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE conversations (
    conversation TEXT PRIMARY KEY, seq INTEGER NOT NULL, id INTEGER NOT NULL, base INTEGER NOT NULL,
    head_seq INTEGER NOT NULL, head_id INTEGER NOT NULL, missing TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE events (
    conversation TEXT NOT NULL, seq INTEGER NOT NULL, ordinal INTEGER, sender TEXT NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (conversation, seq)
);
CREATE UNIQUE INDEX events_by_ordinal ON events (ordinal) WHERE ordinal IS NOT NULL;
CREATE TABLE marks (
    conversation TEXT NOT NULL, user TEXT NOT NULL, delivered INTEGER NOT NULL, read INTEGER NOT NULL,
    PRIMARY KEY (conversation, user)
) WITHOUT ROWID;
{OUTBOX};
{REGISTERS};
CREATE TABLE consumers (name TEXT PRIMARY KEY, ordinal INTEGER NOT NULL) WITHOUT ROWID
"""

EVENT = "SELECT body FROM events WHERE conversation = ? AND seq = ?"
PUT = "INSERT INTO outbox (conversation, client_msg_id, command, refused, reason) VALUES (?, ?, ?, ?, ?)"
DISCARD = "DELETE FROM outbox WHERE conversation = ? AND client_msg_id = ?"

_encode = msgspec.json.Encoder(enc_hook=to_json_type).encode
_event = json_decoder(Event).decode
_content = json_decoder(Content).decode
_command = json_decoder(AnyLogCommand).decode


class LocalStore:
    """Methods that return a future take effect in the order of the calls, whether it is awaited or not.

    All of them raise `DeviceStoreError`.
    """

    def __init__(self, database: Database, device: Device) -> None:
        self._database = database
        self._device = device

    @classmethod
    async def open(cls, store: Path | Database | None, device: Device) -> Self:
        """Opens or creates the store of one device; None: a store that ends with the process."""
        database = SqliteDatabase(store) if store is None or isinstance(store, Path) else store
        await database.open(SCHEMA, VERSION, {1: _upgrade_to_2})

        def claim(connection: sqlite3.Connection) -> str:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('device', ?)", (str(device),))
            return str(connection.execute("SELECT value FROM meta WHERE name = 'device'").fetchone()[0])

        try:
            owner = await database.submit(claim)
        except BaseException:
            await database.close()
            raise
        if owner != str(device):
            await database.close()
            raise DeviceStoreError(f"{database} belongs to {owner}, not to {device}")
        return cls(database, device)

    async def close(self) -> None:
        await self._database.close()

    def load(self) -> Future[Memory]:
        return self._database.submit(lambda connection: _load(connection, self._device.user))

    def apply(self, changes: Changes) -> Future[dict[str, int]]:
        """Applies the changes in one transaction. Returns the bases of logs that were trimmed.

        A transaction survives a kill of the process. A crash of the machine may undo it and all later ones;
        the next sync fetches them again. After a failure all later calls fail: their events may follow events
        that are not stored.
        """
        erases = bool(changes.overlays or changes.restarted)
        return self._database.submit(
            lambda connection: _apply(connection, changes), chained=True, erases=erases
        )

    # --- the log

    def new_events(self, after: int, limit: int, conversation: str | None) -> Future[list[tuple[int, Event]]]:
        """New events with their ordinals, from the one after ordinal `after` on."""
        query = (
            "SELECT ordinal, body FROM events"
            " WHERE ordinal > ? AND (? IS NULL OR conversation = ?) ORDER BY ordinal LIMIT ?"
        )

        def read(connection: sqlite3.Connection) -> list[tuple[int, Event]]:
            rows = connection.execute(query, (after, conversation, conversation, limit))
            return [(ordinal, _event(body)) for ordinal, body in rows]

        return self._database.submit(read)

    def events(self, conversation: str, first: int, last: int) -> Future[list[Event]]:
        """The stored events with these seqs, in order of seq."""
        query = "SELECT body FROM events WHERE conversation = ? AND seq BETWEEN ? AND ? ORDER BY seq"
        return self._events(query, conversation, first, last)

    def registers(self, conversation: str, first: int) -> Future[list[Event]]:
        """The events that change messages from seq `first` on, in order of seq."""
        query = "SELECT body FROM registers WHERE conversation = ? AND target >= ? ORDER BY seq"
        return self._events(query, conversation, first)

    def _events(self, query: str, *values: object) -> Future[list[Event]]:
        return self._database.submit(
            lambda connection: [_event(body) for (body,) in connection.execute(query, values)]
        )

    def ids(self, places: Collection[Place]) -> Future[dict[Place, Id]]:
        """The ids of the events at these places. A place without an event is left out."""

        def read(connection: sqlite3.Connection) -> dict[Place, Id]:
            found = ((place, connection.execute(EVENT, place).fetchone()) for place in places)
            return {place: _event(row[0]).id for place, row in found if row is not None}

        return self._database.submit(read)

    def summaries(self, limit: int, conversation: str | None = None) -> Future[list[Summary]]:
        """Conversations, the one with the newest event first."""
        return self._database.submit(
            lambda connection: _summaries(connection, self._device.user, limit, conversation)
        )

    def marks(self, conversation: str) -> Future[dict[str, Marks]]:
        """Each member's marks."""
        query = "SELECT user, delivered, read FROM marks WHERE conversation = ? ORDER BY user"
        return self._database.submit(
            lambda connection: {
                row[0]: Marks(conversation, *row) for row in connection.execute(query, (conversation,))
            }
        )

    # --- consumers

    def consumer(self, name: str) -> Future[int]:
        """The ordinal of the last event that the consumer has finished; 0 for a new one."""

        def read(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT OR IGNORE INTO consumers VALUES (?, 0)", (name,))
            query = "SELECT ordinal FROM consumers WHERE name = ?"
            return int(connection.execute(query, (name,)).fetchone()[0])

        return self._database.submit(read)

    def finish(self, name: str, ordinal: int) -> Future[bool]:
        return self._change("UPDATE consumers SET ordinal = ? WHERE name = ?", ordinal, name)

    # --- the outbox

    def put(self, entry: Entry) -> Future[bool]:
        """Adds a command. False if the same one is there already. Raises `Conflict`.

        Durable against a crash of the machine too: until it is accepted, it exists nowhere else.
        """
        return self._database.submit(lambda connection: _put(connection, entry), durable=True)

    def entries(self, keys: Collection[OutboxKey] | None = None) -> Future[dict[OutboxKey, Entry]]:
        """The commands in the outbox, in the order of putting; all of them without `keys`."""
        return self._database.submit(lambda connection: _entries(connection, keys))

    def refuse(self, key: OutboxKey, code: str, reason: str) -> Future[bool]:
        """Keeps a command that will not be sent again, for the user to see. False if it is not there."""
        statement = "UPDATE outbox SET refused = ?, reason = ? WHERE conversation = ? AND client_msg_id = ?"
        return self._change(statement, code, reason, *key)

    def discard(self, key: OutboxKey) -> Future[bool]:
        """Removes a command from the outbox. False if it is not there."""
        return self._change(DISCARD, *key, erases=True)

    def _change(self, statement: str, *values: object, erases: bool = False) -> Future[bool]:
        """Whether the statement has changed or deleted a row."""
        return self._database.submit(
            lambda connection: connection.execute(statement, values).rowcount > 0, erases=erases
        )


# --- the statements, run in the database's thread ------------------------------------------------------


def _upgrade_to_2(connection: sqlite3.Connection) -> None:
    """Version 1 kept the contents of messages, and wrote the device as `user/device`."""
    connection.execute("UPDATE meta SET value = replace(value, '/', '@') WHERE name = 'device'")
    connection.execute("ALTER TABLE outbox RENAME TO contents")
    connection.execute(OUTBOX)
    connection.execute(REGISTERS)
    query = "SELECT conversation, client_msg_id, content, client_time, refused, reason FROM contents"
    for conversation, name, content, time, refused, reason in connection.execute(
        f"{query} ORDER BY position"
    ):
        command = encode_command(Send(conversation, name, _content(content), time), Format.JSON)
        connection.execute(PUT, (conversation, name, command, refused, reason))
    connection.execute("DROP TABLE contents")


def _load(connection: sqlite3.Connection, user: str) -> Memory:
    logs = connection.execute(
        "SELECT conversation, seq, id, base, head_seq, head_id, missing FROM conversations"
    )
    marks = connection.execute("SELECT * FROM marks WHERE user = ?", (user,))
    unsent = connection.execute(
        "SELECT conversation, client_msg_id FROM outbox WHERE refused = '' ORDER BY position"
    )
    return Memory(
        tuple(
            LogState(name, Position(seq, Id(id_)), base, Position(head, Id(head_id)), missing)
            for name, seq, id_, base, head, head_id, missing in logs
        ),
        tuple(Marks(*row) for row in marks),
        tuple(OutboxKey(*row) for row in unsent),
        dict(connection.execute("SELECT name, value FROM meta")),
    )


def _apply(connection: sqlite3.Connection, changes: Changes) -> dict[str, int]:
    unread: dict[tuple[str, int], int] = {}
    for conversation in changes.restarted:
        unread |= _still_new(connection, conversation, changes)
        connection.execute("DELETE FROM events WHERE conversation = ?", (conversation,))
        connection.execute("DELETE FROM marks WHERE conversation = ?", (conversation,))
        connection.execute("DELETE FROM registers WHERE conversation = ?", (conversation,))
    _set_registers(connection, changes.overlays)
    has_registers = "SELECT EXISTS (SELECT 1 FROM registers WHERE conversation = ?)"
    names = {conversation for conversation, _ in changes.events}
    changed = {name for name in names if connection.execute(has_registers, (name,)).fetchone()[0]}
    shown = [
        (key, ordinal, _shown(connection, event) if key[0] in changed else event)
        for key, (ordinal, event) in changes.events.items()
    ]
    connection.executemany(
        # An event that arrives again as history stays new for consumers that have not read it.
        "INSERT INTO events VALUES (?, ?, ?, ?, ?) ON CONFLICT (conversation, seq) DO UPDATE"
        " SET body = excluded.body, sender = excluded.sender, ordinal = coalesce(excluded.ordinal, ordinal)",
        (
            (*key, unread.get(key) if ordinal is None else ordinal, _counted_sender(event), _encode(event))
            for key, ordinal, event in shown
        ),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (log.conversation, *astuple(log.cursor), log.base, *astuple(log.head), log.missing)
            for log in changes.logs.values()
        ),
    )
    connection.executemany(
        "INSERT INTO marks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET delivered = max(delivered, excluded.delivered), read = max(read, excluded.read)",
        ((marks.conversation, marks.user, marks.delivered, marks.read) for marks in changes.marks),
    )
    connection.executemany(DISCARD, changes.sent)
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", changes.meta.items())
    return {name: _trim(connection, name, seq, changes.wanted_after) for name, seq in changes.trim}


def _set_registers(connection: sqlite3.Connection, events: Iterable[Event]) -> None:
    """Keeps the events that change messages, and changes the messages that are stored."""
    for event in events:
        if (target := target_of(event)) is None:
            continue
        connection.execute(
            "INSERT INTO registers VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET seq = excluded.seq, body = excluded.body WHERE excluded.seq >= seq",
            (event.conversation, register_of(event, target), target.seq, event.seq, _encode(event)),
        )
        place = (event.conversation, target.seq)
        for (body,) in connection.execute(EVENT, place).fetchall():
            message = _shown(connection, _event(body))
            connection.execute(
                "UPDATE events SET body = ?, sender = ? WHERE conversation = ? AND seq = ?",
                (_encode(message), _counted_sender(message), *place),
            )


def _shown(connection: sqlite3.Connection, event: Event) -> Event:
    """The event as the known registers change it."""
    query = "SELECT body FROM registers WHERE conversation = ? AND register = ?"
    registers = {
        name: _event(body) for name in registers_of([event]) for (body,) in connection.execute(query, name)
    }
    return overlaid(event, registers)[0]


def _counted_sender(event: Event) -> str:
    return event.sender if counts_as_unread(event) else ""


def _still_new(
    connection: sqlite3.Connection, conversation: str, changes: Changes
) -> dict[tuple[str, int], int]:
    """The ordinals of events that a restarted log still has: a program may not have read them yet."""
    query = (
        "SELECT seq, ordinal, body FROM events WHERE conversation = ? AND seq >= ? AND ordinal IS NOT NULL"
    )
    first = min((seq for name, seq in changes.events if name == conversation), default=1 << 53)
    ordinals: dict[tuple[str, int], int] = {}
    for seq, ordinal, body in connection.execute(query, (conversation, first)):
        again = changes.events.get((conversation, seq))
        if again is not None and again[1].id == _event(body).id:
            ordinals[conversation, seq] = ordinal
    return ordinals


def _trim(connection: sqlite3.Connection, conversation: str, seq: int, wanted_after: int | None) -> int:
    """Removes events up to `seq`, except those that a consumer or an iterator has not read yet."""
    (kept,) = connection.execute(
        "SELECT min(seq) FROM events WHERE conversation = ?"
        " AND ordinal > min((SELECT coalesce(min(ordinal), 1 << 62) FROM consumers), ?)",
        (conversation, (1 << 62) if wanted_after is None else wanted_after),
    ).fetchone()
    upto = seq if kept is None else min(seq, kept - 1)
    connection.execute("DELETE FROM events WHERE conversation = ? AND seq <= ?", (conversation, upto))
    connection.execute("DELETE FROM registers WHERE conversation = ? AND target <= ?", (conversation, upto))
    connection.execute(
        "UPDATE conversations SET base = max(base, ?) WHERE conversation = ?", (upto, conversation)
    )
    return upto


def _summaries(
    connection: sqlite3.Connection, user: str, limit: int, conversation: str | None
) -> list[Summary]:
    where, values = ("WHERE c.conversation = ?", [conversation]) if conversation else ("", [])
    rows = connection.execute(
        f"""
        WITH c AS (
            SELECT c.*, coalesce(m.delivered, 0) delivered, coalesce(m.read, 0) read FROM conversations c
            LEFT JOIN marks m ON m.conversation = c.conversation AND m.user = ?
            {where} ORDER BY max(c.head_id, c.id) DESC LIMIT ?
        )
        SELECT c.conversation, max(head_seq, c.seq), max(head_id, id), delivered, read,
            (SELECT body FROM events e WHERE e.conversation = c.conversation AND e.seq = c.seq),
            count(e.seq), count(CASE WHEN e.sender NOT IN ('', ?) THEN 1 END)
        FROM c LEFT JOIN events e ON e.conversation = c.conversation AND e.seq > c.read
        GROUP BY c.conversation ORDER BY max(head_id, id) DESC
        """,  # noqa: S608 - a clause of this function's own
        (user, *values, limit, user),
    )
    found: list[Summary] = []
    for name, seq, id_, delivered, read, body, held, others in rows:
        last = None if body is None else _event(body)
        # The senders of events that the device does not hold are known only in the user's own conversation.
        absent = 0 if name == home_of(user) else max(0, seq - read - held)
        found.append(Summary(name, Position(seq, Id(id_)), last, others, others + absent, delivered, read))
    return found


def _put(connection: sqlite3.Connection, entry: Entry) -> bool:
    command = encode_command(entry.command, Format.JSON)
    found = connection.execute(
        "SELECT command, refused FROM outbox WHERE conversation = ? AND client_msg_id = ?", entry.key
    ).fetchone()
    if found is not None:
        if change_of(_command(found[0])) != change_of(entry.command):
            raise Conflict(f"the client_msg_id {entry.client_msg_id} is in use for other content")
        if not found[1]:
            return False
        connection.execute(DISCARD, entry.key)
    connection.execute(PUT, (*entry.key, command, "", ""))
    return True


def _entries(connection: sqlite3.Connection, keys: Iterable[OutboxKey] | None) -> dict[OutboxKey, Entry]:
    query = "SELECT command, refused, reason FROM outbox"
    if keys is None:
        rows = connection.execute(f"{query} ORDER BY position").fetchall()
    else:
        one = f"{query} WHERE conversation = ? AND client_msg_id = ?"
        rows = [row for key in keys for row in connection.execute(one, key)]
    entries = (Entry(_command(command), refused, reason) for command, refused, reason in rows)
    return {entry.key: entry for entry in entries}
