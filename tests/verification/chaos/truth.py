"""The contents of the store, read without a server in between."""

from imqtt.stores import attach_store
from imqtt.stores.base import Record
from imqtt.stores.copy.source import Reading, pages
from tests.verification.checker.history import Row, Stored, now

PROCESS = "store"


async def stored(store_url: str, epoch: int) -> list[Stored]:
    """A line for each conversation that has events, members or marks, in order of names.

    Beside a server or without one. Each log is read to its end page by page: of one that is being written,
    more may be told than of another. Raises `SetupError` where there is no store, and `StoreUnreachable`
    after a minute without it.
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
        rows += map(_row, records)
    return tuple(rows)


def _row(record: Record) -> Row:
    event = record.event
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, event.content.text or "")
