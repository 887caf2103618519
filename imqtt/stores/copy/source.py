"""Reads all of a store in bounded memory, and retries while it is unavailable."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from random import random
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from imqtt.core.backoff import backoff
from imqtt.errors import StoreUnreachable
from imqtt.model import Device, Marks, Position, Registration
from imqtt.stores.base import CopyStore, Identity, OutcomeUnknown, Record

CONVERSATIONS = 500  # in one page; also devices to compare
ROWS = 1_000  # members, marks or devices read or written together
EVENTS = 1_000  # of a log, or in one append, at most
FIRST_EVENTS = 100  # in the first read of a log, while the size of its events is unknown
BYTES = 1 << 20  # of bodies read at once, roughly
LANES = 4  # logs read concurrently, since most time is spent waiting for a store on another machine
RETRY_SECONDS = 60.0  # for which a store may be unavailable; a failover takes ten or twenty

T = TypeVar("T")
K = TypeVar("K", str, Device)
P = ParamSpec("P")


class Progress(NamedTuple):
    """A copy's progress. `phase`: `comparing`, `copying` or `verifying`; totals are 0 while unknown."""

    phase: str
    conversations: int = 0
    events: int = 0
    all_conversations: int = 0
    all_events: int = 0


Tell = Callable[[Progress], None]


class Source(CopyStore, Protocol):
    """The reads of a copy: a `Store`, or a reader beside the store's server."""

    @property
    def identity(self) -> Identity: ...

    async def close(self) -> None: ...

    async def heads(self, conversations: Collection[str]) -> dict[str, Position]: ...

    async def ids_at(self, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]: ...

    async def marks(self, conversations: Collection[str]) -> dict[str, list[Marks]]: ...

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]: ...


class Reading:
    """Reads logs in pages of about `BYTES`, estimated from the sizes of the last events."""

    def __init__(self, store: Source) -> None:
        self._store = store
        self._limit = FIRST_EVENTS

    async def after(self, conversation: str, seq: int) -> list[Record]:
        limit = self._limit
        records = await retry(self._store.records_after, conversation, seq, limit)
        if records:
            mean = sum(len(record.body) for record in records) // len(records)
            self._limit = max(1, min(EVENTS, BYTES // (mean + 1)))
        return records


def seq_of(heads: Mapping[str, Position], conversation: str) -> int:
    """The seq of the conversation's head; 0 if it has none."""
    return heads[conversation].seq if conversation in heads else 0


async def pages(store: Source) -> AsyncIterator[list[str]]:
    """All conversations, in order of their names."""
    after = ""
    while names := await retry(store.conversations, after, CONVERSATIONS):
        yield names
        after = names[-1]


async def device_pages(store: Source) -> AsyncIterator[list[Registration]]:
    after = Device("", "")
    while rows := await retry(store.registrations, after, ROWS):
        yield rows
        after = rows[-1].device


def device_of(registration: Registration) -> Device:
    return registration.device


async def _rows(pages: AsyncIterator[list[T]]) -> AsyncIterator[T]:
    async for page in pages:
        for row in page:
            yield row


async def both(
    source: AsyncIterator[list[T]], target: AsyncIterator[list[T]], key: Callable[[T], K]
) -> AsyncIterator[list[tuple[K, T | None, T | None]]]:
    """Merges two stores' rows in order of their keys into pages of (key, source, target); None: missing."""
    page: list[tuple[K, T | None, T | None]] = []
    source_rows, target_rows = _rows(source), _rows(target)
    source_row, target_row = await anext(source_rows, None), await anext(target_rows, None)
    while source_row is not None or target_row is not None:
        at = min(key(row) for row in (source_row, target_row) if row is not None)
        here = source_row if source_row is not None and key(source_row) == at else None
        there = target_row if target_row is not None and key(target_row) == at else None
        page.append((at, here, there))
        if len(page) == CONVERSATIONS:
            yield page
            page = []
        if here is not None:
            source_row = await anext(source_rows, None)
        if there is not None:
            target_row = await anext(target_rows, None)
    if page:
        yield page


async def retry(call: Callable[P, Awaitable[T]], *args: P.args, **named: P.kwargs) -> T:
    """Calls until the store answers, for `RETRY_SECONDS`. Every call of a copy may be repeated."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RETRY_SECONDS
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
    """Runs all concurrently. If one fails, cancels the others and raises its error."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for number, lane in enumerate(work):
                tasks.create_task(lane, name=f"copy-{number}")
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
