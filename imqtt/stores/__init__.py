"""What is durable: events, members, marks, devices."""

from pathlib import Path

from imqtt.errors import SetupError
from imqtt.stores.base import Store


async def open_store(url: str, partitions: int) -> Store:
    """The store that `url` names: `sqlite:///relative/path` or `sqlite:////absolute/path`.

    `partitions` counts when the store is created. Raises `SetupError`.
    """
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path:
        from imqtt.stores.sqlite import SqliteStore

        return await SqliteStore.open(Path(path), partitions)
    raise SetupError(f"store {url!r} is none that this version knows: sqlite:///path")
