"""Writing each kind of row."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from imqtt.model import Device, DeviceFormat, Marks, Registration
from imqtt.stores.base import END, Record

NUMBERS_KEPT = 200_000  # conversations whose number is cached
BUSY_MILLISECONDS = 20  # waiting for another program that writes; then the caller tries again

_PUT_CONVERSATION = "INSERT INTO conversations (name) VALUES (?) ON CONFLICT DO NOTHING"
_NUMBER = "SELECT number FROM conversations WHERE name = ?"
_PUT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_MEMBER = "INSERT INTO members VALUES (?, ?) ON CONFLICT DO NOTHING"
_RAISE_MARKS = """
    INSERT INTO marks VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE
        SET delivered = max(delivered, excluded.delivered), read = max(read, excluded.read)
        WHERE excluded.delivered > delivered OR excluded.read > read
    RETURNING delivered, read
"""
_PUT_DEVICE = """
    INSERT INTO devices (user, device, format, platform, max_packet, seen) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE
        SET format = excluded.format, platform = excluded.platform, max_packet = excluded.max_packet,
            seen = max(seen, excluded.seen)
"""
_PUT_FORMAT = """
    INSERT INTO devices (user, device, format, platform, max_packet, seen) VALUES (?, ?, ?, '', 0, ?)
    ON CONFLICT DO UPDATE SET format = excluded.format, seen = max(seen, excluded.seen)
"""
_SEE_DEVICE = "UPDATE devices SET seen = max(seen, ?) WHERE user = ? AND device = ?"
_REMOVE_DEVICE = "DELETE FROM devices WHERE user = ? AND device = ? AND seen <= ?"


class Tables:
    """Writes rows over one connection, within the transaction that the caller has begun."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        self.connection = connection
        self._numbers: dict[str, int] = {}

    def forget(self) -> None:
        """Called after a rollback, which may have undone cached numbers."""
        self._numbers.clear()

    def put_events(self, records: Sequence[Record]) -> None:
        """Inserts the records. Raises `sqlite3.IntegrityError` if a seq or key is taken."""
        rows = []
        for record in records:
            event = record.event
            # Only its first event creates a conversation. A later event of an unknown conversation has no
            # number, so its row is refused.
            number = self._number(event.conversation, create=event.seq == 1)
            # A plain int, since sqlite3 would search its adapters for the subclass `Id`.
            rows.append((
                number, event.seq, int(event.id), event.sender, event.device, event.client_msg_id,
                event.kind, event.client_time, record.digest, record.body.decode(),
                record.register or None,
            ))  # fmt: skip
        self.connection.executemany(_PUT_EVENT, rows)

    def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        self.connection.executemany(
            _PUT_MEMBER, [(user, self._number(name, create=True)) for user, name in rows]
        )

    def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        grown: list[Marks] = []
        for mark in marks:
            if not (mark.delivered or mark.read):
                continue
            parameters = (self._number(mark.conversation, create=True), mark.user, mark.delivered, mark.read)
            row = self.connection.execute(_RAISE_MARKS, parameters).fetchone()
            if row is not None:
                grown.append(Marks(mark.conversation, mark.user, *row))
        return grown

    def put_devices(self, devices: Sequence[Registration | DeviceFormat]) -> None:
        for new in devices:
            if isinstance(new, DeviceFormat):
                self.connection.execute(_PUT_FORMAT, (*new.device, new.format, new.seen))
            else:
                row = (*new.device, new.format, new.platform, new.max_packet, new.seen)
                self.connection.execute(_PUT_DEVICE, row)

    def see_devices(self, seen: Mapping[Device, int]) -> None:
        self.connection.executemany(_SEE_DEVICE, [(time, *device) for device, time in seen.items()])

    def remove_device(self, device: Device, unseen_since: int | None) -> None:
        self.connection.execute(_REMOVE_DEVICE, (*device, END if unseen_since is None else unseen_since))

    def _number(self, name: str, *, create: bool) -> int | None:
        number = self._numbers.get(name)
        if number is not None:
            return number
        if create:
            self.connection.execute(_PUT_CONVERSATION, (name,))
        row = self.connection.execute(_NUMBER, (name,)).fetchone()
        if row is None:
            return None
        if len(self._numbers) >= NUMBERS_KEPT:
            self._numbers.clear()
        number = self._numbers[name] = int(row[0])
        return number
