"""The embedded store: one SQLite database, written by one process."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

from imqtt.errors import SetupError
from imqtt.model import Device, DeviceFormat, Marks, Registration
from imqtt.stores.base import Identity, Record
from imqtt.stores.sqlite import file as sqlite_file
from imqtt.stores.sqlite.reader import SqliteReader
from imqtt.stores.sqlite.writer import Writer


class SqliteStore(SqliteReader):
    """A `Store` in one file. `SqliteReader.attach` reads a store that a server may be using.

    While it is open, `<path>-wal` and `<path>-shm` belong to it: make backups with SQLite's `.backup` or
    `VACUUM INTO`, not by copying the file. An open store holds `<path>.lock`.
    """

    shared = False

    def __init__(
        self, path: Path, identity: Identity, connection: sqlite3.Connection, lock: sqlite3.Connection
    ) -> None:
        super().__init__(path, identity)
        self._writer = Writer(path, connection)
        self._lock = lock

    @classmethod
    async def open(cls, path: Path, new: Identity, *, copying: bool = False) -> Self:
        """Opens the store at `path`, or creates it with the identity `new`; `copying`, as an unfinished copy.

        Raises `SetupError` if the directory is missing or read-only, or the file is read-only, locked, of
        another program, of a newer imqtt, or in use by another server.
        """
        path = await asyncio.to_thread(path.resolve)
        identity, connection, lock = await asyncio.to_thread(_open, path, new, copying)
        return cls(path, identity, connection, lock)

    async def close(self) -> None:
        await super().close()
        self._writer.close()
        self._lock.close()

    async def append(self, records: Sequence[Record]) -> None:
        if records:
            await self._writer.submit(lambda _: None, records)

    async def barrier(self) -> None:
        return

    async def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        if rows:
            await self._writer.submit(lambda tables: tables.put_members(rows))

    async def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        if not marks:
            return []
        grown: list[Marks] = await self._writer.submit(lambda tables: tables.raise_marks(marks))
        return grown

    async def put_devices(self, devices: Sequence[Registration | DeviceFormat]) -> None:
        if devices:
            await self._writer.submit(lambda tables: tables.put_devices(devices))

    async def set_unfinished(self, unfinished: bool) -> None:
        statement = sqlite_file.SET_UNFINISHED if unfinished else sqlite_file.SET_FINISHED
        await self._writer.submit(lambda tables: tables.connection.execute(statement))

    async def see_devices(self, seen: Mapping[Device, int]) -> None:
        if seen:
            await self._writer.submit(lambda tables: tables.see_devices(seen))

    async def remove_device(self, device: Device, *, unseen_since: int | None = None) -> None:
        await self._writer.submit(lambda tables: tables.remove_device(device, unseen_since))


def _open(
    path: Path, new: Identity, copying: bool
) -> tuple[Identity, sqlite3.Connection, sqlite3.Connection]:
    if not path.parent.is_dir():
        raise SetupError(f"{path.parent} is not a directory; create it, or name another path for the store")
    with contextlib.ExitStack() as on_failure:
        lock = on_failure.enter_context(contextlib.closing(sqlite_file.lock(path)))
        connection = on_failure.enter_context(contextlib.closing(sqlite_file.open_to_write(path)))
        identity = sqlite_file.prepare(connection, path, new, copying=copying)
        on_failure.pop_all()
    return identity, connection, lock
