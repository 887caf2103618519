"""Reading all of a store, in bounded memory, and with patience while it is away."""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
)
from random import random
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from imqtt.core.backoff import backoff
from imqtt.errors import StoreUnreachable
from imqtt.model import Device, Marks, Position, Registration
from imqtt.stores.base import Identity, OutcomeUnknown, Record

CONVERSATIONS = 500  # in one page
ROWS = 1_000  # members, marks or devices read or written together
EVENTS = 1_000  # of a log, or in one append, at most
FIRST_EVENTS = 100  # read of a log before it is known how large they are
BYTES = 1 << 20  # of bodies read at once, roughly
LANES = 4  # logs read side by side: a store on another machine is mostly waited for
PATIENCE = 60.0  # seconds for which a store may be away: a failover takes ten or twenty

T = TypeVar("T")
K = TypeVar("K", str, Device)
P = ParamSpec("P")


class Progress(NamedTuple):
    """How far a copy has got. `phase`: `comparing`, `copying`, `verifying`; the totals are 0 when unknown."""

    phase: str
    conversations: int = 0
    events: int = 0
    all_conversations: int = 0
    all_events: int = 0


class Source(Protocol):
    """What a copy reads: a `Store`, or what reads one beside its server."""

    @property
    def identity(self) -> Identity: ...

    async def close(self) -> None: ...

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]: ...

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]: ...

    async def conversations(self, after: str, limit: int) -> list[str]: ...

    async def records_after(self, conversation: str, seq: int, limit: int) -> list[Record]: ...

    async def members(self, conversations: Collection[str]) -> dict[str, list[str]]: ...

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]: ...

    async def registrations(self, after: Device, limit: int) -> list[Registration]: ...

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]: ...


class Reading:
    """Reads logs in pages of about so many bytes, by how large the last events were."""

    def __init__(self, store: Source) -> None:
        self._store = store
        self._limit = FIRST_EVENTS

    async def after(self, conversation: str, seq: int) -> list[Record]:
        limit = self._limit
        records = await patiently(self._store.records_after, conversation, seq, limit)
        if records:
            mean = sum(len(record.body) for record in records) // len(records)
            self._limit = max(1, min(EVENTS, BYTES // (mean + 1)))
        return records


def seq_of(heads: Mapping[str, Position], conversation: str) -> int:
    """0 where there is nothing yet."""
    return heads[conversation].seq if conversation in heads else 0


async def pages(store: Source) -> AsyncIterator[list[str]]:
    """All conversations, in order of their names."""
    after = ""
    while names := await patiently(store.conversations, after, CONVERSATIONS):
        yield names
        after = names[-1]


async def device_pages(store: Source) -> AsyncIterator[list[Registration]]:
    after = Device("", "")
    while rows := await patiently(store.registrations, after, ROWS):
        yield rows
        after = rows[-1].device


async def names_of(store: Source) -> AsyncIterator[str]:
    async for names in pages(store):
        for name in names:
            yield name


async def registrations_of(store: Source) -> AsyncIterator[Registration]:
    async for rows in device_pages(store):
        for row in rows:
            yield row


async def both(
    ours: AsyncIterator[T], theirs: AsyncIterator[T], size: int, key: Callable[[T], K]
) -> AsyncIterator[list[tuple[K, T | None, T | None]]]:
    """Two walks in order of their keys, side by side, in pages of (key, ours, theirs); None: not there."""
    page: list[tuple[K, T | None, T | None]] = []
    mine, other = await anext(ours, None), await anext(theirs, None)
    while mine is not None or other is not None:
        at = min(key(it) for it in (mine, other) if it is not None)
        here = mine if mine is not None and key(mine) == at else None
        there = other if other is not None and key(other) == at else None
        page.append((at, here, there))
        if len(page) == size:
            yield page
            page = []
        if here is not None:
            mine = await anext(ours, None)
        if there is not None:
            other = await anext(theirs, None)
    if page:
        yield page


async def patiently(call: Callable[P, Awaitable[T]], *args: P.args, **named: P.kwargs) -> T:
    """Calls again while a store is away, for a while. Everything here may be done twice."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    attempt = 0
    while True:
        try:
            return await call(*args, **named)
        except (OutcomeUnknown, StoreUnreachable):
            attempt += 1
            if loop.time() > deadline:
                raise
            await asyncio.sleep(backoff(attempt, random()))


async def side_by_side(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Until all are done, or one has failed and the others are cancelled: raises what it failed with."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for number, it in enumerate(work):
                tasks.create_task(it, name=f"copy-{number}")
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
