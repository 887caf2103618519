"""One partition: a persistent MQTT session, and whoever holds its connection owns it.

Taking over is connecting. The old owner is cut off by the broker, and every message that it had not
PUBACKed comes again, in order, to the new one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import random

from imqtt.broker.errors import LinkError, Refused
from imqtt.broker.link import Link, Received
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError
from imqtt.protocol.topics import all_up
from imqtt.server.counters import Counters
from imqtt.server.owner import Owner

log = logging.getLogger(__name__)

UNFINISHED_BATCHES = 4  # published, and waiting for the broker to confirm it
TAKEOVER_SECONDS = (
    10.0  # after connecting, what is known already is taken for an earlier owner's unfinished work
)
SHORT_LIVED_SECONDS = 5.0

Finishing = tuple[Sequence[Received], asyncio.Future[None]]


class Partition:
    """Receives one partition's commands in batches, and PUBACKs each batch when it is finished."""

    def __init__(
        self,
        number: int,
        owner: Owner,
        connect: Callable[[], Awaitable[Link]],
        counters: Counters,
        max_batch: int,
    ) -> None:
        self._number = number
        self._owner = owner
        self._connect = connect
        self._counters = counters
        self._max_batch = max_batch
        self._stopping = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None
        self._waiting = False  # the receiver, for messages: it has begun nothing

    def stop(self) -> None:
        """Takes nothing on any more; `run` returns when what was begun is finished."""
        self._stopping.set()
        if self._receiver is not None and self._waiting:
            self._receiver.cancel()

    async def run(self, ready: asyncio.Event) -> None:
        """Holds the session, and takes it again after every cut, until stopped or cancelled."""
        attempt = 0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                link = await self._connect()
            except (OSError, LinkError) as error:
                if isinstance(error, Refused) and not error.retryable and not ready.is_set():
                    raise SetupError(f"the broker does not take the server: {error}") from error
                attempt += 1
                level = logging.WARNING if attempt == 1 else logging.DEBUG
                log.log(level, "partition %d: no connection (%s); trying again", self._number, error)
                await self._pause(backoff(attempt, random()))
                continue
            connected = loop.time()
            try:
                await link.subscribe(all_up(self._number))
                ready.set()
                self._owner.take_over()
                await self._serve(link, connected)
            except (OSError, LinkError) as error:
                log.warning("partition %d: %s", self._number, error)
            finally:
                await link.close()
            # Two who take a session from each other starve it: the shorter it was held, the longer the wait.
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            await self._pause(backoff(attempt, random()))

    async def _serve(self, link: Link, connected: float) -> None:
        unfinished: asyncio.Queue[Finishing | None] = asyncio.Queue(UNFINISHED_BATCHES)
        name = f"partition-{self._number}"
        finisher = asyncio.create_task(_finish(link, unfinished), name=f"{name}-finisher")
        self._receiver = asyncio.create_task(
            self._receive(link, connected, unfinished), name=f"{name}-receiver"
        )
        try:
            await asyncio.wait([self._receiver])
            if not self._receiver.cancelled():  # by `stop`, while it waited
                self._receiver.result()
            await unfinished.put(None)
            await finisher
        finally:
            self._receiver.cancel()
            finisher.cancel()

    async def _receive(
        self, link: Link, connected: float, unfinished: asyncio.Queue[Finishing | None]
    ) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            self._waiting = True
            received = await link.receive(self._max_batch)
            self._waiting = False
            takeover = loop.time() - connected < TAKEOVER_SECONDS
            await unfinished.put((received, await self._carry_out(received, takeover=takeover)))

    async def _carry_out(self, received: Sequence[Received], *, takeover: bool) -> asyncio.Future[None]:
        try:
            return await self._owner.carry_out(received, takeover=takeover)
        except Exception:
            # A fault of this server's own. Nothing may block a partition: the batch is idempotent, so its
            # commands are tried one by one, and the sender of the one that fails again is told.
            self._counters.failures += 1
            if len(received) == 1:
                log.exception("partition %d: a command on %s failed", self._number, received[0].topic)
                return self._owner.give_up(received[0])
            log.exception("partition %d: a batch of %d failed", self._number, len(received))
        finishing = [await self._carry_out([one], takeover=True) for one in received]
        return asyncio.ensure_future(_all(finishing))

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


async def _finish(link: Link, unfinished: asyncio.Queue[Finishing | None]) -> None:
    """PUBACKs batches in order, each when the broker has taken its frames: the transaction's end."""
    while (finishing := await unfinished.get()) is not None:
        received, published = finishing
        await published
        for delivery in received:
            link.ack(delivery)


async def _all(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        await future
