"""MongoDB's driver: the choice of it, its timeouts, and the translation of its errors.

PyMongo's async API and Motor differ only in two calls that the store needs, `aggregate` and `close`. The
store is written against PyMongo's types, and its other modules import them from here.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

from imqtt.distribution import how_to_install
from imqtt.errors import SetupError, StoreFull
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
except ImportError as error:
    raise SetupError(f"MongoDB's driver is missing ({error}): {how_to_install('mongodb')}") from error

DEFAULT_DATABASE = "imqtt"
# Defaults: the options of the address override all but the last.
SELECTION_SECONDS = 5.0  # to find a primary; an election takes longer, and the caller tries again
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0  # so that a server that hangs does not block the callers
HEARTBEAT_SECONDS = 2.0  # between two checks of which node is the primary; the driver's default is 10
DISCONNECT_SECONDS = 2.0  # to end the sessions, which otherwise expire

# A write returns when a majority has it in its journal. No `wtimeout`: it does not undo the write, and leaves
# the outcome unknown just like the timeout of the answer.
DURABLE: Mapping[str, Any] = {"w": "majority", "j": True}

DUPLICATE_KEY = 11000
_REFUSED = {2, 22, 121, 10334, 17280}  # bad value, invalid BSON, validation, document or index key too large
_FULL = {14031, 8000}  # no disk space; over the quota of a hosted cluster

Document = dict[str, Any]  # used only within this package
Client = AsyncMongoClient[Document]
Database = AsyncDatabase[Document]
Collection = AsyncCollection[Document]
Cursor = AsyncCommandCursor[Document]


def connect(url: str, password: str, driver: str) -> Database:
    """The database named in the address, without connecting yet.

    Whatever the address says, reads return only data that a majority has, which is never rolled back. Raises
    `SetupError`, which never contains the password.
    """
    name = _database_name(url)
    return _connect(url, password, driver).get_database(
        name,
        read_concern=ReadConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern("majority", j=True),
    )


def _database_name(url: str) -> str:
    _, _, rest = url.partition("://")
    _, _, path = rest.partition("?")[0].partition("/")
    name = unquote(path) or DEFAULT_DATABASE
    if any(char in name for char in '/\\. "$*<>:|?\x00'):
        raise SetupError(
            "the store's address names no MongoDB database: use mongodb://host/name, without dots in the name"
        )
    return name


def _connect(url: str, password: str, driver: str) -> Client:
    defaults: dict[str, Any] = {
        "serverSelectionTimeoutMS": SELECTION_SECONDS * 1_000,
        "connectTimeoutMS": CONNECT_SECONDS * 1_000,
        "socketTimeoutMS": ANSWER_SECONDS * 1_000,
        "waitQueueTimeoutMS": ANSWER_SECONDS * 1_000,
        "heartbeatFrequencyMS": HEARTBEAT_SECONDS * 1_000,
        "appname": "imqtt",
    }
    try:
        # Parsed by the driver, which ignores options with invalid values and knows all separators.
        query = url.partition("?")[2]
        given = split_options(query, warn=True) if query else {}
        options = {name: value for name, value in defaults.items() if name not in given}
        if password:
            options["password"] = password
        return _client(driver)(url, **options)
    except OSError as error:
        raise SetupError(f"a file named in the store's address: {error.strerror or error}") from None
    except (InvalidURI, ConfigurationError, ValueError, TypeError) as error:
        # If the password is not escaped, the driver's message may quote a part of it.
        reason = "percent-encode the password" if "@" in url else str(error)
        raise SetupError(f"the store's address is not a valid mongodb:// address: {reason}") from None


def _client(driver: str) -> type[Client]:
    if driver == "pymongo":
        return AsyncMongoClient
    if driver != "motor":
        raise SetupError(f"unknown MongoDB driver {driver!r}: use pymongo or motor")
    try:
        # Motor has no types; the methods that the store calls have PyMongo's signatures.
        from motor.motor_asyncio import AsyncIOMotorClient
    except ImportError as error:
        raise SetupError(f"Motor is missing ({error}): {how_to_install('motor')}") from error
    return cast("type[Client]", AsyncIOMotorClient)


async def aggregate(collection: Collection, pipeline: Sequence[Mapping[str, Any]]) -> list[Document]:
    begun: Awaitable[Cursor] | Cursor = collection.aggregate(pipeline)
    cursor = await begun if inspect.isawaitable(begun) else begun  # Motor's is not awaited
    documents = await cursor.to_list(None)
    raise_swallowed_cancellation()
    return documents


def raise_swallowed_cancellation() -> None:
    """Raises `CancelledError` if this task was cancelled and the driver returned nevertheless.

    PyMongo awaits its sockets with `asyncio.wait_for`, which on Python 3.11 swallows a cancellation that
    coincides with the answer. A task that reads in a loop would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def disconnect(database: Database) -> None:
    """Closes the client, with a bound for a server that does not answer."""
    client = database.client
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCONNECT_SECONDS):
            if isinstance(client, AsyncMongoClient):
                await client.close()
            else:  # Motor's call blocks
                await asyncio.to_thread(client.close)


class WriteFailure(NamedTuple):
    """A failed write of a command. `place`: its index in the command."""

    place: int
    code: int
    reason: str

    def of_all(self, what: str) -> RecordRefused | StoreFull | OutcomeUnknown:
        """The error for the caller if this was its first write, so that nothing was written."""
        if self.code in _REFUSED:
            return RecordRefused(f"{what}: {self.reason}")
        if self.code in _FULL:
            return StoreFull(f"the store is full: {self.reason}", retry_after=10_000)
        return OutcomeUnknown(f"{what}: {self.reason}")


async def write(database: Database, command: Document) -> list[WriteFailure]:
    """Carries out a command of several inserts, updates or deletes. Returns the failures, in order.

    All other writes are durable. Raises `OutcomeUnknown` or `RecordRefused`.

    A command, since the driver's `insert_many` costs half as much again and generates each `_id` in the
    client. CPU per message of 200 bytes, in batches of 100, asyncio's loop: `insert_many` 11 to 17 us, with
    documents encoded before 10 to 15; a command 7 to 11, with documents encoded before 6 to 10. Encoding is
    1.5 of that. It is done before, so that encoding errors are known before anything is sent.
    """
    try:
        reply = await database.command({**command, "writeConcern": DURABLE})
    except PyMongoError as error:
        raise OutcomeUnknown(f"the outcome of a write is unknown: {brief(error)}") from error
    except (BSONError, OverflowError, UnicodeError) as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error
    if concern := reply.get("writeConcernError"):
        raise OutcomeUnknown(f"no majority has the write yet: {concern.get('errmsg')}")
    return [
        WriteFailure(error["index"], error.get("code", 0), error.get("errmsg", ""))
        for error in reply.get("writeErrors", ())
    ]


def brief(error: PyMongoError) -> str:
    """The driver's message without the description of the topology."""
    return str(error).partition(", Timeout:")[0].partition(", full error:")[0] or type(error).__name__
