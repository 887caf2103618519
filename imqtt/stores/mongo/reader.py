"""Reads of a MongoDB store, beside servers that write to it or without one."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from imqtt.core.overlays import registers_of
from imqtt.core.partitions import partition_of
from imqtt.errors import StoreUnreachable, Unavailable
from imqtt.model import Device, Event, Head, Id, Key, Marks, Position, Registration, Stored
from imqtt.stores.base import END, Identity, Record, chunks
from imqtt.stores.mongo import opening as mongo_opening
from imqtt.stores.mongo.client import (
    Database,
    Document,
    PyMongoError,
    aggregate,
    brief,
    connect,
    disconnect,
    raise_swallowed_cancellation,
)
from imqtt.stores.mongo.documents import META_ID, event_of, marks_of, record_of, registration_of

# Up to this many lookups in the log are separate, concurrent queries, which is fastest for a few. More are
# joined in the server: a query costs the client 300 to 500 us, a row of a join 15. Both seek an index for
# each row. With `$in` on two or more fields the server would try every combination, and it would plan each
# clause of one large `$or`. No index is named: a query must not read a whole log, and the planner, which
# first tries all indexes, keeps the one that ends after one row.
QUERIES_AT_ONCE = 32
ROWS_JOINED = 500
NAMES_AT_ONCE = 1_000  # in one `$in`

_POSITION = {"_id": 0, "s": 1, "i": 1}


class MongoReader:
    """The reads of `Store`, all from the primary and with read concern `majority`."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self.identity = identity
        self._database = database
        self._events = database.get_collection("events")
        self._open = True

    @staticmethod
    async def attach(url: str, *, password: str = "", driver: str = "pymongo") -> "MongoReader":
        """As `imqtt.stores.attach_store`. Writes nothing. Raises `SetupError`, also if there is no store."""
        database = connect(url, password, driver)
        try:
            return MongoReader(database, await mongo_opening.inspect(database))
        except BaseException:
            await disconnect(database)
            raise

    async def close(self) -> None:
        if self._open:
            self._open = False
            await disconnect(self._database)

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]:
        rows: list[Document] = [self._place(name) for name in dict.fromkeys(conversations)]
        found = await self._found(rows, self._head, _NEWEST)
        return {row["c"]: _position(document) for row, document in found}

    async def find(self, keys: Collection[Key]) -> dict[Key, Stored]:
        rows = [
            {**self._place(key.conversation), "u": key.sender, "m": key.client_msg_id}
            for key in dict.fromkeys(keys)
        ]
        found = await self._found(rows, self._row, _OF_KEY)
        return {
            Key(row["c"], row["u"], row["m"]): Stored(_position(document), document["h"])
            for row, document in found
        }

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
        rows = [{**self._place(name), "s": seq} for name, seq in dict.fromkeys(places) if 0 < seq <= END]
        found = await self._found(rows, self._row, _AT_SEQ)
        return {(row["c"], row["s"]): document["i"] for row, document in found}

    async def heads_and_ids(
        self, places: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], tuple[Position, int]]:
        heads = await self.heads([conversation for conversation, _ in places])
        ids = await self.ids_at(places)
        return {place: (heads[place[0]], ids.get(place, 0)) for place in places if place[0] in heads}

    async def events_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Event]:
        rows = [{**self._place(name), "s": seq} for name, seq in dict.fromkeys(places) if 0 < seq <= END]
        found = await self._whole(rows, "s", [], _EVENT_AT_SEQ)
        return {(document["c"], document["s"]): event_of(document) for document in found}

    async def registers(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Event]:
        rows = [{**self._place(name), "r": register} for name, register in dict.fromkeys(wanted)]
        found = await self._whole(rows, "r", _NEWEST_OF_EACH_REGISTER, _NEWEST_OF_REGISTER)
        return {(document["c"], document["r"]): event_of(document) for document in found}

    async def events_after(self, conversation: str, seq: int, limit: int) -> list[Event]:
        return [event_of(document) for document in await self._after(conversation, seq, limit)]

    async def events_with_registers(
        self, conversation: str, seq: int, limit: int
    ) -> tuple[list[Event], dict[tuple[str, str], Event]]:
        events = await self.events_after(conversation, seq, limit)
        return events, await self.registers(registers_of(events))

    async def events_before(self, conversation: str, seq: int, limit: int) -> list[Event]:
        earlier = {**self._place(conversation), "s": {"$lt": seq or END}}
        documents = await self._find("events", earlier, {"s": -1}, limit)
        return [event_of(document) for document in reversed(documents)]

    async def heads_of(self, user: str, before: int, limit: int) -> list[Head]:
        if limit <= 0:
            return []
        rows = await self._aggregate(
            "members",
            [
                {"$match": {"u": user}},
                *_NEWEST,
                {"$match": {"e.i": {"$lt": int(before) or END}}},
                {"$sort": {"e.i": -1}},
                {"$limit": limit},
                {"$project": {"_id": 0, "c": 1, "e": 1}},
            ],
        )
        return [Head(row["c"], row["e"]["s"], Id(row["e"]["i"])) for row in rows]

    async def conversations_of(self, after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        reads = [self._names("members", {"u": user}, name, limit) for user, name in after.items()]
        return dict(zip(after, await asyncio.gather(*reads), strict=True))

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]:
        marks: dict[str, list[Marks]] = {}
        for names in chunks(conversations, NAMES_AT_ONCE):
            for document in await self._find("marks", {"c": {"$in": names}}, {"u": 1}):
                marks.setdefault(document["c"], []).append(marks_of(document))
        return marks

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        lists: dict[str, list[Registration]] = {user: [] for user in users}
        for names in chunks(lists, NAMES_AT_ONCE):
            for document in await self._find("devices", {"u": {"$in": names}}, {"d": 1}):
                lists[document["u"]].append(registration_of(document))
        return {user: tuple(registrations) for user, registrations in lists.items()}

    async def conversations(self, after: str, limit: int) -> list[str]:
        # Every log begins at seq 1, so one seek finds each conversation.
        in_events = {"p": {"$in": list(range(self.identity.partitions))}, "s": 1}
        names = await asyncio.gather(
            self._names("events", in_events, after, limit),
            self._names("members", {}, after, limit),
            self._names("marks", {}, after, limit),
        )
        return sorted(set().union(*names))[:limit]

    async def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]:
        return [record_of(document) for document in await self._after(conversation, seq, limit)]

    async def members(self, conversations: Collection[str]) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for names in chunks(conversations, NAMES_AT_ONCE):
            for document in await self._find("members", {"c": {"$in": names}}, {"u": 1}):
                members.setdefault(document["c"], []).append(document["u"])
        return members

    async def registrations(self, after: Device, limit: int) -> list[Registration]:
        follows = {"$or": [{"u": after.user, "d": {"$gt": after.device}}, {"u": {"$gt": after.user}}]}
        return list(map(registration_of, await self._find("devices", follows, {"u": 1, "d": 1}, limit)))

    def _place(self, conversation: str) -> Document:
        return {"p": partition_of(conversation, self.identity.partitions), "c": conversation}

    async def _head(self, row: Document) -> Document | None:
        return await self._events.find_one(row, _POSITION, sort={"s": -1})

    async def _row(self, row: Document) -> Document | None:
        return await self._events.find_one(row, {**_POSITION, "h": 1})

    async def _found(
        self,
        rows: Sequence[Document],
        read: Callable[[Document], Awaitable[Document | None]],
        join: Sequence[Mapping[str, Any]],
    ) -> list[tuple[Document, Document]]:
        """The rows for which there is an event, with that event: by `read` for a few, else by `join`."""
        if len(rows) > QUERIES_AT_ONCE:
            return await self._joined(rows, join)
        with self._reading():
            documents = await asyncio.gather(*map(read, rows))
        return [(row, found) for row, found in zip(rows, documents, strict=True) if found is not None]

    async def _joined(
        self, rows: Sequence[Document], join: Sequence[Mapping[str, Any]]
    ) -> list[tuple[Document, Document]]:
        """The rows for which `join` finds a document, with that document."""
        found: list[tuple[Document, Document]] = []
        for chunk in chunks(rows, ROWS_JOINED):
            # The rows are made from the only document of `meta`: `$documents` needs no collection, but works
            # only in an aggregation on the database.
            numbered = [{**row, "n": number} for number, row in enumerate(chunk)]
            pipeline: list[Mapping[str, Any]] = [
                {"$match": {"_id": META_ID}},
                {"$project": {"_id": 0, "row": {"$literal": numbered}}},
                {"$unwind": "$row"},
                {"$replaceWith": "$row"},
                *join,
                {"$project": {"n": 1, "e": 1}},
            ]
            found += [(chunk[row["n"]], row["e"]) for row in await self._aggregate("meta", pipeline)]
        return found

    async def _whole(
        self,
        rows: Sequence[Document],
        field: str,
        then: Sequence[Mapping[str, Any]],
        join: Sequence[Mapping[str, Any]],
    ) -> list[Document]:
        """The whole events that `rows` describe: one query per conversation, or a join for many of them.

        `field` distinguishes the rows of a conversation. A query ends with the stages `then`.
        """
        logs: dict[str, Document] = {}
        for row in rows:
            log = logs.setdefault(row["c"], {"p": row["p"], "c": row["c"], field: {"$in": []}})
            log[field]["$in"].append(row[field])
        if len(logs) > QUERIES_AT_ONCE:
            return [document for _, document in await self._joined(rows, join)]
        found = await asyncio.gather(
            *(self._aggregate("events", [{"$match": log}, *then]) for log in logs.values())
        )
        return list(chain.from_iterable(found))

    async def _after(self, conversation: str, seq: int, limit: int) -> list[Document]:
        later = {**self._place(conversation), "s": {"$gt": min(seq, END)}}
        return await self._find("events", later, {"s": 1}, limit)

    async def _names(self, collection: str, among: Document, after: str, limit: int) -> list[str]:
        """The first `limit` conversations after `after` in a collection, each once, in order."""
        names: list[str] = []
        while len(names) < limit:
            following = {**among, "c": {"$gt": after}}
            rows = await self._find(collection, following, {"c": 1}, limit, fields={"_id": 0, "c": 1})
            names += dict.fromkeys(row["c"] for row in rows)
            if len(rows) < limit:
                break
            after = names[-1]
        return names[:limit]

    async def _find(
        self,
        collection: str,
        documents: Document,
        order: Mapping[str, int],
        limit: int | None = None,
        *,
        fields: Mapping[str, int] | None = None,
    ) -> list[Document]:
        with self._reading():
            if limit is not None and limit <= 0:  # MongoDB takes 0 as no limit
                return []
            cursor = self._database.get_collection(collection).find(
                documents, fields, sort=list(order.items()), limit=limit or 0
            )
            found = await cursor.to_list(None)
        raise_swallowed_cancellation()
        return found

    async def _aggregate(self, collection: str, pipeline: Sequence[Mapping[str, Any]]) -> list[Document]:
        with self._reading():
            return await aggregate(self._database.get_collection(collection), pipeline)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns the driver's errors into `StoreUnreachable`."""
        self._check_open()
        try:
            yield
        except PyMongoError as error:
            raise StoreUnreachable(f"the store cannot be read: {brief(error)}", retry_after=1_000) from error

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the store is closed")


