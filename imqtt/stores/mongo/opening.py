"""Whether a MongoDB will do as a store, and what is made there when there is none yet.

Everything that the operator has to put right is a `SetupError` of one sentence.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imqtt.errors import SetupError
from imqtt.stores.base import HOW_TO_FINISH, Identity
from imqtt.stores.mongo.client import (
    Client,
    ConfigurationError,
    ConnectionFailure,
    Database,
    Document,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    brief,
)
from imqtt.stores.mongo.documents import INDEXES, META_ID, SCHEMA_VERSION, Index

OLDEST_SERVER = (7, 0)
_DENIED = {13, 18, 8000}  # unauthorized, authentication failed, the same of a hosted cluster
_CLUSTER = re.compile(r"[0-9a-f]{16}")


async def prepare(client: Client, database: Database, new: Identity, *, copying: bool = False) -> Identity:
    """Makes an empty database a store of identity `new`; returns the identity that the store has.

    `copying` makes it an unfinished copy, and takes one that is.
    """
    with setting_up(database):
        await _check_server(client)
        if await _is_empty(database):
            # First of all, and one write: whoever is interrupted after it leaves a store, whoever is
            # interrupted before it leaves nothing. Of two who do it at once, one has made it.
            created: Document = {"schema": SCHEMA_VERSION, **new._asdict()}
            if copying:
                created["unfinished"] = True
            await database.get_collection("meta").update_one(
                {"_id": META_ID}, {"$setOnInsert": created}, upsert=True
            )
        identity = await _identity(database, copying=copying)
        for collection, indexes in INDEXES.items():
            await _index(database, collection, indexes)
    return identity


async def inspect(client: Client, database: Database) -> Identity:
    """Returns the identity of an existing store, and writes nothing."""
    with setting_up(database):
        await _check_server(client)
        if await _is_empty(database):
            raise SetupError(
                f"there is no store in MongoDB's {database.name!r}; a server that is started on it makes one"
            )
        return await _identity(database)


@contextmanager
def setting_up(database: Database) -> Iterator[None]:
    """Whatever the driver raises is a `SetupError`."""
    try:
        yield
    except ServerSelectionTimeoutError as error:
        waited = database.client.options.server_selection_timeout
        raise SetupError(
            f"no primary of MongoDB answers within {waited:g} s: {brief(error)}; "
            "is it running at that address, and has its replica set been initiated?"
        ) from error
    except OperationFailure as error:
        if error.code in _DENIED:
            raise SetupError(
                f"MongoDB lets nobody in with this user and password, or not into {database.name!r}: "
                f"{brief(error)}; it takes a user with the role readWrite there, and ?authSource=admin "
                "in the address of one that was made in `admin`"
            ) from error
        raise SetupError(f"MongoDB's database {database.name!r} cannot be used: {brief(error)}") from error
    except ConfigurationError as error:
        raise SetupError(f"this MongoDB will not do: {brief(error)}") from error
    except ConnectionFailure as error:
        raise SetupError(f"MongoDB failed while the store was opened: {brief(error)}; start again") from error
    except PyMongoError as error:
        raise SetupError(f"the store cannot be opened: {brief(error)}") from error


async def _check_server(client: Client) -> None:
    hello = await client.admin.command("hello")
    sharded = hello.get("msg") == "isdbgrid"
    if not sharded and "setName" not in hello:
        raise SetupError(
            "this MongoDB is not a replica set, which majority reads and retried writes take; "
            "start mongod with --replSet and call rs.initiate() once, one node is enough"
        )
    version: list[int] = (await client.admin.command("buildInfo"))["versionArray"]
    if tuple(version[:2]) < OLDEST_SERVER:
        found, oldest = ".".join(map(str, version[:3])), ".".join(map(str, OLDEST_SERVER))
        raise SetupError(f"this MongoDB is {found}; the store needs {oldest} or newer")


async def _is_empty(database: Database) -> bool:
    """Whether nobody has made anything of this database yet. Raises `SetupError` if it is not imqtt's."""
    names = [name for name in await database.list_collection_names() if not name.startswith("system.")]
    if "meta" in names:
        return not names[1:] and await database.get_collection("meta").find_one({}) is None
    if names:
        raise SetupError(
            f"MongoDB's database {database.name!r} holds something else ({', '.join(sorted(names)[:3])}); "
            "name another one in the store's address"
        )
    return True


async def _identity(database: Database, *, copying: bool = False) -> Identity:
    meta = await database.get_collection("meta").find_one({"_id": META_ID})
    if meta is None:
        raise SetupError(
            f"MongoDB's database {database.name!r} has a collection `meta` that is not imqtt's; "
            "name another one in the store's address"
        )
    schema, partitions, cluster = (meta.get(name) for name in ("schema", "partitions", "cluster"))
    if schema != SCHEMA_VERSION:
        raise SetupError(
            f"the store in MongoDB's {database.name!r} has schema {schema}, and this imqtt knows "
            f"{SCHEMA_VERSION}; use the imqtt that made it, or a newer one"
        )
    if not isinstance(partitions, int) or partitions < 1:
        raise SetupError(
            f"the store in MongoDB's {database.name!r} does not say how many partitions it has; "
            "restore it from a backup"
        )
    if not isinstance(cluster, str) or not _CLUSTER.fullmatch(cluster):
        raise SetupError(
            f"the store in MongoDB's {database.name!r} does not say which it is; restore it from a backup"
        )
    if meta.get("unfinished") and not copying:
        raise SetupError(f"MongoDB's {database.name!r} is a copy that is not finished; {HOW_TO_FINISH}")
    return Identity(partitions, cluster)


async def _index(database: Database, collection: str, indexes: tuple[Index, ...]) -> None:
    """Makes the indexes that are missing; raises `SetupError` where one is not what it has to be."""
    there = await database.get_collection(collection).index_information()
    missing = []
    for index in indexes:
        if index.name not in there:
            missing.append({"name": index.name, "key": dict(index.key), **_options(index)})
        elif not _is_as_expected(there[index.name], index):
            raise SetupError(
                f"index {index.name} of {database.name}.{collection} is not the one that imqtt makes; "
                "drop it while no server runs, and start again"
            )
    if missing:
        await _create(database, collection, missing)


async def _create(database: Database, collection: str, indexes: list[Document]) -> None:
    try:
        await database.command({"createIndexes": collection, "indexes": indexes})
    except OperationFailure as error:
        names = ", ".join(it["name"] for it in indexes)
        raise SetupError(
            f"index {names} of {database.name}.{collection} cannot be made: {brief(error)}; "
            "drop what is in its way, or restore the store from a backup"
        ) from error


def _is_as_expected(there: Mapping[str, Any], index: Index) -> bool:
    # Another option, such as a partial filter or a collation, would let through what must be refused.
    options = {name: value for name, value in there.items() if name not in ("key", "v", "ns", "background")}
    return there["key"] == list(index.key.items()) and {"unique": False, **options} == _options(index)


def _options(index: Index) -> Document:
    options: Document = {"unique": index.unique}
    if index.having:
        options["partialFilterExpression"] = {index.having: {"$exists": True}}
    return options
