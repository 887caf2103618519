"""Reads a store directly, without a server."""

from imqtt.stores import attach_store
from imqtt.stores.copy.source import Reading, pages
from tests.verification.checker.history import Row, Stored, now
from tests.verification.events import row_of

PROCESS = "store"


async def read_store(store_url: str, epoch: int) -> list[Stored]:
    """A `Stored` line for each conversation that has events, members or marks, ordered by name.

    A server may be running. Each log is read page by page to its end, so logs that are being written are not
    read at one moment. Raises `SetupError` if there is no store, and `StoreUnreachable` after a minute
    without it.
    """
    store = await attach_store(store_url)
    try:
        found: list[Stored] = []
        reading = Reading(store)
        async for names in pages(store):
            marks = await store.marks(names)
            for name in names:
                registers = tuple((mark.user, mark.delivered, mark.read) for mark in marks.get(name, ()))
                found.append(Stored(PROCESS, now(), epoch, name, await _rows(reading, name), registers))
        return found
    finally:
        await store.close()


async def _rows(reading: Reading, conversation: str) -> tuple[Row, ...]:
    rows: list[Row] = []
    while records := await reading.after(conversation, rows[-1].seq if rows else 0):
        rows += [row_of(record.event) for record in records]
    return tuple(rows)
