"""One partition: a persistent MQTT session. The worker that holds its connection owns the partition.

Connecting takes the session over. The broker disconnects the previous owner, and redelivers every message
that it had not PUBACKed, in order, to the new one.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from random import random
from typing import Any

from imqtt.broker.errors import ConnackRefused, LinkError
from imqtt.broker.link import Link
from imqtt.core.backoff import backoff
from imqtt.core.membership import contention
from imqtt.errors import SetupError
from imqtt.problems import Problem
from imqtt.protocol.topics import all_up
from imqtt.server.batcher import Batcher
from imqtt.server.connections import Line
from imqtt.server.intake import Delivery

# For this long after connecting, duplicates count as the previous owner's unfinished work.
TAKEOVER_SECONDS = 10.0
SHORT_LIVED_SECONDS = 5.0
CUTS_REMEMBERED_SECONDS = 600.0
CONTESTED_CUTS = 4  # unexplained disconnections from which on another server must be taking the session
YIELD_SECONDS = 10.0  # between two looks whether the worker that a session was left to is still there


class Partition:
    """Holds one partition's session while `run` runs, and passes on what it receives.

    `broker_steady(since)` tells whether the broker has kept this process's other connections since then; a
    disconnection is unexplained if it has. `confirmed()` waits for a fresh assignment; its caller stops this
    partition meanwhile if it belongs to another worker. `outranked()` tells whether this worker must leave a
    contested session to another one. `taken` is the problem that another server keeps taking sessions.
    """

    def __init__(
        self,
        number: int,
        batcher: Batcher,
        line: Line,
        max_batch: int,
        *,
        broker_steady: Callable[[float], bool],
        confirmed: Callable[[], Coroutine[Any, Any, None]],
        outranked: Callable[[], Awaitable[bool]],
        taken: Problem,
    ) -> None:
        self.number = number
        self._batcher = batcher
        self._line = line
        self._max_batch = max_batch
        self._broker_steady = broker_steady
        self._confirmed = confirmed
        self._outranked = outranked
        self._taken = taken
        self._stopping = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None
        self._cuts: deque[float] = deque()
        self._held_before = False
        self.held_since: float | None = None
        """Start of the session, by the event loop's clock; None while it is not held."""
        self.refusal = ""
        """Why the broker refuses the session; the worker keeps trying."""
        self.refused_at = 0.0
        """Start of the refusals, by the event loop's clock."""

    def stop(self) -> None:
        """Stops receiving; `run` returns when the work begun is finished."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.cancel()

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

    async def run(self, ready: asyncio.Event, *, starting: bool) -> None:
        """Holds the session, and takes it again after every disconnection, until stopped or cancelled.

        With `starting`, a permanent refusal by the broker is a mistake in the settings and raises
        `SetupError`. A worker that has served before keeps trying, and keeps its other partitions.
        """
        try:
            await self._hold(ready, starting=starting)
        finally:
            self._stopping.clear()
            self.refusal = ""
            self._line.works()  # the session is no longer this worker's to hold

    async def _hold(self, ready: asyncio.Event, *, starting: bool) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                link = await self._line.open()
            except (OSError, LinkError) as error:
                self._note_refusal(str(error) if isinstance(error, ConnackRefused) else "")
                mistaken = isinstance(error, ConnackRefused) and not error.retryable
                if mistaken and starting and not ready.is_set():
                    raise SetupError(f"the broker does not take the server: {error}") from error
                attempt += 1
                await _first_of(self._line.pause(attempt, error), self._stopping.wait())
                continue
            connected = loop.time()
            self.refusal = ""
            try:
                await link.subscribe(all_up(self.number))
                self.held_since = connected
                self._line.works()
                ready.set()
                await self._serve(link, connected)
            except (OSError, LinkError) as error:
                self._line.failed(error)
            finally:
                self.held_since = None
                await link.close()
            if self._stopping.is_set():
                return
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            await self._recover(attempt)

    def _note_refusal(self, refusal: str) -> None:
        if not self.refusal:
            self.refused_at = asyncio.get_running_loop().time()
        self.refusal = refusal

    async def _recover(self, attempt: int) -> None:
        """Waits after a disconnection until the session may be taken again."""
        cut = asyncio.get_running_loop().time()
        await self._pause(backoff(attempt, random()))
        if self._broker_steady(cut):
            self._cuts.append(cut)
            if self.contested:
                self._taken.start(
                    f"{self.cuts} times in {CUTS_REMEMBERED_SECONDS / 60:.0f} minutes; "
                    "does another imqtt serve this broker?",
                    self._line.name,
                )
            await self._pause(contention(self.cuts, random()))
            while self.contested and not self._stopping.is_set() and await self._outranked():
                await self._pause(YIELD_SECONDS)
        await _first_of(self._confirmed(), self._stopping.wait())

    async def _serve(self, link: Link, connected: float) -> None:
        if self._held_before:
            self._batcher.take_over()
        self._held_before = True
        self._receiver = asyncio.create_task(
            self._receive(link, connected), name=f"partition-{self.number}-receiver"
        )
        try:
            await asyncio.wait([self._receiver])
            if not self._receiver.cancelled():  # by `stop`
                self._receiver.result()
            # Or until another worker has taken over; it redoes the unfinished work.
            await _first_of(self._batcher.drained(self.number), link.wait_closed())
        finally:
            self._receiver.cancel()

    async def _receive(self, link: Link, connected: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            received = await link.receive(self._max_batch)
            takeover = loop.time() - connected < TAKEOVER_SECONDS
            deliveries = [Delivery(self.number, packet, link, takeover or packet.dup) for packet in received]
            await self._batcher.put(self.number, deliveries)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them returns, and cancels the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
