"""The stores that the contract's suites run against, and what the suites write into them.

Another store joins by an entry in `STORES`.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from imqtt.model import Content, Event, Id, to_json_type
from imqtt.stores.base import Identity, Record, Store
from imqtt.stores.mongo.store import MongoStore
from imqtt.stores.sqlite.store import SqliteStore
from tests.mongodb import database_url
from tests.verification.simulation.store import SimStore, Tables

PARTITIONS = 16
FIRST_ID = (400 << 22) * 86_400_000  # some day in 2026

_encode = msgspec.json.Encoder(enc_hook=to_json_type).encode


class StoreKind(NamedTuple):
    """`locate` names an empty place for a store, given a directory of the test's own; `open` opens it."""

    locate: Callable[[Path], str]
    open: Callable[[str, int], Awaitable[Store]]
    of_one_process: bool = False  # no other process can open it, so none that is killed leaves anything


async def _open_sqlite(location: str, partitions: int) -> Store:
    return await SqliteStore.open(Path(location), Identity.draw(partitions))


async def _open_mongodb(location: str, partitions: int) -> Store:
    return await MongoStore.open(location, Identity.draw(partitions))


async def _open_motor(location: str, partitions: int) -> Store:
    return await MongoStore.open(location, Identity.draw(partitions), driver="motor")


_simulated: dict[str, Tables] = {}


async def _open_simulated(location: str, partitions: int, *, ordered_prefix: bool) -> Store:
    new = Tables(None, Identity.draw(partitions), ordered_prefix=ordered_prefix)
    return SimStore(_simulated.setdefault(location, new), Random(0), latency=(0.0, 0.0))


def _simulated_as(*, ordered_prefix: bool) -> StoreKind:
    return StoreKind(str, partial(_open_simulated, ordered_prefix=ordered_prefix), of_one_process=True)


STORES = {
    "sqlite": StoreKind(lambda directory: str(directory / "imqtt.db"), _open_sqlite),
    "mongodb": StoreKind(lambda _: database_url(), _open_mongodb),
    "motor": StoreKind(lambda _: database_url(), _open_motor),
    "simulated": _simulated_as(ordered_prefix=True),  # as MongoDB commits
    "simulated-whole": _simulated_as(ordered_prefix=False),  # as SQLite does
}


def record(
    conversation: str,
    seq: int,
    *,
    message: str = "",
    sender: str = "alice",
    content: Content | None = None,
    number: int | None = None,
    register: str = "",
) -> Record:
    """A message `message` (by default named by its seq), whose id is the `number`-th."""
    content = content or Content(text=f"message {seq}")
    event_id = Id(FIRST_ID + (seq if number is None else number) * 4_096)
    body = _encode(content)
    event = Event(
        conversation=conversation,
        seq=seq,
        id=event_id,
        time=event_id.time,
        sender=sender,
        device="phone",
        client_msg_id=message or f"m{seq}",
        content=content,
        client_time=1_790_000_000_000 + seq,
    )
    return Record(event, body, blake2b(body, digest_size=16).digest(), register)


def log(conversation: str, first: int, last: int) -> list[Record]:
    """Messages `first` to `last` of a conversation."""
    return [record(conversation, seq) for seq in range(first, last + 1)]
