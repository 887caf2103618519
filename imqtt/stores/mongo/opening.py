"""Checks a MongoDB database and creates the store in it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imqtt.errors import SetupError
from imqtt.stores.base import HOW_TO_FINISH, Identity
from imqtt.stores.mongo.client import (
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
_DENIED = {13, 18, 8000}  # unauthorized, authentication failed, either on a hosted cluster
_CLUSTER = re.compile(r"[0-9a-f]{16}")


async def prepare(database: Database, new: Identity, *, copying: bool = False) -> Identity:
    """Creates the store `new` in an empty database; returns the store's identity.

    `copying`: a new store is marked as an unfinished copy, and an unfinished copy is accepted.
    """
    with setting_up(database):
        await _check_server(database)
        if await _is_empty(database):
            # One write, before any other: if this is interrupted, there is either a store or nothing. If two
            # processes do it at once, one of them creates the store.
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


async def inspect(database: Database) -> Identity:
    """Returns the identity of an existing store. Writes nothing."""
    with setting_up(database):
        await _check_server(database)
        if await _is_empty(database):
            raise SetupError(
                f"there is no store in MongoDB's {database.name!r}; start a server on it to create one"
            )
        return await _identity(database)


@contextmanager
def setting_up(database: Database) -> Iterator[None]:
    """Turns the driver's errors into `SetupError`."""
    try:
        yield
    except ServerSelectionTimeoutError as error:
        waited = database.client.options.server_selection_timeout
        raise SetupError(
            f"no primary of MongoDB answers within {waited:g} s: {brief(error)}; "
            "is MongoDB running at this address, and was its replica set initiated?"
        ) from error
    except OperationFailure as error:
        if error.code in _DENIED:
            raise SetupError(
                f"MongoDB refuses this user and password, or does not let the user into {database.name!r}: "
                f"{brief(error)}; the user needs the role readWrite there, and the address needs "
                "?authSource=admin if the user was created in `admin`"
            ) from error
        raise SetupError(f"MongoDB's database {database.name!r} cannot be used: {brief(error)}") from error
    except ConfigurationError as error:
        raise SetupError(f"this MongoDB cannot be used: {brief(error)}") from error
    except ConnectionFailure as error:
        raise SetupError(f"MongoDB failed while the store was opened: {brief(error)}; start again") from error
    except PyMongoError as error:
        raise SetupError(f"the store cannot be opened: {brief(error)}") from error


async def _check_server(database: Database) -> None:
    hello = await database.client.admin.command("hello")
    sharded = hello.get("msg") == "isdbgrid"
    if not sharded and "setName" not in hello:
        raise SetupError(
            "this MongoDB is not a replica set, which majority reads and retried writes need; "
            "start mongod with --replSet and call rs.initiate() once; one node is enough"
        )
    version: list[int] = (await database.client.admin.command("buildInfo"))["versionArray"]
    if tuple(version[:2]) < OLDEST_SERVER:
        found, oldest = ".".join(map(str, version[:3])), ".".join(map(str, OLDEST_SERVER))
        raise SetupError(f"this MongoDB is version {found}; the store needs {oldest} or newer")


async def _is_empty(database: Database) -> bool:
    """Whether the database is empty. Raises `SetupError` if it belongs to another program."""
    names = [name for name in await database.list_collection_names() if not name.startswith("system.")]
    if "meta" in names:
        return not names[1:] and await database.get_collection("meta").find_one({}) is None
    if names:
        raise SetupError(
            f"MongoDB's database {database.name!r} belongs to another program (it has the collections "
            f"{', '.join(sorted(names)[:3])}); name another database in the store's address"
        )
    return True


async def _identity(database: Database, *, copying: bool = False) -> Identity:
    meta = await database.get_collection("meta").find_one({"_id": META_ID})
    if meta is None:
        raise SetupError(
            f"MongoDB's database {database.name!r} has a collection `meta` that is not imqtt's; "
            "name another database in the store's address"
        )
    schema, partitions, cluster = (meta.get(name) for name in ("schema", "partitions", "cluster"))
    store = f"the store in MongoDB's {database.name!r}"
    if schema != SCHEMA_VERSION:
        raise SetupError(
            f"{store} has schema {schema}, and this imqtt supports {SCHEMA_VERSION}; "
            "use the imqtt that created it, or a newer one"
        )
    if not isinstance(partitions, int) or partitions < 1:
        raise SetupError(f"{store} does not contain its number of partitions; restore it from a backup")
    if not isinstance(cluster, str) or not _CLUSTER.fullmatch(cluster):
        raise SetupError(f"{store} has no valid cluster id; restore it from a backup")
    if meta.get("unfinished") and not copying:
        raise SetupError(f"MongoDB's {database.name!r} is an unfinished copy; {HOW_TO_FINISH}")
    return Identity(partitions, cluster)


async def _index(database: Database, collection: str, indexes: tuple[Index, ...]) -> None:
    """Creates missing indexes. Raises `SetupError` if an index of the same name differs."""
    there = await database.get_collection(collection).index_information()
    missing: list[Document] = []
    for index in indexes:
        if index.name not in there:
            missing.append({"name": index.name, "key": dict(index.key), **_options(index)})
        elif not _is_as_expected(there[index.name], index):
            raise SetupError(
                f"index {index.name} of {database.name}.{collection} is not the one that imqtt creates; "
                "drop it while no server runs, and start again"
            )
    if not missing:
        return
    try:
        await database.command({"createIndexes": collection, "indexes": missing})
    except OperationFailure as error:
        names = ", ".join(index["name"] for index in missing)
        raise SetupError(
            f"index {names} of {database.name}.{collection} cannot be created: {brief(error)}; "
            "remove the cause, or restore the store from a backup"
        ) from error


def _is_as_expected(there: Mapping[str, Any], index: Index) -> bool:
    # With another option, such as a partial filter or a collation, it would accept duplicates.
    options = {name: value for name, value in there.items() if name not in ("key", "v", "ns", "background")}
    return there["key"] == list(index.key.items()) and {"unique": False, **options} == _options(index)


def _options(index: Index) -> Document:
    options: Document = {"unique": index.unique}
    if index.having:
        options["partialFilterExpression"] = {index.having: {"$exists": True}}
    return options
