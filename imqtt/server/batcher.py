"""What the sessions of many partitions receive, carried out in batches.

A batch is whatever came while the last one was being stored, from all partitions together: they share one
decision, one commit, and one packet to each device. With a batch for each of 16 partitions, a message at
4,200 a second cost the server 156 us and took 26 ms at the median; see `make bench`.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from itertools import islice
from operator import attrgetter
from random import random

from imqtt.core.backoff import backoff
from imqtt.errors import Unavailable
from imqtt.server.counters import Counters
from imqtt.server.intake import Delivery, Read
from imqtt.server.owner import Owner
from imqtt.server.problems import Problems

log = logging.getLogger(__name__)

WAITING_BATCHES = 8
STALL_SECONDS = 0.25  # a batch that takes longer waits for the store
LOOKED_AT_ONCE = 1_000  # commands that are decoded to find the reads among them
UNFINISHED_BATCHES = 4  # published, and waiting for the broker to confirm it

Finishing = tuple[Sequence[Delivery], Awaitable[object]]
_partition = attrgetter("partition")


class Begun:
    """What was received of one partition and is not finished: how many, and since when, oldest first."""

    def __init__(self) -> None:
        self.count = 0
        self.arrivals: deque[tuple[float, int]] = deque()
        self.idle = asyncio.Event()
        self.idle.set()

    def begin(self, count: int, now: float) -> None:
        self.count += count
        self.arrivals.append((now, count))
        self.idle.clear()

    def finish(self, count: int) -> None:
        self.count -= count
        while count:
            since, waiting = self.arrivals.popleft()
            if waiting > count:
                self.arrivals.appendleft((since, waiting - count))
            count -= min(waiting, count)
        if not self.count:
            self.idle.set()


class Batcher:
    """Carries out batches one after the other, and PUBACKs each when it is finished.

    A batch that waits for the store holds up those behind it, but no reads, neither its own nor theirs: they
    are answered meanwhile, and keep their places for the PUBACK, which follows the order of receipt.
    """

    def __init__(self, owner: Owner, counters: Counters, problems: Problems, max_batch: int) -> None:
        self._owner = owner
        self._counters = counters
        self._problems = problems
        self._max_batch = max_batch
        self._inbox: deque[Delivery] = deque()
        self._arrival = asyncio.Event()
        self._taken = asyncio.Event()
        self._unfinished: asyncio.Queue[Finishing] = asyncio.Queue(UNFINISHED_BATCHES)
        self._begun: dict[int, Begun] = {}  # by partition
        self._current: Sequence[Delivery] = ()  # the batch that is being carried out
        self._current_since = 0.0  # by the event loop's clock
        self._answered: set[int] = set()  # receipts of reads that have overtaken their batch

    async def put(self, partition: int, deliveries: Sequence[Delivery]) -> None:
        """Takes a partition's deliveries on.

        At QoS 0, where no ack bounds what a link receives, waits while the inbox is full. At QoS 1 the link
        itself stops reading, and taking everything on lets a read overtake the writes before it.
        """
        while len(self._inbox) >= WAITING_BATCHES * self._max_batch and any(
            it.received.packet_id is None for it in deliveries
        ):
            self._taken.clear()
            await self._taken.wait()
        self._inbox.extend(deliveries)
        if partition not in self._begun:
            self._begun[partition] = Begun()
        self._begun[partition].begin(len(deliveries), asyncio.get_running_loop().time())
        self._arrival.set()

    def take_over(self) -> None:
        """A partition's session is this process's own from now on."""
        self._owner.take_over()

    async def drained(self, partition: int) -> None:
        """Waits until everything that was given of a partition is finished."""
        if (begun := self._begun.get(partition)) is not None:
            await begun.idle.wait()

    def unfinished(self, partition: int) -> tuple[int, float]:
        """A partition's deliveries that are not finished, and how many seconds the oldest has waited."""
        begun = self._begun.get(partition)
        if begun is None or not begun.count:
            return 0, 0.0
        return begun.count, asyncio.get_running_loop().time() - begun.arrivals[0][0]

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._finish(), name="finisher")
            tasks.create_task(self._overtake(), name="overtaking-reads")
            while True:
                await self._arrival.wait()
                inbox = self._inbox
                batch = list(islice(inbox, self._max_batch))
                for _ in batch:
                    inbox.popleft()
                self._taken.set()
                if not inbox:
                    self._arrival.clear()
                # A sharded store takes a partition's records in one round trip if they stand together.
                batch.sort(key=_partition)
                self._current, self._current_since = batch, asyncio.get_running_loop().time()
                published = await self._carry_out(batch)
                self._current = ()
                if self._answered:
                    self._answered.difference_update(it.received.receipt for it in batch)
                await self._unfinished.put((batch, published))

    async def _carry_out(self, batch: Sequence[Delivery]) -> Awaitable[object]:
        attempt = 0
        while True:
            try:
                finishing = await self._owner.carry_out(batch, self._answered)
            except Unavailable as error:
                self._problems.store_failed("batches", error)
                # A store that cannot be read blocks, on purpose. Something of the batch may be stored already
                # and told to nobody, so from now on it is like one that an earlier owner has left.
                attempt += 1
                log.debug("a batch of %d, try %d: %s", len(batch), attempt, error)
                await asyncio.sleep(backoff(attempt, random()))
            except Exception:
                # A fault of this server's own. Nothing may block a partition: the batch is idempotent, so its
                # commands are tried one by one, and the sender of the one that fails again is told.
                self._counters.failures += 1
                if len(batch) == 1:
                    log.exception("a command on %s failed", batch[0].received.topic)
                    return self._owner.give_up(batch[0])
                log.exception("a batch of %d failed", len(batch))
                parts = [await self._carry_out([one._replace(again=True)]) for one in batch]
                return asyncio.ensure_future(_all(parts))
            else:
                self._problems.store_answered()
                return finishing
            batch = [delivery._replace(again=True) for delivery in batch]

    async def _overtake(self) -> None:
        """While a batch waits for the store, answers the waiting reads that do not depend on its writes."""
        loop = asyncio.get_running_loop()
        stalled: Sequence[Delivery] = ()
        looked_at: set[int] = set()  # receipts, during this stall
        while True:
            await asyncio.sleep(STALL_SECONDS)
            if not self._current or loop.time() - self._current_since < STALL_SECONDS:
                continue
            if self._current is not stalled:
                stalled = self._current
                looked_at.clear()
            new = [it for it in self._waiting() if it.received.receipt not in looked_at][:LOOKED_AT_ONCE]
            if not new:
                continue
            try:
                await self._owner.answer_reads(new, self._claim)
            except Unavailable as error:
                log.debug("reads wait for the store: %s", error)
            except Exception:
                self._counters.failures += 1
                log.exception("reads could not overtake a batch")
                looked_at.update(it.received.receipt for it in new)
            else:
                looked_at.update(it.received.receipt for it in new)

    def _waiting(self) -> list[Delivery]:
        """What was received at QoS 1 and is not carried out yet."""
        return [it for it in (*self._current, *self._inbox) if it.received.packet_id is not None]

    def _claim(self, reads: Sequence[Read]) -> Sequence[Read]:
        """Those reads that still wait. Their batch will not answer them again."""
        waiting = {it.received.receipt for it in self._waiting()} - self._answered
        claimed = [it for it in reads if it.receipt in waiting]
        self._answered.update(it.receipt for it in claimed)
        return claimed

    async def _finish(self) -> None:
        """PUBACKs batches in order, each when the broker has taken its frames: the transaction's end."""
        while True:
            batch, published = await self._unfinished.get()
            await published
            finished: Counter[int] = Counter()
            for delivery in batch:
                delivery.link.ack(delivery.received)
                finished[delivery.partition] += 1
            for partition, count in finished.items():
                self._begun[partition].finish(count)


async def _all(futures: Sequence[Awaitable[object]]) -> None:
    for future in futures:
        await future
