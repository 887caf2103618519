"""One partition: a persistent MQTT session, and whoever holds its connection owns it.

Taking over is connecting. The old owner is cut off by the broker, and every message that it had not
PUBACKed comes again, in order, to the new one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import random

from imqtt.broker.errors import LinkError, Refused
from imqtt.broker.link import Link
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError
from imqtt.protocol.topics import all_up
from imqtt.server.batcher import Batcher
from imqtt.server.intake import Delivery

log = logging.getLogger(__name__)

# After connecting, what is known already is taken for an earlier owner's unfinished work.
TAKEOVER_SECONDS = 10.0
SHORT_LIVED_SECONDS = 5.0


class Partition:
    """Holds one partition's session, and hands on what it receives."""

    def __init__(
        self, number: int, batcher: Batcher, connect: Callable[[], Awaitable[Link]], max_batch: int
    ) -> None:
        self._number = number
        self._batcher = batcher
        self._connect = connect
        self._max_batch = max_batch
        self._stopping = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Takes nothing on any more; `run` returns when what was begun is finished."""
        self._stopping.set()
        if self._receiver is not None:
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
                await self._serve(link, connected)
            except (OSError, LinkError) as error:
                log.warning("partition %d: %s", self._number, error)
            finally:
                await link.close()
            # Two who take a session from each other starve it: the shorter it was held, the longer the wait.
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            await self._pause(backoff(attempt, random()))

    async def _serve(self, link: Link, connected: float) -> None:
        self._batcher.take_over()
        self._receiver = asyncio.create_task(
            self._receive(link, connected), name=f"partition-{self._number}-receiver"
        )
        try:
            await asyncio.wait([self._receiver])
            if not self._receiver.cancelled():  # by `stop`
                self._receiver.result()
            await self._batcher.drained()
        finally:
            self._receiver.cancel()

    async def _receive(self, link: Link, connected: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            received = await link.receive(self._max_batch)
            takeover = loop.time() - connected < TAKEOVER_SECONDS
            await self._batcher.put([Delivery(self._number, it, link, takeover or it.dup) for it in received])

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
