"""Speaking to MongoDB: the driver that is chosen, its timeouts, and what its errors mean.

PyMongo's async API and Motor agree on all that the store needs but for two calls, `aggregate` and `close`,
which are here. The store is written against PyMongo's types, and its modules have them from this one.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

from imqtt.distribution import how_to_install
from imqtt.errors import SetupError, StoreFull, StoreUnreachable
from imqtt.stores.base import OutcomeUnknown, RecordRefused

try:
    from bson import encode as encode
    from bson.errors import BSONError as BSONError
    from bson.raw_bson import RawBSONDocument as RawBSONDocument
    from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.command_cursor import AsyncCommandCursor
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.errors import ConfigurationError as ConfigurationError
    from pymongo.errors import ConnectionFailure as ConnectionFailure
    from pymongo.errors import InvalidURI
    from pymongo.errors import OperationFailure as OperationFailure
    from pymongo.errors import PyMongoError as PyMongoError
    from pymongo.errors import ServerSelectionTimeoutError as ServerSelectionTimeoutError
    from pymongo.read_concern import ReadConcern
    from pymongo.uri_parser import split_options
except ImportError as error:  # whoever imports this wants a store there, and is told what it takes
    raise SetupError(f"MongoDB's driver is missing ({error}): {how_to_install('mongodb')}") from error

DEFAULT_DATABASE = "imqtt"
# Defaults: the options of the address override all of them but the last.
SELECTION_SECONDS = 5.0  # for a primary to be found; an election takes longer, and the caller tries again
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0  # for an answer, so that a server that hangs does not hang its callers
HEARTBEAT_SECONDS = 2.0  # a node that refused a write is asked so soon what it is now; 10 s by default
FAREWELL_SECONDS = 2.0  # for the server to hear that the sessions end, which it finds out by itself

# A majority has it in its journal when a write returns. No wtimeout: it undoes nothing, and only says that
# nothing is known yet, as the answer's own timeout does.
DURABLE: Mapping[str, Any] = {"w": "majority", "j": True}

DUPLICATE_KEY = 11000
_REFUSED = {2, 22, 121, 10334, 17280}  # bad value, invalid BSON, validation, document or index key too large
_FULL = {14031, 8000}  # no disk space; over the quota of a hosted cluster

Document = dict[str, Any]  # never leaves the store's modules
Client = AsyncMongoClient[Document]
Database = AsyncDatabase[Document]
Collection = AsyncCollection[Document]
Cursor = AsyncCommandCursor[Document]


def database_name(url: str) -> str:
    """What the address's path names. Raises `SetupError`."""
    _, _, rest = url.partition("://")
    _, _, path = rest.partition("?")[0].partition("/")
    name = unquote(path) or DEFAULT_DATABASE
    if any(it in name for it in '/\\. "$*<>:|?\x00'):
        raise SetupError(
            "the store's address names no MongoDB database: mongodb://host/name, name without dots"
        )
    return name


def connect(url: str, password: str, driver: str) -> Client:
    """A client, which has not sent anything yet. Raises `SetupError`; no password shows in it."""
    defaults: dict[str, Any] = {
        "serverSelectionTimeoutMS": SELECTION_SECONDS * 1_000,
        "connectTimeoutMS": CONNECT_SECONDS * 1_000,
        "socketTimeoutMS": ANSWER_SECONDS * 1_000,
        "waitQueueTimeoutMS": ANSWER_SECONDS * 1_000,
        "heartbeatFrequencyMS": HEARTBEAT_SECONDS * 1_000,
        "appname": "imqtt",
    }
    try:
        # As the driver reads them: without those whose values it ignores, and whatever separates them.
        query = url.partition("?")[2]
        given = split_options(query, warn=True) if query else {}
        options = {name: value for name, value in defaults.items() if name not in given}
        if password:
            options["password"] = password
        return _client(driver)(url, **options)
    except OSError as error:
        raise SetupError(f"a file that the store's address names: {error.strerror or error}") from None
    except (InvalidURI, ConfigurationError, ValueError, TypeError) as error:
        # Of an address whose password is not escaped, the driver quotes a part that may be of the password.
        reason = "escape a password with percent signs" if "@" in url else str(error)
        raise SetupError(f"the store's address is not a valid mongodb:// address: {reason}") from None


