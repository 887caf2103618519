"""The parts of an open client, and the tasks that run them."""

import asyncio
import contextlib
import logging

from imqtt.client.catchup import CatchUp
from imqtt.client.connection_tasks import ConnectionTasks
from imqtt.client.connector import Connector
from imqtt.client.feed import Broadcast, Feed
from imqtt.client.history import Reader
from imqtt.client.inbox import Inbox
from imqtt.client.marker import Marker
from imqtt.client.requests import Requests
from imqtt.client.sender import Sender
from imqtt.client.settings import ClientSettings
from imqtt.client.store import LocalStore
from imqtt.client.transport import Transport
from imqtt.client.uplink import Uplink
from imqtt.client.values import ConnectionState, Notice
from imqtt.core.changes import Memory
from imqtt.core.connection import Phase
from imqtt.core.replica import Replica
from imqtt.errors import ClientError, ImqttError, NotConnected

log = logging.getLogger(__name__)


class Parts:
    """Made when a client is entered. `failure` is the error that ended it."""

    def __init__(
        self,
        *,
        settings: ClientSettings,
        store: LocalStore,
        memory: Memory,
        transport: Transport,
        notices: Broadcast[Notice],
        states: Broadcast[ConnectionState],
    ) -> None:
        async def commit() -> None:
            await self.inbox.commit()

        async def settled() -> None:
            await self.inbox.settled()

        adopting = settings.start == "latest" and "adopted" not in memory.meta
        self.store = store
        self.uplink = Uplink(settings.device, settings.format)
        self.requests = Requests(self.uplink, settings.timing)
        self.replica = Replica(settings.device, memory, adopting=adopting, keep=settings.keep)
        self.sender = Sender(self.uplink, store, settings.timing, memory.unsent, notices.tell)
        self.feed = Feed(self.replica.ordinal)
        self.reader = Reader(self.replica, store, self.requests, commit)
        self.catchup = CatchUp(
            self.replica, store, self.uplink, self.requests, settings.timing, memory.meta, commit, settled
        )
        marker = Marker(self.replica, self.uplink, settings.timing)
        self.inbox = Inbox(
            self.replica, store, self.sender, self.requests, self.catchup, marker, self.feed, notices
        )
        self.connection = ConnectionTasks(
            settings, self.uplink, self.inbox, self.requests, self.catchup, self.sender, marker
        )
        self.connector = Connector(
            settings, self.uplink, self.connection, self.requests, transport, states.tell
        )
        self.failure: Exception | None = None
        self._settings = settings
        self._notices = notices
        self._states = states
        self._running: asyncio.Task[None] | None = None

    async def start(self, wait: float) -> None:
        """Returns when the device has caught up, or a first try has failed, or after `wait` seconds."""
        self._running = asyncio.create_task(self._run(), name=f"imqtt-client-{self._settings.name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.connector.tried.wait()
                if self.uplink.mqtt is not None:
                    await self.caught_up()
        self.check()
        if wait and not self.catchup.complete.is_set() and not self._states.queues:
            # The program would otherwise wait without a reason, for example on another program's broker.
            reason = self.connector.state.reason or "a broker is connected, and no imqtt server has answered"
            log.warning("%s is not connected yet, and keeps trying: %s", self._settings.name, reason)

    async def caught_up(self) -> None:
        """Returns when the device is connected and has received everything that it missed."""
        while not self.catchup.complete.is_set():
            changed = self._states.notifier.watch()
            self.check()
            if self._running is None:
                raise ClientError("the client is closed")
            waits = [
                asyncio.create_task(event.wait(), name="imqtt-caught-up")
                for event in (self.catchup.complete, changed)
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    def check(self) -> None:
        """Raises the error that ended the client."""
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        if self._running is None:
            return
        running, self._running = self._running, None
        self.connector.stop()
        try:
            if self.connector.state.phase is Phase.ESTABLISHED:
                with contextlib.suppress(NotConnected, TimeoutError):
                    async with asyncio.timeout(self._settings.timing.farewell):
                        await self.connection.farewell()
        finally:
            running.cancel()
            try:
                await asyncio.wait([running])
                await self.inbox.settled()
            finally:
                await self.store.close()

    async def _run(self) -> None:
        """Runs until the connection or the store fails for good."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.connector.run(), name="imqtt-connector")
                tasks.create_task(self._watch_store(), name="imqtt-store")
        except asyncio.CancelledError:
            self._end(None, "closed")
            raise
        except ExceptionGroup as group:
            error = group.exceptions[0]
            if isinstance(error, ImqttError):
                self._end(error, str(error))
            else:
                log.exception("the client of %s ends", self._settings.name)
                self._end(error, f"an internal error of the client: {error}")

    async def _watch_store(self) -> None:
        """Raises a failed write. Its frames may be from an earlier connection."""
        # The inbox sets the future even after this task was cancelled.
        error = await asyncio.shield(self.inbox.failed)
        self.connector.stop()
        self.uplink.drop()
        raise error

    def _end(self, failure: Exception | None, reason: str) -> None:
        self.failure = failure
        self.connector.close(reason)
        self.sender.fail(failure or NotConnected("the client is closed; the command stays in the outbox"))
        for ended in (self.feed.notifier, self._notices.notifier, self._states.notifier):
            ended.end(failure)
