"""The store for scale: MongoDB, a replica set or a sharded cluster, written by any number of processes.

A write returns when a majority has it in its journal. What a failover leaves unknown is found out by sending
the same again: see `MongoStore.append`.
"""

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from imqtt.core.partitions import partition_of
from imqtt.errors import StoreUnreachable
from imqtt.model import Device, DeviceFormat, Marks, Registration
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record
from imqtt.stores.mongo import opening as mongo_opening
from imqtt.stores.mongo.claim import Claim
from imqtt.stores.mongo.client import (
    DUPLICATE_KEY,
    Client,
    Database,
    Document,
    PyMongoError,
    RawBSONDocument,
    WriteFailure,
    brief,
    connect,
    database_name,
    database_of,
    disconnect,
    write,
)
from imqtt.stores.mongo.documents import META_ID, device_update, event_document, marks_of
from imqtt.stores.mongo.reader import MongoReader, chunks

BYTES_AT_ONCE = 16 << 20  # in one command: a third of what MongoDB takes, and never less than one event
WRITES_AT_ONCE = 1_000

T = TypeVar("T")


class MongoStore(MongoReader):
    """A `Store` in a MongoDB database. To read one that servers may be using, take `MongoReader.attach`."""

    def __init__(
        self, client: Client, database: Database, identity: Identity, claim: Claim | None = None
    ) -> None:
        super().__init__(client, database, identity)
        self._claim = claim
        self._writing: set[asyncio.Task[Any]] = set()
        self._device_writes = asyncio.Lock()  # it is given in the order in which it was asked for

    @classmethod
    async def open(
        cls,
        url: str,
        new: Identity,
        *,
        shared: bool = False,
        password: str = "",
        driver: str = "pymongo",
        copying: bool = False,
    ) -> Self:
        """Opens the store that `url` names, or creates it as `new`; `copying`, as an unfinished copy.

        `mongodb://user@host,host/database?authSource=admin`, with any of MongoDB's options. A store that
        exists keeps its own identity. Opened `shared`, it may be open in any number of processes that open it
        shared; otherwise in this one alone. Raises `SetupError` for whatever the operator has to put right,
        within some 10 s.
        """
        name = database_name(url)
        client = connect(url, password, driver)
        try:
            database = database_of(client, name)
            identity = await mongo_opening.prepare(client, database, new, copying=copying)
            return cls(client, database, identity, await Claim.take(database, shared=shared))
        except BaseException:
            await disconnect(client)
            raise

    @property
    def shared(self) -> bool:
        return self._claim is None or self._claim.shared

    async def close(self) -> None:
        """Waits for the writes that were begun, and gives up the claim."""
        if not self._open:
            return
        self._open = False
        while self._writing:
            await asyncio.wait(self._writing)
        if self._claim is not None:
            await self._claim.release()
        await disconnect(self._client)

    # --- the log

    async def append(self, records: Sequence[Record]) -> None:
        """As `Store.append`: one ordered insert, which commits up to the first that fails.

        A failed write concern, a lost connection, a deposed primary: `OutcomeUnknown`, whatever was written.
        Sent again, a row that was kept is met as a duplicate, and one that was rolled back is stored now.
        """
        self._check_open()
        if records:
            documents = [event_document(it, self._identity.partitions) for it in records]
            await self._finished(self._insert(records, documents), "append")

    async def _insert(self, records: Sequence[Record], documents: Sequence[RawBSONDocument]) -> None:
        stored = 0
        for some in _messages(documents):
            command: Document = {"insert": "events", "documents": some, "ordered": True}
            for failure in await write(self._database, command):
                stored += failure.place
                if failure.code == DUPLICATE_KEY:
                    await self._check_visible(records[stored])
                elif not stored:
                    raise failure.of_all("an event was not stored")
                raise AppendConflict(stored)
            stored += len(some)

    async def _check_visible(self, record: Record) -> None:
        """Raises `OutcomeUnknown` if what was met as a duplicate may be rolled back yet.

        Such as the same record, from an earlier try whose outcome was unknown. Whoever took it for stored
        would confirm what is lost; whoever read on to decide anew would find neither it nor its place.
        """
        event = record.event
        place = self._place(event.conversation)
        try:
            met = await asyncio.gather(
                self._row({**place, "s": event.seq}),
                self._row({**place, "u": event.sender, "m": event.client_msg_id}),
            )
        except PyMongoError as error:
            raise OutcomeUnknown(f"what was met as a duplicate cannot be read: {brief(error)}") from error
        if not any(met):
            raise OutcomeUnknown("no majority has yet what was met as a duplicate")

    async def barrier(self) -> None:
        """Writes: when a majority has that, it has all that came before, and a primary that is none fails.

        What a majority of the last term had, a primary that was just elected may not know yet.
        """
        try:
            await self._update("meta", [{"q": {"_id": META_ID}, "u": {"$currentDate": {"barrier": True}}}])
        except OutcomeUnknown as error:
            raise StoreUnreachable(str(error), retry_after=1_000) from error

    # --- members, marks, devices

    async def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        partitions = self._identity.partitions
        await self._update(
            "members",
            [
                _upsert({"u": user, "c": name}, {"$set": {"p": partition_of(name, partitions)}})
                for user, name in dict.fromkeys(rows)
            ],
        )

    async def raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        self._check_open()
        return await self._finished(self._raise_marks(marks), "marks")

    async def _raise_marks(self, marks: Sequence[Marks]) -> list[Marks]:
        before = await self._marks_before(marks)
        grown = []
        for it in marks:
            delivered, read = before.get((it.conversation, it.user), (0, 0))
            if it.delivered > delivered or it.read > read:
                now = (max(it.delivered, delivered), max(it.read, read))
                grown.append(Marks(it.conversation, it.user, *now))
        await self._send_updates(
            "marks",
            [
                _upsert(
                    {"c": it.conversation, "u": it.user},
                    {"$max": {"delivered": it.delivered, "read": it.read}},
                )
                for it in grown
            ],
        )
        return grown

    async def _marks_before(self, marks: Sequence[Marks]) -> dict[tuple[str, str], tuple[int, int]]:
        before: dict[tuple[str, str], tuple[int, int]] = {}
        for some in chunks(marks, WRITES_AT_ONCE):
            among = {
                "c": {"$in": list({it.conversation for it in some})},
                "u": {"$in": list({it.user for it in some})},
            }
            try:
                found = await self._database.get_collection("marks").find(among).to_list(None)
            except PyMongoError as error:
                raise OutcomeUnknown(f"the marks cannot be read: {brief(error)}") from error
            for it in found:
                marks_before = marks_of(it)
                before[it["c"], it["u"]] = (marks_before.delivered, marks_before.read)
        return before

    async def put_devices(self, said: Sequence[Registration | DeviceFormat]) -> None:
        async def put() -> None:
            async with self._device_writes:
                updates = [
                    _upsert({"u": it.device.user, "d": it.device.device}, device_update(it)) for it in said
                ]
                await self._send_updates("devices", updates)

        self._check_open()
        await self._finished(put(), "devices")

    async def see_devices(self, seen: Mapping[Device, int]) -> None:
        async def see() -> None:
            async with self._device_writes:
                await self._send_updates(
                    "devices",
                    [
                        {"q": {"u": user, "d": device}, "u": {"$max": {"seen": time}}}
                        for (user, device), time in seen.items()
                    ],
                )

        self._check_open()
        await self._finished(see(), "devices")

    async def remove_device(self, device: Device, *, unseen_since: int | None = None) -> None:
        async def remove() -> None:
            async with self._device_writes:
                query: Document = {"u": device.user, "d": device.device}
                if unseen_since is not None:
                    query["$or"] = [{"seen": {"$lte": unseen_since}}, {"seen": {"$exists": False}}]
                matched = {"q": query, "limit": 1}
                _raise_any(await write(self._database, {"delete": "devices", "deletes": [matched]}))

        self._check_open()
        await self._finished(remove(), "devices")

    # --- everything, for a copy of the store

    async def set_unfinished(self, unfinished: bool) -> None:
        change = {"$set" if unfinished else "$unset": {"unfinished": True}}
        await self._update("meta", [{"q": {"_id": META_ID}, "u": change}])

    # --- how it is written

    async def _update(self, collection: str, updates: Sequence[Document]) -> None:
        self._check_open()
        await self._finished(self._send_updates(collection, updates), collection)

    async def _send_updates(self, collection: str, updates: Sequence[Document]) -> None:
        for some in chunks(updates, WRITES_AT_ONCE):
            command: Document = {"update": collection, "updates": some, "ordered": False}
            _raise_any(await write(self._database, command))

    def _finished(self, writing: Coroutine[Any, Any, T], what: str) -> Awaitable[T]:
        """A write that goes on when its caller is cancelled: half a command is on its way by then."""
        task = asyncio.create_task(writing, name=f"mongodb-{what}")
        self._writing.add(task)
        task.add_done_callback(self._is_finished)
        return asyncio.shield(task)

    def _is_finished(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; then nobody has to know


def _upsert(matched: Document, update: Document) -> Document:
    return {"q": matched, "u": update, "upsert": True}


def _raise_any(failures: Sequence[WriteFailure]) -> None:
    """Updates are idempotent: whoever sends them all again does no harm."""
    for failure in failures:
        if failure.place:
            raise OutcomeUnknown(failure.reason)
        raise failure.of_all("an update was not stored")


def _messages(documents: Sequence[RawBSONDocument]) -> Iterable[list[RawBSONDocument]]:
    """The documents in runs that fit into a command each."""
    run: list[RawBSONDocument] = []
    size = 0
    for document in documents:
        size += len(document.raw)
        if run and (size > BYTES_AT_ONCE or len(run) == WRITES_AT_ONCE):
            yield run
            run, size = [], len(document.raw)
        run.append(document)
    if run:
        yield run
