"""What is durable: events, members, marks, devices."""

from pathlib import Path

from imqtt.errors import SetupError
from imqtt.redaction import redacted
from imqtt.stores.base import Identity, Store
from imqtt.stores.copy.source import Source

MONGODB = ("mongodb://", "mongodb+srv://")


async def open_store(
    url: str,
    new: Identity,
    *,
    shared: bool = False,
    password: str = "",
    driver: str = "pymongo",
    copying: bool = False,
) -> Store:
    """The store that `url` names, created if there is none.

    `sqlite:///relative/path` or `sqlite:////absolute/path`; `mongodb://host,host/database` or
    `mongodb+srv://...`, through the `driver` `pymongo` or `motor`, with `password` in place of one in it.

    `new` is what a store gets that is created; one that exists keeps its own. A store that is opened `shared`
    may be served by several processes, which then share their state; otherwise it is this process's alone,
    and another one that has it open is an error. On SQLite it is always.

    `copying` is for whoever makes a copy: a store that is created is an unfinished one, and one that is
    unfinished is opened, which otherwise is an error.

    Raises `SetupError` for whatever the operator has to put right; where that is another process that has the
    store open, `StoreInUse`.
    """
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path:
        from imqtt.stores.sqlite.store import SqliteStore

        return await SqliteStore.open(Path(path), new, copying=copying)
    if url.startswith(MONGODB):
        from imqtt.stores.mongo.store import MongoStore

        return await MongoStore.open(
            url, new, shared=shared, password=password, driver=driver, copying=copying
        )
    raise _unknown(url)


async def attach_store(url: str, *, password: str = "", driver: str = "pymongo") -> Source:
    """The store that `url` names, to be read beside a server or without one. Raises `SetupError`."""
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path:
        from imqtt.stores.sqlite.reader import SqliteReader

        return await SqliteReader.attach(Path(path))
    if url.startswith(MONGODB):
        from imqtt.stores.mongo.reader import MongoReader

        return await MongoReader.attach(url, password=password, driver=driver)
    raise _unknown(url)


def _unknown(url: str) -> SetupError:
    return SetupError(
        f"unknown kind of store {redacted(url)!r}: write sqlite:///path or mongodb://host/database"
    )
