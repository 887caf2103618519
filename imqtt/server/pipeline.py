"""The pipeline: decode -> route -> load -> decide -> append -> deliver -> acknowledge.

A batch is whatever arrived in the sessions of all partitions while the last one was being stored. Its
commands share one decision, one commit, and one packet to each device. With a batch for each of 16
partitions, a message at 4,200 a second cost the server 156 us and took 26 ms at the median; see `make bench`.

A PUBACK ends the transaction: the events of the batch are durable then, and the broker has its frames for all
devices. After a crash anywhere before, the broker delivers the batch again, and it is answered from the
store.
"""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from random import random
from typing import Any

from msgspec.structs import replace

from imqtt.core.backoff import backoff
from imqtt.core.conversations import Members
from imqtt.errors import Failed, Invalid, Unavailable
from imqtt.model import ReadCommand
from imqtt.problems import explain
from imqtt.server.batch import Batch, Inbound, Request
from imqtt.server.committer import Committer
from imqtt.server.control import Control
from imqtt.server.counters import Counters
from imqtt.server.delivery import Delivery, Outcome
from imqtt.server.devices import Devices
from imqtt.server.memberships import members_of
from imqtt.server.problems import PROBE, Problems
from imqtt.server.rejections import rejection
from imqtt.server.router import Router, conversations_of, of_members
from imqtt.server.signals import Signalled, Signals
from imqtt.state.base import State
from imqtt.stores.base import RecordRefused

log = logging.getLogger(__name__)

STALL_SECONDS = 0.25  # a batch that takes longer waits for the store
LOOKED_AT_ONCE = 1_000  # commands that are decoded to find the reads among them
UNFINISHED_BATCHES = 4  # delivered, and waiting for the broker to confirm it
# Batches begin this many seconds apart when more than `FREE_BATCHES` that write have followed each other
# faster, so that more messages share a commit: at 2,000 a second that saves a third of the server's CPU time.
# Neither a message alone nor a device that fetches one page after the other waits.
BATCH_INTERVAL = 0.002
FREE_BATCHES = 8

_partition, _partition_and_link = attrgetter("partition"), attrgetter("partition", "link")


class Unfinished:
    """The packets of one partition that are not acknowledged: when each arrived, oldest first."""

    def __init__(self) -> None:
        self.arrivals: deque[float] = deque()
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self, count: int, now: float) -> None:
        self.arrivals.extend([now] * count)
        self.idle.clear()

    def finish(self, count: int) -> None:
        """The oldest are acknowledged."""
        for _ in range(count):
            self.arrivals.popleft()
        if not self.arrivals:
            self.idle.set()


