"""The connections over which the server publishes to devices.

They are separate from the partitions' connections: reading from those pauses while too much is unfinished,
and the PUBACKs that finish it must not wait for that.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from imqtt.broker.errors import describe
from imqtt.broker.link import Link, Packet
from imqtt.problems import Problem
from imqtt.server.connections import ReconnectingLink
from imqtt.server.counters import Counters

Publish = Callable[[Sequence[Packet]], asyncio.Future[list[int]]]
"""The type of `Publisher.publish`."""

FAILURE = 0x80  # MQTT 5, 2.4: reason codes from here on are failures


class Publisher:
    """One connection. Keeps packets until the broker has confirmed them, and resends them after a reconnect.

    A device may therefore receive a packet twice; it ignores events that it has.
    """

    def __init__(self, connection: ReconnectingLink, counters: Counters, refused: Problem) -> None:
        self._connection = connection
        self._counters = counters
        self._refused = refused  # packets that the broker refuses
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._since = 0.0  # when it was connected, by the event loop's clock
        self._unconfirmed: dict[asyncio.Future[list[int]], Sequence[Packet]] = {}  # in order of publication

    def publish(self, packets: Sequence[Packet]) -> asyncio.Future[list[int]]:
        """Publishes in order. The future's result is the broker's reason code for each packet.

        It is done when the broker has answered all of them, and never fails.
        """
        done: asyncio.Future[list[int]] = self._loop.create_future()
        if not packets:
            done.set_result([])
            return done
        self._unconfirmed[done] = packets
        if self._link is not None:
            self._put(self._link, done, packets)
        return done

    @property
    def connected(self) -> bool:
        return self._link is not None

    def steady(self, since: float) -> bool:
        """Whether the connection has lasted since `since`, by the event loop's clock."""
        return self._link is not None and self._since < since

    async def run(self, ready: asyncio.Event) -> None:
        """Connects, and reconnects after every disconnection, until cancelled."""
        await self._connection.run(partial(self._serve, ready))

    async def _serve(self, ready: asyncio.Event, link: Link) -> None:
        self._link, self._since = link, self._loop.time()
        try:
            for done, packets in list(self._unconfirmed.items()):
                self._put(link, done, packets)
            self._connection.works()
            ready.set()
            raise await link.wait_closed()
        finally:
            self._link = None

    def _put(self, link: Link, done: asyncio.Future[list[int]], packets: Sequence[Packet]) -> None:
        link.send(packets, partial(self._confirm, done))

    def _confirm(self, done: asyncio.Future[list[int]], codes: list[int]) -> None:
        if self._unconfirmed.pop(done, None) is None:
            return
        if max(codes) >= FAILURE:
            self._counters.packets_refused += sum(code >= FAILURE for code in codes)
            self._refused.note(describe(next(code for code in codes if code >= FAILURE)))
        if not done.done():
            done.set_result(codes)
