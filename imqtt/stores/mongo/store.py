"""The store for scale: a MongoDB replica set or sharded cluster, written by any number of processes."""

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from imqtt.core.partitions import partition_of
from imqtt.errors import StoreUnreachable
from imqtt.model import Device, DeviceFormat, Marks, Registration
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, chunks
from imqtt.stores.mongo import opening as mongo_opening
from imqtt.stores.mongo.claim import Claim
from imqtt.stores.mongo.client import (
    DUPLICATE_KEY,
    Database,
    Document,
    PyMongoError,
    RawBSONDocument,
    brief,
    connect,
    disconnect,
    write,
)
from imqtt.stores.mongo.documents import META_ID, device_update, event_document, marks_of
from imqtt.stores.mongo.reader import MongoReader

BYTES_AT_ONCE = 16 << 20  # in one command: a third of MongoDB's limit, and room for any event
WRITES_AT_ONCE = 1_000

T = TypeVar("T")


class MongoStore(MongoReader):
    """A `Store` in a MongoDB database. `MongoReader.attach` reads a store that servers may be using."""

    def __init__(self, database: Database, identity: Identity, claim: Claim) -> None:
        super().__init__(database, identity)
        self._claim = claim
        self._writing: set[asyncio.Task[Any]] = set()
        self._device_writes = asyncio.Lock()  # granted in the order of the requests

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
        """Opens the store at `url`, or creates it with the identity `new`; `copying`, as an unfinished copy.

        `mongodb://user@host,host/database?authSource=admin`, with any of MongoDB's options. For `shared` see
        `imqtt.stores.open_store`. Raises `SetupError` within about 10 s.
        """
        database = connect(url, password, driver)
        try:
            identity = await mongo_opening.prepare(database, new, copying=copying)
            return cls(database, identity, await Claim.take(database, shared=shared))
        except BaseException:
            await disconnect(database)
            raise

    @property
    def shared(self) -> bool:
        return self._claim.shared

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        while self._writing:
            await asyncio.wait(self._writing)
        await self._claim.release()
        await disconnect(self._database)

    async def append(self, records: Sequence[Record]) -> None:
        """As `Store.append`: one ordered insert, which commits the records before the first that fails.

        After a failed write concern, a lost connection or a change of primary the outcome is unknown. When
        the caller sends the records again, those that were kept are duplicates, and the others are stored.
        """
        self._check_open()
        if records:
            documents = [event_document(record, self.identity.partitions) for record in records]
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
        """Raises `OutcomeUnknown` if the row that made `record` a duplicate may still be rolled back.

        It may be the same record from an earlier attempt. A caller that took it for stored would confirm a
        message that is lost later; a caller that decided again could not read the row.
        """
        event = record.event
        place = self._place(event.conversation)
        try:
            rows = await asyncio.gather(
                self._row({**place, "s": event.seq}),
                self._row({**place, "u": event.sender, "m": event.client_msg_id}),
            )
        except PyMongoError as error:
            raise OutcomeUnknown(f"a duplicate cannot be read: {brief(error)}") from error
        if not any(rows):
            raise OutcomeUnknown("no majority has the duplicate yet")

    async def barrier(self) -> None:
        """Writes: once a majority has this write, it has all earlier ones, and a deposed primary fails.

        A primary that was just elected may not know yet which writes a majority had in the last term.
        """
        try:
            await self._update("meta", [{"q": {"_id": META_ID}, "u": {"$currentDate": {"barrier": True}}}])
        except OutcomeUnknown as error:
            raise StoreUnreachable(str(error), retry_after=1_000) from error

    async def put_members(self, rows: Collection[tuple[str, str]]) -> None:
        partitions = self.identity.partitions
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
        before: dict[tuple[str, str], tuple[int, int]] = {}
        for some in chunks(marks, WRITES_AT_ONCE):
            among = {
                "c": {"$in": list({mark.conversation for mark in some})},
                "u": {"$in": list({mark.user for mark in some})},
            }
            try:
                found = await self._database.get_collection("marks").find(among).to_list(None)
            except PyMongoError as error:
                raise OutcomeUnknown(f"the marks cannot be read: {brief(error)}") from error
            for mark in map(marks_of, found):
                before[mark.conversation, mark.user] = (mark.delivered, mark.read)
        grown = []
        for mark in marks:
            delivered, read = before.get((mark.conversation, mark.user), (0, 0))
            if mark.delivered > delivered or mark.read > read:
                merged = max(mark.delivered, delivered), max(mark.read, read)
                grown.append(Marks(mark.conversation, mark.user, *merged))
        await self._send(
            "update",
            "marks",
            [
                _upsert(
                    {"c": mark.conversation, "u": mark.user},
                    {"$max": {"delivered": mark.delivered, "read": mark.read}},
                )
                for mark in grown
            ],
        )
        return grown

    async def put_devices(self, devices: Sequence[Registration | DeviceFormat]) -> None:
        updates = [
            _upsert({"u": new.device.user, "d": new.device.device}, device_update(new)) for new in devices
        ]
        await self._change_devices("update", updates)

    async def see_devices(self, seen: Mapping[Device, int]) -> None:
        updates = [
            {"q": {"u": user, "d": device}, "u": {"$max": {"seen": time}}}
            for (user, device), time in seen.items()
        ]
        await self._change_devices("update", updates)

    async def remove_device(self, device: Device, *, unseen_since: int | None = None) -> None:
        query: Document = {"u": device.user, "d": device.device}
        if unseen_since is not None:
            query["$or"] = [{"seen": {"$lte": unseen_since}}, {"seen": {"$exists": False}}]
        await self._change_devices("delete", [{"q": query, "limit": 1}])

    async def _change_devices(self, verb: str, changes: Sequence[Document]) -> None:
        async def change() -> None:
            async with self._device_writes:
                await self._send(verb, "devices", changes)

        self._check_open()
        await self._finished(change(), "devices")

    async def set_unfinished(self, unfinished: bool) -> None:
        change = {"$set" if unfinished else "$unset": {"unfinished": True}}
        await self._update("meta", [{"q": {"_id": META_ID}, "u": change}])

    async def _update(self, collection: str, updates: Sequence[Document]) -> None:
        self._check_open()
        await self._finished(self._send("update", collection, updates), collection)

    async def _send(self, verb: str, collection: str, changes: Sequence[Document]) -> None:
        """Changes are idempotent, so the caller may send all of them again."""
        for some in chunks(changes, WRITES_AT_ONCE):
            command: Document = {verb: collection, f"{verb}s": some, "ordered": False}
            for failure in await write(self._database, command):
                if failure.place:
                    raise OutcomeUnknown(failure.reason)
                raise failure.of_all("an update was not stored")

    def _finished(self, writing: Coroutine[Any, Any, T], what: str) -> Awaitable[T]:
        """A write that continues if its caller is cancelled, since the command may be half sent."""
        task = asyncio.create_task(writing, name=f"mongodb-{what}")
        self._writing.add(task)
        task.add_done_callback(self._is_finished)
        return asyncio.shield(task)

    def _is_finished(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller may have been cancelled


def _upsert(matched: Document, update: Document) -> Document:
    return {"q": matched, "u": update, "upsert": True}


def _messages(documents: Sequence[RawBSONDocument]) -> Iterable[list[RawBSONDocument]]:
    """The documents in runs, each of which fits into a command."""
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
