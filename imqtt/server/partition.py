"""One partition: a persistent MQTT session. The worker that holds its connection owns the partition.

Connecting takes the session over. The broker disconnects the previous owner, and redelivers every packet
that it had not PUBACKed, in order, to the new one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import random
from typing import Protocol

from imqtt.broker.link import Link, Received
from imqtt.core.backoff import backoff
from imqtt.core.live_workers import contention
from imqtt.problems import Problem
from imqtt.protocol.topics import all_up
from imqtt.server.batch import Inbound
from imqtt.server.connections import ReconnectingLink, first_of
from imqtt.server.pipeline import Pipeline

TAKEOVER_SECONDS = 10.0  # after connecting: commands may be the previous owner's unfinished work
CUTS_REMEMBERED_SECONDS = 600.0
CONTESTED_CUTS = 4  # unexplained disconnections from which on another server must be taking the session
YIELD_SECONDS = 10.0  # between two checks whether the worker that keeps a contested session is still there


class Confirmation(Protocol):
    """Whether a partition may take its session again after a disconnection; see `Assignment`."""

    async def confirmed(self) -> None: ...

    async def outranked(self) -> bool: ...


@dataclass(eq=False, repr=False)
class Partition:
    """Holds one partition's session while `run` runs, and passes on the packets that it receives.

    `broker_steady(since)` tells whether the broker has kept this process's other connections since then; a
    disconnection is unexplained if it has. `taken` is the problem that another server keeps taking sessions.
    """

    number: int
    pipeline: Pipeline
    connection: ReconnectingLink
    broker_steady: Callable[[float], bool]
    taken: Problem

    def __post_init__(self) -> None:
        self._stopping = asyncio.Event()
        self._cuts: deque[float] = deque()
        self.held_since: float | None = None  # by the event loop's clock; None while it is not held

    def stop(self) -> None:
        """Stops receiving; `run` returns when the work begun is finished."""
        self._stopping.set()

    @property
    def cuts(self) -> int:
        """The number of recent unexplained disconnections."""
        now = asyncio.get_running_loop().time()
        while self._cuts and self._cuts[0] < now - CUTS_REMEMBERED_SECONDS:
            self._cuts.popleft()
        return len(self._cuts)

    @property
    def contested(self) -> bool:
        """Whether another server keeps taking the session from this worker."""
        return self.cuts >= CONTESTED_CUTS

    async def run(self, ready: asyncio.Event, confirmation: Confirmation, *, starting: bool) -> None:
        """Holds the session, and takes it again after every disconnection, until stopped or cancelled.

        With `starting`, a permanent refusal raises `SetupError`. Otherwise the worker keeps trying.
        """
        try:
            await self.connection.run(
                partial(self._serve, ready),
                ready=ready if starting else None,
                until=self._stopping,
                after=partial(self._recover, confirmation),
            )
        finally:
            self._stopping.clear()
            self.connection.works()  # the session is no longer this worker's to hold

    async def _recover(self, confirmation: Confirmation, attempt: int) -> None:
        """Waits after a disconnection until the session may be taken again."""
        cut = asyncio.get_running_loop().time()
        await asyncio.sleep(backoff(attempt, random()))
        if self.broker_steady(cut):
            self._cuts.append(cut)
            if self.contested:
                self.taken.start(
                    f"{self.cuts} times in {CUTS_REMEMBERED_SECONDS / 60:.0f} minutes; "
                    "does another imqtt serve this broker?",
                    self.connection.name,
                )
            await asyncio.sleep(contention(self.cuts, random()))
            while self.contested and await confirmation.outranked():  # noqa: ASYNC110 - it asks others
                await asyncio.sleep(YIELD_SECONDS)
        await confirmation.confirmed()

    async def _serve(self, ready: asyncio.Event, link: Link) -> None:
        connected = asyncio.get_running_loop().time()
        await link.subscribe(all_up(self.number))
        self.held_since = connected
        self.connection.works()
        ready.set()
        self.pipeline.take_over()
        try:
            link.hand_to(partial(self._put, link, connected))
            await first_of(link.wait_closed(), self._stopping.wait())
            link.hand_to(None)
            if link.closed is not None:
                raise link.closed
            # Or until another worker has taken over; it redoes the unfinished work.
            await first_of(self.pipeline.drained(self.number), link.wait_closed())
        finally:
            self.held_since = None

    def _put(self, link: Link, connected: float, packets: Sequence[Received]) -> None:
        now = asyncio.get_running_loop().time()
        takeover = now - connected < TAKEOVER_SECONDS
        inbounds = [Inbound(self.number, packet, link, takeover or packet.dup) for packet in packets]
        self.pipeline.put(self.number, inbounds, now)