@dataclass(eq=False, repr=False)
class Pipeline:
    """Processes batches one after the other, and acknowledges each when it is finished.

    A batch that waits for the store holds up the batches behind it, but no reads, neither its own nor theirs:
    they are answered meanwhile, and keep their places for the PUBACK, which follows the order of receipt.
    """

    router: Router
    state: State
    devices: Devices
    committer: Committer
    signals: Signals
    control: Control
    delivery: Delivery
    counters: Counters
    problems: Problems
    max_batch: int
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Inbound] = deque()
        self._arrival = asyncio.Event()
        self._due = 0.0  # when a batch after the free ones may begin, by the event loop's clock
        self._delivered: deque[tuple[Sequence[Inbound], asyncio.Future[Any]]] = deque()
        self._acknowledged = asyncio.Event()
        self._unfinished: defaultdict[int, Unfinished] = defaultdict(Unfinished)  # by partition
        self._current: Sequence[Inbound] = ()  # the batch that is being processed
        self._current_since = 0.0  # by the event loop's clock
        self._answered: set[int] = set()  # receipts of reads that have overtaken their batch

    def put(self, partition: int, inbounds: Sequence[Inbound], now: float) -> None:
        """Takes a partition's packets at a time of the event loop's clock.

        The link stops reading while too many are not acknowledged. Taking everything lets a read overtake the
        writes before it.
        """
        self._inbox.extend(inbounds)
        self._unfinished[partition].begin(len(inbounds), now)
        self._arrival.set()

    def take_over(self) -> None:
        """This process has taken a session over: its cached heads may be stale."""
        self.committer.forget()

    async def drained(self, partition: int) -> None:
        await self._unfinished[partition].idle.wait()

    def unfinished(self, partition: int) -> tuple[int, float]:
        """The number of a partition's unfinished packets, and the age of the oldest in seconds."""
        arrivals = self._unfinished[partition].arrivals
        return len(arrivals), self._loop.time() - arrivals[0] if arrivals else 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._overtake(), name="overtaking-reads")
            while True:
                await self._arrival.wait()
                await self._gather()
                inbox = self._inbox
                batch = [inbox.popleft() for _ in range(min(len(inbox), self.max_batch))]
                if not inbox:
                    self._arrival.clear()
                self.counters.received += len(batch)
                # A sharded store takes a partition's records in one round trip if they stand together.
                batch.sort(key=_partition)
                self._current, self._current_since = batch, self._loop.time()
                delivered = await self._process(batch)
                self._current = ()
                if self._answered:
                    self._answered.difference_update(inbound.packet.receipt for inbound in batch)
                self._delivered.append((batch, delivered))
                delivered.add_done_callback(self._acknowledge)
                while len(self._delivered) > UNFINISHED_BATCHES:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()

    async def _gather(self) -> None:
        """Waits while batches follow each other too fast. (A token bucket, as a time: GCRA.)"""
        now = self._loop.time()
        wait = self._due - now - FREE_BATCHES * BATCH_INTERVAL
        if wait > 0:
            await asyncio.sleep(wait)

    async def _process(self, batch: Sequence[Inbound]) -> asyncio.Future[Any]:
        """Processes a batch whatever happens. The result is done when it may be acknowledged."""
        attempt = 0
        while True:
            try:
                delivered = await self._stages(batch)
            except Unavailable as error:
                # A store that cannot be read blocks, on purpose.
                self.problems.store.start(explain(error), "batches")
                attempt += 1
                log.debug("a batch of %d, try %d: %s", len(batch), attempt, error)
                await asyncio.sleep(backoff(attempt, random()))
            except Exception as error:  # noqa: BLE001 - its culprit is found, told and logged
                return await self._split(batch, error)
            else:
                self.problems.store.end_all(but=PROBE)  # work that still waits reports its next failure
                return delivered
            batch = _again(batch)

    async def _stages(self, inbounds: Sequence[Inbound]) -> asyncio.Future[Any]:
        batch, members = await self._load(inbounds)
        users = {device.user for device in batch.spoke}
        begun = await self.state.begin(
            users,
            [command.key for command in batch.commands],
            Counter([command.sender for command in batch.commands]),
            self.clock(),
        )
        if batch.commands:
            self._due = max(self._due, self._current_since) + BATCH_INTERVAL
        registered = self.devices.match(batch.spoke, await self.devices.of(users, begun.lists))
        # Side by side, so that they share round trips and commits.
        written, decisions, signalled = await _together(
            self.devices.write(registered) if registered.changed else None,
            self.committer.commit(batch.commands, members, begun) if batch.commands else None,
            self.signals.carry_out(batch) if self.signals.are_in(batch) else None,
        )
        outcome = Outcome(members, written or registered, decisions or (), signalled or Signalled())
        if not batch.orders:
            return await self.delivery.deliver(batch, outcome, self._answered)
        revoked, copied = await self.control.carry_out(batch.orders)
        return asyncio.gather(copied, await self.delivery.deliver(batch, outcome, self._answered, revoked))

    async def _load(self, inbounds: Sequence[Inbound]) -> tuple[Batch, Members]:
        batch = self.router.sort(inbounds)
        members = await members_of(conversations_of(batch))
        return of_members(batch, members), members

    async def _split(self, batch: Sequence[Inbound], error: Exception) -> asyncio.Future[Any]:
        """Nothing may block a partition: halves of a failed batch are tried until the culprit is alone.

        Its sender is told. Batches are idempotent, so a part that succeeded before does no harm.
        """
        refused = isinstance(error, RecordRefused)
        if not refused:
            self.counters.failures += 1
        if len(batch) > 1:
            log.log(
                logging.DEBUG if refused else logging.ERROR,
                "a batch of %d failed", len(batch), exc_info=not refused,
            )  # fmt: skip
            middle = len(batch) // 2
            first = await self._process(_again(batch[:middle]))
            return asyncio.gather(first, await self._process(_again(batch[middle:])))
        topic, payload = batch[0].packet[:2]
        if refused:
            log.warning("the store refuses a message on %s: %s", topic, error)
            answer: Invalid | Failed = Invalid(f"the store cannot hold this message: {error}")
        else:
            log.error("a command on %s failed", topic, exc_info=error)
            answer = Failed("the server failed on this command; its log says why", retry_after=60_000)
        device = self.router.device(topic)
        return self.delivery.reject([] if device is None else [rejection(device, payload, answer)])

    def _acknowledge(self, _: asyncio.Future[Any]) -> None:
        """PUBACKs batches in order, each when it is finished: the end of the transaction."""
        while self._delivered and (delivered := self._delivered[0][1]).done():
            if delivered.cancelled() or delivered.exception() is not None:
                return  # its task's error ends the server; the next owner does the batch again
            batch, _ = self._delivered.popleft()
            for (partition, link), inbounds in groupby(batch, _partition_and_link):
                packets = [inbound.packet for inbound in inbounds]
                link.ack(*packets)
                self._unfinished[partition].finish(len(packets))
            self._acknowledged.set()

    # --- reads that overtake

    async def _overtake(self) -> None:
        """While a batch waits for the store, answers the waiting reads that do not depend on its writes."""
        stalled: Sequence[Inbound] = ()
        looked_at: set[int] = set()  # receipts, during this stall
        while True:
            await asyncio.sleep(STALL_SECONDS)
            if not self._current or self._loop.time() - self._current_since < STALL_SECONDS:
                continue
            if self._current is not stalled:
                stalled = self._current
                looked_at.clear()
            new = [inbound for inbound in self._waiting() if inbound.packet.receipt not in looked_at]
            # Reads beyond the room are looked at later: their batch may wait for hours.
            new = new[: max(0, min(LOOKED_AT_ONCE, self.delivery.reads.room))]
            if not new:
                continue
            try:
                batch, _ = await self._load(new)
                await self.delivery.answer_reads(batch, self._claim)
            except Unavailable as error:
                log.debug("reads wait for the store: %s", error)
                continue
            except Exception:
                self.counters.failures += 1
                log.exception("reads could not overtake a batch")
            looked_at.update(inbound.packet.receipt for inbound in new)

    def _waiting(self) -> list[Inbound]:
        """The packets that are not processed yet."""
        return [*self._current, *self._inbox]

    def _claim(self, reads: Sequence[Request[ReadCommand]]) -> Sequence[Request[ReadCommand]]:
        """Those reads that still wait. Their batch will not answer them again."""
        waiting = {inbound.packet.receipt for inbound in self._waiting()} - self._answered
        claimed = [read for read in reads if read.receipt in waiting]
        self._answered.update(read.receipt for read in claimed)
        return claimed


async def _together(*works: Coroutine[Any, Any, Any] | None) -> Sequence[Any]:
    """The results of some works, None where there is none; a single one runs without a task of its own.

    All have ended before the first one's error is raised.
    """
    if sum(work is not None for work in works) < 2:
        return [work and await work for work in works]
    results = await asyncio.gather(*(work or _nothing() for work in works), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _nothing() -> None:
    return


def _again(batch: Sequence[Inbound]) -> list[Inbound]:
    """A part of a failed batch may be stored and not delivered, as after another owner's crash."""
    return [replace(inbound, again=True) for inbound in batch]
