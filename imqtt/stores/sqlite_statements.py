"""What the SQLite store writes, each kind of row with as few statements as it takes.

Each step of a statement gives up Python's global lock and takes it again, beside an event loop that is busy.
So rows go in many to a statement: a commit of 100 beside such a loop took 2.0 to 2.7 ms in this way, and 3.7
to 4.0 ms with `executemany`.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from imqtt.model import Device, Marks
from imqtt.stores.base import Record, Registration

ROWS_AT_ONCE = 512

Rows = list[tuple[Any, ...]]


class Bulk:
    """One statement over a table of `width` columns named column1, column2 …, of which none may be NULL.

    `statement` names the table `{rows}`. It is prepared for 1, 2, 4 … rows, and what is missing to the next
    power of two is NULL and left out, so that few statements serve every number of rows.
    """

    def __init__(self, width: int, statement: str) -> None:
        self._width = width
        row = f"({','.join('?' * width)})"
        self._sql: list[str] = []
        for power in range(ROWS_AT_ONCE.bit_length()):
            values = ",".join([row] * (1 << power))
            self._sql.append(statement.format(rows=f"(VALUES {values}) WHERE column1 IS NOT NULL"))

    def __call__(self, connection: sqlite3.Connection, parameters: list[Any]) -> Rows:
        """`parameters` are the rows' values one after the other. Returns what the statement returns."""
        returned: Rows = []
        step = ROWS_AT_ONCE * self._width
        for start in range(0, len(parameters), step):
            chunk = parameters[start : start + step] if len(parameters) > step else parameters
            rows = len(chunk) // self._width
            power = (rows - 1).bit_length()
            missing = (1 << power) - rows
            if missing:
                chunk = chunk + [None] * (missing * self._width)
            returned += connection.execute(self._sql[power], chunk).fetchall()
        return returned


_put_conversations = Bulk(1, "INSERT OR IGNORE INTO conversations (name) SELECT column1 FROM {rows}")
_put_events = Bulk(
    10,
    """
    INSERT INTO events
    SELECT (SELECT number FROM conversations WHERE name = column1),
        column2, column3, column4, column5, column6, column7, column8, column9, column10
    FROM {rows}
    """,
)
_put_members = Bulk(
    2,
    """
    INSERT INTO members
    SELECT column1, (SELECT number FROM conversations WHERE name = column2) FROM {rows}
    ON CONFLICT DO NOTHING
    """,
)
_raise_marks = Bulk(
    4,
    """
    INSERT INTO marks
    SELECT (SELECT number FROM conversations WHERE name = column1), column2, column3, column4
    FROM {rows} AND (column3 > 0 OR column4 > 0)
    ON CONFLICT DO UPDATE
        SET delivered = max(delivered, excluded.delivered), read = max(read, excluded.read)
        WHERE excluded.delivered > delivered OR excluded.read > read
    RETURNING (SELECT name FROM conversations WHERE number = conversation), user, delivered, read
    """,
)
_put_devices = Bulk(
    5,
    "INSERT OR REPLACE INTO devices SELECT column1, column2, column3, column4, column5 FROM {rows}",
)


def put_events(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Inserts a row for each record, or raises `sqlite3.IntegrityError` where a seq or a key is taken."""
    first: list[str] = []
    parameters: list[Any] = []
    for record in records:
        event = record.event
        if event.seq == 1:
            first.append(event.conversation)
        # An `Id` is made a plain int: sqlite3 would search its adapters for the subclass.
        parameters += (
            event.conversation, event.seq, int(event.id), event.sender, event.device,
            event.client_msg_id, event.kind, event.client_time, record.digest, record.body.decode(),
        )  # fmt: skip
    if first:
        _put_conversations(connection, first)
    _put_events(connection, parameters)


def put_members(rows: Collection[tuple[str, str]]) -> Callable[[sqlite3.Connection], None]:
    def write(connection: sqlite3.Connection) -> None:
        _put_conversations(connection, [conversation for _, conversation in rows])
        _put_members(connection, [value for row in rows for value in row])

    return write


def raise_marks(marks: Sequence[Marks]) -> Callable[[sqlite3.Connection], list[Marks]]:
    def write(connection: sqlite3.Connection) -> list[Marks]:
        _put_conversations(connection, [it.conversation for it in marks])
        rows = _raise_marks(
            connection,
            [value for it in marks for value in (it.conversation, it.user, it.delivered, it.read)],
        )
        grown = {(it.conversation, it.user): it for it in (Marks(*row) for row in rows)}
        return [grown[key] for it in marks if (key := (it.conversation, it.user)) in grown]

    return write


def put_devices(registrations: Sequence[Registration]) -> Callable[[sqlite3.Connection], None]:
    def write(connection: sqlite3.Connection) -> None:
        _put_devices(
            connection,
            [
                value
                for it in registrations
                for value in (it.device.user, it.device.device, it.format, it.platform, it.max_packet)
            ],
        )

    return write


def remove_device(device: Device) -> Callable[[sqlite3.Connection], None]:
    def write(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM devices WHERE user = ? AND device = ?", tuple(device))

    return write
