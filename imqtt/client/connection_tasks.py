"""One established connection, from `Hello` until it is lost."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import random, uniform

import msgspec

from imqtt.client.catchup import CatchUp
from imqtt.client.inbox import Inbox
from imqtt.client.marker import Marker
from imqtt.client.requests import Requests
from imqtt.client.sender import Sender
from imqtt.client.settings import ClientSettings
from imqtt.client.transport import Lost, MqttConnection, Untaken
from imqtt.client.uplink import Uplink
from imqtt.core.backoff import untaken
from imqtt.errors import NotConnected
from imqtt.model import Cursor, Hello, Status, Welcome
from imqtt.protocol.topics import down


@dataclass(eq=False)
class ConnectionTasks:
    """Runs the tasks of each connection. Outlives connections."""

    settings: ClientSettings
    uplink: Uplink
    inbox: Inbox
    requests: Requests
    catchup: CatchUp
    sender: Sender
    marker: Marker

    def __post_init__(self) -> None:
        self.status = Status("online", "")  # as the program last reported it
        self._untaken = asyncio.Event()  # the last status met no subscriber

    async def run(self, mqtt: MqttConnection, nonce: str, established: Callable[[], None]) -> None:
        """Runs until the connection ends. Raises `Lost`, or another error."""
        self.catchup.complete.clear()
        self.inbox.connected()
        # Before anything arrives on this connection: an event may follow a cursor by its seq, but be of a
        # restored store's log. A cursor after it would be in that log, and the difference stay unnoticed.
        cursors = self.catchup.cursors()
        try:
            # Before `Hello`, so that nothing is published to the device before it is subscribed.
            await mqtt.subscribe(down(self.settings.device))
            self.uplink.mqtt, self.uplink.nonce = mqtt, nonce
            async with asyncio.TaskGroup() as tasks:
                welcomed = asyncio.Event()
                tasks.create_task(self._receive(mqtt, nonce, welcomed), name="imqtt-receive")
                tasks.create_task(self.requests.listen(), name="imqtt-silence")
                tasks.create_task(self._converse(cursors, welcomed, established), name="imqtt-converse")
        except BaseExceptionGroup as group:
            raise _cause(group) from group
        finally:
            self.uplink.mqtt = None
            self.catchup.complete.clear()

    async def set_status(self, status: Status) -> None:
        """Reports the device's state, now if it is connected, and on every later connection."""
        self.status = status
        with contextlib.suppress(NotConnected):
            await self._say_status()

    async def farewell(self) -> None:
        """Publishes the waiting marks and `offline` before DISCONNECT, after which no will is published."""
        with contextlib.suppress(Untaken):
            await self.marker.flush()
        await self._say(Status("offline", ""))

    async def _receive(self, mqtt: MqttConnection, nonce: str, welcomed: asyncio.Event) -> None:
        def welcome(frame: Welcome) -> None:
            if frame.nonce != nonce:
                return  # the answer to an earlier connection's `Hello`
            self.uplink.partitions = frame.partitions
            self.uplink.limits = frame.limits
            welcomed.set()

        while True:
            payloads = await mqtt.receive()
            self.requests.heard()
            await self.inbox.take(payloads, welcome)

    async def _converse(
        self, cursors: tuple[Cursor, ...], welcomed: asyncio.Event, established: Callable[[], None]
    ) -> None:
        hello = Hello(self.uplink.nonce, self.settings.platform, self.settings.max_packet, cursors)
        page = await self.requests.ask(hello)
        try:
            async with asyncio.timeout(self.settings.timing.answer):
                await welcomed.wait()  # it precedes the page, unless it was lost
        except TimeoutError:
            raise Lost("the server answered without a Welcome") from None
        established()
        self.requests.renew()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.catchup.run(page), name="imqtt-catch-up")
            tasks.create_task(self.sender.run(), name="imqtt-outbox")
            tasks.create_task(self.marker.run(), name="imqtt-marks")
            tasks.create_task(self._stay_present(), name="imqtt-presence")
            tasks.create_task(self.requests.check_idle(), name="imqtt-idle")

    async def _stay_present(self) -> None:
        """Repeats a status that had no subscriber; sends one before the server considers the device gone."""
        if self.status != Status("online", ""):
            await self._say_status()
        refusals = 0
        while True:
            if self._untaken.is_set():
                refusals += 1
                await asyncio.sleep(untaken(refusals, random(), most=self.settings.timing.untaken))
            else:
                refusals = 0
                limits = self.uplink.limits
                ttl = 300 if limits is None or limits.presence <= 0 else limits.presence
                due = self.uplink.spoke_at + ttl * uniform(0.3, 0.5)
                if (wait := due - time.monotonic()) > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._untaken.wait()
                    continue  # another command may have been sent meanwhile
            await self._say_status()

    async def _say_status(self) -> None:
        """Raises `NotConnected`. `_stay_present` repeats a status that had no subscriber."""
        self._untaken.clear()
        try:
            await self._say(self.status)
        except Untaken:
            self._untaken.set()

    async def _say(self, status: Status) -> None:
        await self.uplink.publish(msgspec.structs.replace(status, nonce=self.uplink.nonce))


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a connection: a fault, if the group has one."""
    _, faults = group.split(NotConnected)
    cause: BaseException = faults or group.subgroup(Lost) or group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    is_lost = isinstance(cause, NotConnected) and not isinstance(cause, Lost)
    return Lost(str(cause)) if is_lost else cause
