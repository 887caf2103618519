"""The durable data: events, members, marks and devices."""

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
    """Opens the store at `url`, or creates it with the identity `new`.

    `sqlite:///relative/path` or `sqlite:////absolute/path`; `mongodb://host,host/database` or
    `mongodb+srv://...`. `driver` is `pymongo` or `motor`; `password` replaces the one in the URL.

    Several processes may open a MongoDB store `shared`; they must share their state as well. Otherwise the
    store belongs to this process alone. SQLite is never shared.

    `copying`: a store that is created is marked as an unfinished copy, and an unfinished copy is opened,
    which is otherwise an error.

    Raises `SetupError` if the operator has to correct something, and its subclass `StoreInUse` if another
    process has the store open.
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
    """Opens the store at `url` for reading, whether or not a server has it open. Raises `SetupError`."""
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
        f"unknown kind of store {redacted(url)!r}: use sqlite:///path or mongodb://host/database"
    )