def _join(
    local: str, equal: Sequence[str], *then: Mapping[str, Any], whole: bool = False
) -> list[Mapping[str, Any]]:
    """Adds to each document, as `e`, the event with the same `local` field and `equal` fields.

    Unless `whole`, the event has only its position and digest. An equality by `$expr` uses an index like a
    plain one (manual, "$expr", since MongoDB 5.0).
    """
    same = [{"$eq": [f"${name}", f"$${name}"]} for name in equal]
    return [
        {
            "$lookup": {
                "from": "events",
                "localField": local,
                "foreignField": local,
                "let": {name: f"${name}" for name in equal},
                "pipeline": [
                    {"$match": {"$expr": {"$and": same}}},
                    *then,
                    {"$limit": 1},
                    *([] if whole else [{"$project": {**_POSITION, "h": 1}}]),
                ],
                "as": "e",
            }
        },
        {"$unwind": "$e"},
    ]


_NEWEST = _join("c", "p", {"$sort": {"s": -1}})
_AT_SEQ = _join("c", "ps")
_OF_KEY = _join("m", "pcu")
_EVENT_AT_SEQ = _join("c", "ps", whole=True)
# The local field is matched as a constant, without which the planner could not use the partial index.
_NEWEST_OF_REGISTER = _join("r", "pc", {"$sort": {"s": -1}}, whole=True)
# In the order of the index, so that the server reads one key per register (a "distinct scan").
_NEWEST_OF_EACH_REGISTER: Sequence[Mapping[str, Any]] = [
    {"$sort": {"r": -1, "s": -1}},
    {"$group": {"_id": "$r", "e": {"$first": "$$ROOT"}}},
    {"$replaceWith": "$e"},
]


def _position(document: Document) -> Position:
    return Position(document["s"], Id(document["i"]))
