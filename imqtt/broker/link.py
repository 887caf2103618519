"""One connection to a broker, on asyncio.

    link = await connect(settings)
    await link.subscribe(*patterns)
    codes = await link.publish(packets)
    for received in await link.receive(limit):  # or `link.hand_to`
        link.ack(received)
    await link.close()

A link does not reconnect: its owner decides when, because the broker redelivers packets that were not acked,
and the outcome of unanswered publishes is unknown.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from imqtt.broker.connection import Connected, Connection, Event, State, Subscribed
from imqtt.broker.errors import Closed, ConnackRefused, SubscriptionRefused
from imqtt.broker.publications import Publication
from imqtt.broker.values import LinkSettings, Packet, Received, Will

__all__ = ["Link", "LinkSettings", "Packet", "Received", "Will", "connect"]

_ROOM = 256 * 1024  # bytes encoded at a time, so that packets wait unencoded while the socket is slow
# Owed PUBACKs that no longer wait: a broker that is not configured otherwise sends 20 packets without one.
_MOST_OWED = 8


async def connect(settings: LinkSettings) -> "Link":
    """Returns once the broker has accepted the connection.

    Raises `ConnackRefused` with the broker's reason code, `TimeoutError` after `settings.timeout`, and
    `OSError` if there is no connection, or if it ends before the broker's answer (`Closed`).
    """
    link = Link(settings, asyncio.get_running_loop())
    await link.open()
    return link


class Link(asyncio.Protocol):
    """A live connection, made by `connect`. Not thread-safe.

    The link stops reading the socket while more than `receive_max` packets, or `receive_bytes` of payload,
    are not acked, and resumes below half of that. Meanwhile it does not receive the PUBACKs of its own
    publishes: **if acks wait for the answers to other publishes, publish those on another link**, or both
    wait forever.

    Everything that is queued in one iteration of the event loop leaves in one write.

    `publish` keeps packets until the broker's Receive Maximum and the socket's buffer have room for them. To
    apply back-pressure, await its future before the next call.
    """

    def __init__(self, settings: LinkSettings, loop: asyncio.AbstractEventLoop) -> None:
        self.session_present = False  # whether the broker had a session for this client id
        self.max_packet_size: int | None = None  # the largest packet that the broker accepts, in bytes
        self.client_id = settings.client_id  # as given, or as assigned by the broker
        self.closed: Closed | None = None  # why it ended
        self._settings = settings
        self._loop = loop
        self._connection = Connection(settings, loop.time())
        self._transport: asyncio.Transport | None = None
        self._inbox: list[Received] = []
        self._arrival: asyncio.Future[None] | None = None  # what `receive` waits for
        self._take: Callable[[list[Received]], None] | None = None
        self._answers: dict[Publication, Callable[[list[int]], None]] = {}
        self._publishing: set[asyncio.Future[list[int]]] = set()  # failed when the link ends
        self._subscribing: dict[int, asyncio.Future[bytes]] = {}  # by packet id
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False  # whether a flush is scheduled
        self._acking: asyncio.TimerHandle | None = None  # of a flush that only sends PUBACKs
        self._reading = True
        self._writable = True

    async def open(self) -> None:
        """Connects. To be called once."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout):
                await self._loop.create_connection(
                    lambda: self, settings.host, settings.port, ssl=settings.tls
                )
                await self._accepted
        except TimeoutError as error:
            self.abort()
            if error.errno is not None:  # the operating system's timeout
                raise
            raise TimeoutError(f"no answer within {settings.timeout:g} s") from None
        except BaseException:
            self.abort()
            raise

    async def receive(self, limit: int) -> list[Received]:
        """Waits for packets, and returns at most `limit` in the order of receipt. For one caller at a time.

        Raises `Closed` once the link has ended, even if it holds packets: they can no longer be acked.
        """
        while not self._inbox or self.closed is not None:
            if self.closed is not None:
                raise _again(self.closed)
            if self._arrival is not None:
                raise RuntimeError("another task is receiving from this link")
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        inbox = self._inbox
        if len(inbox) <= limit:
            batch, self._inbox = inbox, []
        else:
            batch = inbox[:limit]
            del inbox[:limit]
        return batch

    def hand_to(self, take: Callable[[list[Received]], None] | None) -> None:
        """Calls `take` with packets as they are read, in place of `receive`; None ends that.

        A task that waits for `receive` would cost each packet another iteration of the event loop.
        """
        self._take = take
        if take is not None and self._inbox:
            batch, self._inbox = self._inbox, []
            take(batch)

    def ack(self, *packets: Received) -> None:
        """Lets the broker forget packets. The PUBACK of each leaves once all packets before it are acked.

        Every packet is to be acked: at QoS 0 that sends nothing, but makes room for others. Does nothing if
        the link has ended, or for a packet of another link or acked before.
        """
        if self.closed is not None:
            return
        connection = self._connection
        for received in packets:
            connection.ack(received)
        if not self._flushing:
            if not self._settings.ack_delay or connection.owing >= _MOST_OWED:
                self._flush_soon()
            elif self._acking is None and connection.owing:
                self._acking = self._loop.call_later(self._settings.ack_delay, self._flush)
        if not self._reading:
            self._read_on()

    async def subscribe(self, *patterns: str) -> None:
        """Subscribes at QoS 1 without retained messages. Raises `SubscriptionRefused` or `Closed`."""
        if self.closed is not None:
            raise _again(self.closed)
        packet_id = self._connection.subscribe(patterns)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._subscribing[packet_id] = future
        # The answer arrives after the packets that the broker has sent already.
        self._read_on()
        self._flush_soon()
        codes = await future
        for pattern, code in zip(patterns, codes, strict=False):
            if code >= 0x80:
                raise SubscriptionRefused(pattern, code)

    def publish(self, packets: Sequence[Packet]) -> asyncio.Future[list[int]]:
        """Publishes packets in order. The result of the future is a reason code for each.

        0x00: published; 0x10: published without a subscriber; from 0x80: not published. The link itself sets
        0x95 for a packet above the broker's Maximum Packet Size, 0x90 for a topic or user property that MQTT
        does not allow, and at QoS 0 0x00 once the packet is written.
        """
        future: asyncio.Future[list[int]] = self._loop.create_future()
        if self.closed is not None:
            _fail(future, self.closed)
        elif packets:
            self._publishing.add(future)
            self.send(packets, partial(self._published, future))
        else:
            future.set_result([])
        return future

    def send(self, packets: Sequence[Packet], answer: Callable[[list[int]], None]) -> None:
        """Like `publish`, for at least one packet, but calls `answer` with the reason codes at once.

        It is never called if the link ends before.
        """
        self._answers[self._connection.publish(packets)] = answer
        self._flush_soon()

    def _published(self, future: asyncio.Future[list[int]], codes: list[int]) -> None:
        self._publishing.discard(future)
        if not future.done():
            future.set_result(codes)

    async def close(self) -> None:
        """Ends the link with a DISCONNECT after the queued PUBACKs, so that the broker drops the will.

        Returns when the broker has closed the connection and has thus read everything: Mosquitto reads one
        packet at a time, and would redeliver acked packets to a connection that takes over the session
        earlier. Packets that still wait are not sent; their futures fail with `Closed`.
        """
        if self.closed is None:
            connected = self._accepted.done()
            self._connection.disconnect()
            self._flush()
            self._set_reading(True)
            self._end(Closed("the link was closed here"), hang_up=not connected)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await asyncio.shield(self._lost)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Ends the link at once, without a DISCONNECT, so that the broker publishes the will."""
        self._end(Closed("the link was aborted here"))
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> Closed:
        """Waits until the link has ended. Returns the reason."""
        if self.closed is None:
            await asyncio.shield(self._lost)
        return cast("Closed", self.closed)

    def _end(self, error: Closed | ConnackRefused, *, hang_up: bool = True) -> None:
        if self.closed is not None:
            return
        self.closed = error if isinstance(error, Closed) else Closed(str(error))
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()
        if not self._accepted.done():
            _fail(self._accepted, error)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        for publishing in self._publishing:
            _fail(publishing, self.closed)
        for subscribing in self._subscribing.values():
            _fail(subscribing, self.closed)
        self._answers.clear()
        self._publishing.clear()
        self._subscribing.clear()
        if self._transport is None:
            self._lost.set_result(None)
        elif hang_up:
            self._transport.close()  # after sending the buffered bytes

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed is not None:
            self._transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # not TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.closed is not None:
            return
        self._handle(self._connection.receive(data, self._loop.time()))
        if self._connection.pending:
            self._flush_soon()  # PUBACKs make room for waiting packets

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        what = "the connection was lost"
        # Before CONNACK: a broker at its connection limit, or a port of another protocol.
        if not self._accepted.done():
            what = "the broker closed the connection instead of answering, and its log says why"
        self._end(Closed(what + (f": {exc}" if exc else "")))
        if not self._lost.done():
            self._lost.set_result(None)

    # --- inside

    def _handle(self, events: Sequence[Event]) -> None:
        received: list[Received] = []
        for event in events:
            if isinstance(event, Received):
                received.append(event)
            elif isinstance(event, Publication):
                self._answers.pop(event)(event.codes)
            elif isinstance(event, Subscribed):
                answer = self._subscribing.pop(event.packet_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(event.codes)
            elif isinstance(event, Connected):
                self.session_present, self.client_id, self.max_packet_size = event
                self._tick()
                if not self._accepted.done():
                    self._accepted.set_result(None)
            else:
                self._flush()
                self._end(event.error)
                return
        if received:
            if not self._subscribing and self._connection.load > 1:
                self._set_reading(False)
            if self._take is not None:
                self._take(received)
                return
            self._inbox += received
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(None)

    def _tick(self) -> None:
        self._handle(self._connection.tick(self._loop.time()))
        if self.closed is not None and self._transport is not None:
            self._transport.abort()  # closing would wait for a silent peer to read
        deadline = self._connection.deadline
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)
        if self._connection.pending:
            self._flush_soon()

    def _read_on(self) -> None:
        if self._subscribing or self._connection.load < 0.5:
            self._set_reading(True)

    def _set_reading(self, reading: bool) -> None:
        if reading is self._reading or self._transport is None or self.closed is not None:
            return
        self._reading = reading
        self._connection.reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._acking is not None:
            self._acking.cancel()
            self._acking = None
        if self._transport is None or self.closed is not None:
            return
        connection = self._connection
        while (connection.pending or connection.owing) and (
            self._writable or connection.state is State.ENDED
        ):
            data, events = connection.send(self._loop.time(), _ROOM)
            self._transport.write(data)
            if events:
                self._handle(events)


def _fail(future: "asyncio.Future[Any]", error: Closed | ConnackRefused) -> None:
    """Fails a future, without a warning if no task awaits it."""
    if not future.done():
        future.set_exception(_again(error))
        future.exception()


def _again(error: Closed | ConnackRefused) -> Closed | ConnackRefused:
    """Returns a copy to raise: an exception that is raised in many places collects all their tracebacks."""
    if isinstance(error, Closed):
        return Closed(error.reason, error.code)
    return ConnackRefused(error.code, error.reason, error.server)