def _client(driver: str) -> type[Client]:
    if driver == "pymongo":
        return AsyncMongoClient
    if driver != "motor":
        raise SetupError(f"unknown MongoDB driver {driver!r}: write pymongo or motor")
    try:
        # Motor has no types of its own; what the store uses of it has PyMongo's signatures.
        from motor.motor_asyncio import AsyncIOMotorClient
    except ImportError as error:
        raise SetupError(f"Motor is missing ({error}): {how_to_install('motor')}") from error
    return cast("type[Client]", AsyncIOMotorClient)


def database_of(client: Client, name: str) -> Database:
    """What is read there is what a majority has, whatever the address says: it cannot be rolled back."""
    return client.get_database(
        name,
        read_concern=ReadConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern("majority", j=True),
    )


async def aggregate(collection: Collection, pipeline: Sequence[Mapping[str, Any]]) -> list[Document]:
    """All documents that the pipeline yields."""
    begun: Awaitable[Cursor] | Cursor = collection.aggregate(pipeline)
    cursor = await begun if inspect.isawaitable(begun) else begun  # Motor's is not awaited
    documents = await cursor.to_list(None)
    raise_swallowed_cancellation()
    return documents


def raise_swallowed_cancellation() -> None:
    """Raises `CancelledError` if this task was cancelled and the driver has returned all the same.

    PyMongo awaits its sockets by `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that meets
    the answer. A task that asks in a loop would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def disconnect(client: Client) -> None:
    """Takes leave of the server, if that listens."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_SECONDS):
            if isinstance(client, AsyncMongoClient):
                await client.close()
            else:  # Motor's has closed when it returns, and would hold up the event loop
                await asyncio.to_thread(client.close)


# --- writing


class WriteFailure(NamedTuple):
    """One write of a command that failed: which, and MongoDB's code and words."""

    place: int
    code: int
    reason: str

    def of_all(self, what: str) -> RecordRefused | StoreFull | OutcomeUnknown:
        """What it is to the caller whose first write it was, so that nothing was written."""
        if self.code in _REFUSED:
            return RecordRefused(f"{what}: {self.reason}")
        if self.code in _FULL:
            return StoreFull(f"the store is full: {self.reason}", retry_after=10_000)
        return OutcomeUnknown(f"{what}: {self.reason}")


async def write(database: Database, command: Document) -> list[WriteFailure]:
    """Carries out an insert, update or delete of several; which of them failed, in order.

    All others are durable. Raises `OutcomeUnknown` or `RecordRefused`.

    A command, not the driver's `insert_many`, which costs half as much again and gives each document an `_id`
    of the client's. CPU a message of 200 bytes, in batches of 100, asyncio's loop: `insert_many` 11 to 17 us,
    of documents encoded before 10 to 15; a command 7 to 11, of documents encoded before 6 to 10. Encoding is
    1.5 of it, and done before so that what cannot be encoded is known before anything is sent.
    """
    try:
        reply = await database.command({**command, "writeConcern": DURABLE})
    except PyMongoError as error:
        raise OutcomeUnknown(f"the outcome of a write is unknown: {brief(error)}") from error
    except (BSONError, OverflowError, UnicodeError) as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error
    if concern := reply.get("writeConcernError"):
        raise OutcomeUnknown(f"no majority has a write yet: {concern.get('errmsg')}")
    return [
        WriteFailure(it["index"], it.get("code", 0), it.get("errmsg", ""))
        for it in reply.get("writeErrors", ())
    ]


@contextmanager
def reading() -> Iterator[None]:
    """Whatever the driver raises is `StoreUnreachable`."""
    try:
        yield
    except PyMongoError as error:
        raise StoreUnreachable(f"the store cannot be read: {brief(error)}", retry_after=1_000) from error


def brief(error: PyMongoError) -> str:
    """The driver's words, without the description of the whole topology that follows them."""
    return str(error).partition(", Timeout:")[0].partition(", full error:")[0] or type(error).__name__
