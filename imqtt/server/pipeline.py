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
from collections import defaultdict, deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from random import random

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
from imqtt.server.signals import Signals
from imqtt.stores.base import RecordRefused

log = logging.getLogger(__name__)

WAITING_BATCHES = 8
STALL_SECONDS = 0.25  # a batch that takes longer waits for the store
LOOKED_AT_ONCE = 1_000  # commands that are decoded to find the reads among them
UNFINISHED_BATCHES = 4  # delivered, and waiting for the broker to confirm it

_partition = attrgetter("partition")


class Unfinished:
    """The packets of one partition that are not acknowledged: when each arrived, oldest first."""

    def __init__(self) -> None:
        self.arrivals: deque[float] = deque()
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self, count: int, now: float) -> None:
        self.arrivals.extend([now] * count)
        self.idle.clear()

    def finish(self) -> None:
        """The oldest is acknowledged."""
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
    devices: Devices
    committer: Committer
    signals: Signals
    control: Control
    delivery: Delivery
    counters: Counters
    problems: Problems
    max_batch: int

    def __post_init__(self) -> None:
        self._inbox: deque[Inbound] = deque()
        self._arrival = asyncio.Event()
        self._taken = asyncio.Event()
        self._delivered: asyncio.Queue[tuple[Sequence[Inbound], Awaitable[object]]] = asyncio.Queue(
            UNFINISHED_BATCHES
        )
        self._unfinished: defaultdict[int, Unfinished] = defaultdict(Unfinished)  # by partition
        self._current: Sequence[Inbound] = ()  # the batch that is being processed
        self._current_since = 0.0  # by the event loop's clock
        self._answered: set[int] = set()  # receipts of reads that have overtaken their batch

    async def put(self, partition: int, inbounds: Sequence[Inbound]) -> None:
        """Takes a partition's packets.

        At QoS 0, where no PUBACK bounds the received packets, waits while the inbox is full. At QoS 1 the
        link itself stops reading, and taking everything lets a read overtake the writes before it.
        """
        while len(self._inbox) >= WAITING_BATCHES * self.max_batch and any(
            inbound.packet.packet_id is None for inbound in inbounds
        ):
            self._taken.clear()
            await self._taken.wait()
        self._inbox.extend(inbounds)
        self._unfinished[partition].begin(len(inbounds), asyncio.get_running_loop().time())
        self._arrival.set()

    def take_over(self) -> None:
        """This process has taken a session over: its cached heads may be stale."""
        self.committer.forget()

    async def drained(self, partition: int) -> None:
        await self._unfinished[partition].idle.wait()

    def unfinished(self, partition: int) -> tuple[int, float]:
        """The number of a partition's unfinished packets, and the age of the oldest in seconds."""
        arrivals = self._unfinished[partition].arrivals
        return len(arrivals), asyncio.get_running_loop().time() - arrivals[0] if arrivals else 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._acknowledge(), name="acknowledging")
            tasks.create_task(self._overtake(), name="overtaking-reads")
            while True:
                await self._arrival.wait()
                inbox = self._inbox
                batch = [inbox.popleft() for _ in range(min(len(inbox), self.max_batch))]
                self._taken.set()
                if not inbox:
                    self._arrival.clear()
                self.counters.received += len(batch)
                # A sharded store takes a partition's records in one round trip if they stand together.
                batch.sort(key=_partition)
                self._current, self._current_since = batch, asyncio.get_running_loop().time()
                delivered = await self._process(batch)
                self._current = ()
                if self._answered:
                    self._answered.difference_update(inbound.packet.receipt for inbound in batch)
                await self._delivered.put((batch, delivered))

    async def _process(self, batch: Sequence[Inbound]) -> Awaitable[object]:
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

    async def _stages(self, inbounds: Sequence[Inbound]) -> Awaitable[object]:
        batch, members = await self._load(inbounds)
        # Side by side, so that they share round trips and commits. All have ended before one's error is
        # raised.
        registered, decisions, signalled = await asyncio.gather(
            self.devices.register(batch.spoke),
            self.committer.commit(batch.commands, members),
            self.signals.carry_out(batch),
            return_exceptions=True,
        )
        if isinstance(registered, BaseException):
            raise registered
        if isinstance(decisions, BaseException):
            raise decisions
        if isinstance(signalled, BaseException):
            raise signalled
        outcome = Outcome(members, registered, decisions, signalled)
        if not batch.orders:
            return await self.delivery.deliver(batch, outcome, self._answered)
        revoked, copied = await self.control.carry_out(batch.orders)
        return asyncio.gather(copied, await self.delivery.deliver(batch, outcome, self._answered, revoked))

    async def _load(self, inbounds: Sequence[Inbound]) -> tuple[Batch, Members]:
        batch = self.router.sort(inbounds)
        members = await members_of(conversations_of(batch))
        return of_members(batch, members), members

    async def _split(self, batch: Sequence[Inbound], error: Exception) -> Awaitable[object]:
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

    async def _acknowledge(self) -> None:
        """PUBACKs batches in order, each when it is finished: the end of the transaction."""
        while True:
            batch, delivered = await self._delivered.get()
            await delivered
            for inbound in batch:
                inbound.link.ack(inbound.packet)
                self._unfinished[inbound.partition].finish()

    # --- reads that overtake

    async def _overtake(self) -> None:
        """While a batch waits for the store, answers the waiting reads that do not depend on its writes."""
        loop = asyncio.get_running_loop()
        stalled: Sequence[Inbound] = ()
        looked_at: set[int] = set()  # receipts, during this stall
        while True:
            await asyncio.sleep(STALL_SECONDS)
            if not self._current or loop.time() - self._current_since < STALL_SECONDS:
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
        """The packets that were received at QoS 1 and are not processed yet."""
        received = (*self._current, *self._inbox)
        return [inbound for inbound in received if inbound.packet.packet_id is not None]

    def _claim(self, reads: Sequence[Request[ReadCommand]]) -> Sequence[Request[ReadCommand]]:
        """Those reads that still wait. Their batch will not answer them again."""
        waiting = {inbound.packet.receipt for inbound in self._waiting()} - self._answered
        claimed = [read for read in reads if read.receipt in waiting]
        self._answered.update(read.receipt for read in claimed)
        return claimed


def _again(batch: Sequence[Inbound]) -> list[Inbound]:
    """A part of a failed batch may be stored and not delivered, as after another owner's crash."""
    return [replace(inbound, again=True) for inbound in batch]
