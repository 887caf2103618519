"""Plausible mistakes of a server or SDK, which the simulation must find when one is switched on.

A checker that never found anything proves nothing. Each mistake breaks one rule of the design, in a world
whose faults make it matter; the kinds of findings that it may cause are listed with it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

from imqtt.client import store as client_store
from imqtt.client.sender import Sender
from imqtt.core.sequencing import Append, Decision, Incoming
from imqtt.core.view import View
from imqtt.model import Key, Registration, Stored
from imqtt.server import pages
from imqtt.server.batch import Batch, Inbound
from imqtt.server.committer import Committer
from imqtt.server.delivery import Delivery, Outcome
from imqtt.server.devices import Devices
from imqtt.server.pages import Pages
from imqtt.server.pipeline import Pipeline
from imqtt.stores.base import AppendConflict, OutcomeUnknown, Record
from tests.verification.checker.check import Kind
from tests.verification.simulation.scenario import Shape


@dataclass(frozen=True, slots=True)
class Mistake:
    """`make` applies it while its context lasts. `kinds`: it must cause a finding of one of these kinds."""

    name: str
    make: Callable[[], AbstractContextManager[object]]
    kinds: frozenset[Kind]
    faults: tuple[str, ...]
    workers: int = 2
    partitions: int = 2
    sdk: int = 3
    messages: int = 8
    seconds: float = 8.0
    resends: float = 0.5
    without: tuple[str, ...] = ()  # rules of the store to switch off
    rare: bool = False  # has an effect in one of hundreds of worlds
    first: int = 0  # the seed to begin with: shortly before one that finds it, which saves time only

    def shape(self) -> Shape:
        """A world in which the mistake can matter."""
        return Shape(
            workers=self.workers,
            partitions=self.partitions,
            prefix=True,
            max_batch=500,
            sdk=self.sdk,
            plain=2,
            messages=self.messages,
            seconds=self.seconds,
            faults=self.faults,
            resends=self.resends,
            without=self.without,
        )


def _replaced(owner: object, name: str, method: Callable[..., Any]) -> AbstractContextManager[object]:
    return mock.patch.object(owner, name, method)


@contextlib.contextmanager
def _dedupe_record_before_the_commit() -> Iterator[None]:
    """A record of each decision is written at once, and duplicates are answered from it."""
    of: WeakKeyDictionary[object, dict[Key, Stored]] = WeakKeyDictionary()  # by the world's store
    decide = Committer._decide

    async def decide_from_records(
        self: Committer, messages: Sequence[Incoming], found: dict[Key, Stored], *others: Any
    ) -> list[Decision]:
        records = of.setdefault(self.store.tables, {})  # type: ignore[attr-defined]  # of a simulated one
        decisions = await decide(self, messages, {**records, **found}, *others)
        for message, decision in zip(messages, decisions, strict=True):
            if isinstance(decision, Append):
                records[message.key] = Stored(decision.event.position, message.digest)
        return decisions

    with _replaced(Committer, "_decide", decide_from_records):
        yield


def _puback_before_the_commit() -> AbstractContextManager[object]:
    put = Pipeline.put

    def ack_early(self: Pipeline, partition: int, inbounds: Sequence[Inbound], now: float) -> None:
        for inbound in inbounds:
            inbound.link.ack(inbound.packet)
        put(self, partition, inbounds, now)

    return _replaced(Pipeline, "put", ack_early)


def _puback_before_the_devices_packets() -> AbstractContextManager[object]:
    deliver = Delivery.deliver

    async def ack_early(
        self: Delivery, batch: Batch, outcome: Outcome, answered: Container[int]
    ) -> asyncio.Future[None]:
        await deliver(self, batch, outcome, answered)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    return _replaced(Delivery, "deliver", ack_early)


@contextlib.contextmanager
def _devices_read_before_the_commit() -> Iterator[None]:
    """The device list is read before the messages are stored."""
    stages, deliver, of = Pipeline._stages, Delivery.deliver, Devices.of
    loaded: dict[int, dict[str, tuple[Registration, ...]]] = {}  # by the world's devices, as is the next
    early: dict[int, dict[str, tuple[Registration, ...]]] = {}

    async def load_lists_first(self: Pipeline, inbounds: Sequence[Inbound]) -> Any:
        batch, members = await self._load(inbounds)
        users = {user for sent in batch.commands for user in members.of(sent.command.conversation)}
        loaded[id(self.devices)] = await of(self.devices, users) if users else {}
        return await stages(self, inbounds)

    async def deliver_to_early_lists(self: Delivery, *stage: Any) -> Any:
        early[id(self.devices)] = loaded.pop(id(self.devices), {})
        return await deliver(self, *stage)

    async def use_early_lists(
        self: Devices, users: Collection[str], cached: dict[str, tuple[Registration, ...]] | None = None
    ) -> dict[str, tuple[Registration, ...]]:
        return await of(self, users, cached) | early.pop(id(self), {})

    stack = ExitStack()
    stack.enter_context(_replaced(Pipeline, "_stages", load_lists_first))
    stack.enter_context(_replaced(Delivery, "deliver", deliver_to_early_lists))
    stack.enter_context(_replaced(Devices, "of", use_early_lists))
    with stack:
        yield


def _duplicate_key_taken_for_success() -> AbstractContextManager[object]:
    async def ignore_conflict(self: Committer, records: Sequence[Record], *, again: bool) -> int:
        with contextlib.suppress(AppendConflict):
            await self.store.append(records)
        return len(records)

    return _replaced(Committer, "_append_once", ignore_conflict)


def _new_rows_after_an_unknown_outcome() -> AbstractContextManager[object]:
    append_once = Committer._append_once

    async def append_without_retry(self: Committer, records: Sequence[Record], *, again: bool) -> int:
        try:
            return await append_once(self, records, again=again)
        except OutcomeUnknown:
            # They may be stored: all further decisions follow them.
            self.heads.put({record.event.conversation: record.event.position for record in records})
            self._outcome_unknown = True  # type: ignore[attr-defined]  # set only here
            return 0

    reread = Committer._reread

    async def reread_nothing(self: Committer, messages: Sequence[Incoming]) -> Mapping[Key, Stored]:
        if self.__dict__.pop("_outcome_unknown", False):
            return {}
        return await reread(self, messages)

    stack = ExitStack()
    stack.enter_context(_replaced(Committer, "_append_once", append_without_retry))
    stack.enter_context(_replaced(Committer, "_reread", reread_nothing))
    return stack


def _takeover_with_a_stale_head() -> AbstractContextManager[object]:
    """Cached heads are never invalidated, and no index on the seq contradicts them: see `without`."""
    return _replaced(Committer, "forget", lambda _: None)


def _outbox_dropped_on_puback() -> AbstractContextManager[object]:
    publish = Sender._publish

    async def discard_at_puback(self: Sender, entry: Any) -> None:
        await publish(self, entry)
        await self.discard(entry.key)

    return _replaced(Sender, "_publish", discard_at_puback)


def _cursor_trusted_without_its_id() -> AbstractContextManager[object]:
    look_up = Pages._look_up

    async def ignore_ids(self: Pages, cursors: Sequence[Any]) -> Any:
        return await look_up(self, [cursor.__class__(cursor.conversation, cursor.seq) for cursor in cursors])

    return _replaced(Pages, "_look_up", ignore_ids)


def _register_not_looked_up() -> AbstractContextManager[object]:
    return _replaced(View, "register", lambda *_: None)


def _pages_without_recalls() -> AbstractContextManager[object]:
    return _replaced(pages, "overlaid", lambda event, _: (event, []))


def _recalled_content_kept_on_the_device() -> AbstractContextManager[object]:
    return _replaced(client_store, "_set_registers", lambda *_: None)


MISTAKES = [
    Mistake(
        "the dedupe record is written before the commit and trusted",
        _dedupe_record_before_the_commit,
        frozenset({Kind.LOST, Kind.HOLE}),
        ("worker killed", "worker killed", "store doubtful", "store away"),
    ),
    Mistake(
        "PUBACK before the commit",
        _puback_before_the_commit,
        frozenset({Kind.FORGOTTEN}),
        ("store slow", "store slow", "worker killed", "worker killed", "worker killed"),
        resends=0.0,
    ),
    Mistake(
        "PUBACK before the broker has the devices' packets",
        _puback_before_the_devices_packets,
        frozenset({Kind.LOST}),
        ("publisher stalled",) * 4,
        messages=4,
        rare=True,
    ),
    Mistake(
        "the device list is read before the commit",
        _devices_read_before_the_commit,
        frozenset({Kind.LOST}),
        ("store slow",) * 5,
        workers=3,
        partitions=4,
        messages=1,
        first=280,
    ),
    Mistake(
        "a batch is committed unordered",
        nullcontext,
        frozenset({Kind.HOLE, Kind.DISORDER, Kind.LOST}),
        ("worker paused", "worker paused", "worker paused", "rival", "store doubtful"),
        messages=24,
        seconds=24.0,
        without=("unordered",),
        rare=True,
    ),
    Mistake(
        "a duplicate key is treated as success without reading both keys",
        _duplicate_key_taken_for_success,
        frozenset({Kind.LOST, Kind.REWRITTEN, Kind.CHANGED_ANSWER}),
        ("worker paused", "worker paused", "state flushed"),
    ),
    Mistake(
        "new rows are decided after an unknown outcome",
        _new_rows_after_an_unknown_outcome,
        frozenset({Kind.HOLE}),
        ("store doubtful", "store doubtful"),
    ),
    Mistake(
        "takeover with a stale head",
        _takeover_with_a_stale_head,
        frozenset({Kind.REWRITTEN, Kind.LOST, Kind.CHANGED_ANSWER}),
        ("worker paused",) * 4,
        messages=24,
        seconds=24.0,
        without=("unchecked_seq",),
        first=10,
    ),
    Mistake(
        "the outbox drops a message at the broker's PUBACK",
        _outbox_dropped_on_puback,
        frozenset({Kind.FORGOTTEN}),
        ("worker paused", "broker wiped", "broker wiped", "broker wiped"),
        workers=1,
        rare=True,
    ),
    Mistake(
        "a page's cursor is trusted without its id after a restore",
        _cursor_trusted_without_its_id,
        frozenset({Kind.DIFFERS, Kind.REWRITTEN}),
        ("store restored", "store restored"),
    ),
    Mistake(
        "a recall is decided without looking at its register",
        _register_not_looked_up,
        frozenset({Kind.WRONG_RECALL}),
        ("store slow",),
        sdk=6,
        messages=16,
    ),
    Mistake(
        "a page shows messages without their recalls",
        _pages_without_recalls,
        frozenset({Kind.SHOWN}),
        (),
        messages=16,
    ),
    Mistake(
        "a device keeps the content of a recalled message",
        _recalled_content_kept_on_the_device,
        frozenset({Kind.SHOWN}),
        (),
    ),
]

__all__ = ["MISTAKES", "Mistake"]
