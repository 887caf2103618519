"""One connection to a broker, on asyncio.

    link = await connect(settings)          raises ConnackRefused, OSError (Closed is one) or TimeoutError
    link.session_present                    whether the broker had a session for this client id
    link.max_packet_size                    the largest packet that the broker takes, in bytes, or None
    link.client_id                          as given, or as the broker assigned it
    link.closed                             the Closed that ended it, or None
    await link.subscribe(*patterns)         QoS 1, nothing retained; raises SubscriptionRefused or Closed
    batch = await link.receive(limit)       list[Received], at least one; raises Closed
    link.ack(received)                      its PUBACK leaves once all before it are acked
    future = link.publish(messages)         Future[list[int]] of reason codes; fails with Closed
    await link.close()                      sends what is queued, DISCONNECT, and waits for the end
    link.abort()                            cuts the connection, so that the broker publishes the will
    closed = await link.wait_closed()       why it ended

A link does not reconnect. Whoever owns it decides when, since what was received and not acked comes again,
and what was published and not answered is in doubt.
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from imqtt.broker.errors import Closed, ConnackRefused, SubscriptionRefused
from imqtt.broker.publications import Publication
from imqtt.broker.session import Connected, Event, Session, State, Subscribed
from imqtt.broker.values import LinkSettings, Message, Received, Will

__all__ = ["Link", "LinkSettings", "Message", "Received", "Will", "connect"]

_ROOM = 256 * 1024  # bytes made at a time: a slow socket holds up the making, and messages wait unencoded


async def connect(settings: LinkSettings) -> "Link":
    """Connects, and returns once the broker has accepted.

    Raises `ConnackRefused` with the broker's reason code, `TimeoutError` after `settings.timeout`, and
    `OSError` where there is no connection, or where it ends before the broker's answer (`Closed`).
    """
    link = Link(settings, asyncio.get_running_loop())
    await link.open()
    return link


class Link(asyncio.Protocol):
    """A live connection; `connect` makes it.

    Reading the socket pauses while more messages are received and not acked than `receive_max`, or more of
    their bytes than `receive_bytes`, and goes on below half of that. A paused link hears no PUBACK of its
    own publishes either: **a caller that acks a message only after the broker has answered the publishes
    that it caused must publish on another link**, or both wait forever.

    Whatever is queued within one iteration of the event loop leaves in one write.

    `publish` keeps the messages until there is room for them in the broker's Receive Maximum and in the
    socket's buffer. Its future is the back-pressure: await it before giving more.

    Not thread-safe.
    """

    def __init__(self, settings: LinkSettings, loop: asyncio.AbstractEventLoop) -> None:
        self.session_present = False
        self.max_packet_size: int | None = None
        self.client_id = settings.client_id
        self.closed: Closed | None = None
        self._settings = settings
        self._loop = loop
        self._session = Session(settings, loop.time())
        self._transport: asyncio.Transport | None = None
        self._inbox: list[Received] = []
        self._arrival: asyncio.Future[None] | None = None  # what `receive` waits for
        self._publishing: dict[Publication, asyncio.Future[list[int]]] = {}
        self._subscribing: dict[int, asyncio.Future[bytes]] = {}  # by packet id
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False  # a flush is scheduled
        self._acking: asyncio.TimerHandle | None = None  # a flush of PUBACKs is
        self._reading = True
        self._writable = True

    async def open(self) -> None:
        """What `connect` does. Once in a link's life."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout):
                await self._loop.create_connection(
                    lambda: self, settings.host, settings.port, ssl=settings.tls
                )
                await self._accepted
        except TimeoutError as error:
            self.abort()
            if error.errno is not None:  # the system's own, from before ours
                raise
            raise TimeoutError(f"no answer within {settings.timeout:g} s") from None
        except BaseException:
            self.abort()
            raise

    # --- receiving

    @property
    def reading(self) -> bool:
        """Whether the socket is read: False while too much is received and not acked."""
        return self._reading

    async def receive(self, limit: int) -> list[Received]:
        """Waits for messages, and returns at most `limit` of them in the order of receipt.

        One caller at a time. Raises `Closed` once the link has ended, whatever it still held: nothing of that
        can be acked any more.
        """
        while not self._inbox or self.closed is not None:
            if self.closed is not None:
                raise _again(self.closed)
            if self._arrival is not None:
                raise RuntimeError("somebody else is receiving from this link")
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
        if not self._reading:
            self._read_on()
        return batch

    def ack(self, received: Received) -> None:
        """The message is done with, and the broker may forget it.

        Does nothing on a link that has ended, for a message of another link, for one that is acked already
        and at QoS 0.
        """
        if self.closed is not None:
            return
        self._session.ack(received)
        if not (self._flushing or self._acking):
            if self._settings.ack_delay:
                self._acking = self._loop.call_later(self._settings.ack_delay, self._flush)
            else:
                self._flush_soon()
        if not self._reading:
            self._read_on()

    async def subscribe(self, *patterns: str) -> None:
        """Returns once the broker has granted all of them."""
        if self.closed is not None:
            raise _again(self.closed)
        packet_id = self._session.subscribe(patterns)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._subscribing[packet_id] = future
        # The answer comes behind whatever messages the broker has begun to send.
        self._read_on()
        self._flush_soon()
        codes = await future
        for pattern, code in zip(patterns, codes, strict=False):
            if code >= 0x80:
                raise SubscriptionRefused(pattern, code)

    # --- publishing

    def publish(self, messages: Sequence[Message]) -> asyncio.Future[list[int]]:
        """Publishes messages in their order. The future brings a reason code for each.

        0x00 is success, 0x10 success with nobody subscribed; from 0x80 on it was not published. Those that
        cannot be sent at all get a code from here: 0x95 above the broker's Maximum Packet Size, 0x90 for a
        topic or user property that MQTT does not allow. At QoS 0 the code is 0x00 once it is written.
        """
        future: asyncio.Future[list[int]] = self._loop.create_future()
        if self.closed is not None:
            _fail(future, self.closed)
        elif messages:
            self._publishing[self._session.publish(messages)] = future
            self._flush_soon()
        else:
            future.set_result([])
        return future

    @property
    def writable(self) -> bool:
        """Whether the socket takes more: False while what is published waits unencoded."""
        return self._writable

    @property
    def buffered(self) -> int:
        """Bytes that were written and that the socket has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    # --- the end

    async def close(self) -> None:
        """Ends the link in good order: PUBACKs that may leave do, and the broker drops the will.

        Returns when the broker has hung up, so that it has read all of that: Mosquitto reads a packet at a
        time, and a connection that takes over this session meanwhile would get acked messages again.
        Messages that still wait are not sent; their futures fail with `Closed`.
        """
        if self.closed is None:
            connected = self._accepted.done()
            self._session.disconnect()
            self._flush()
            self._set_reading(True)
            self._end(Closed("the link was closed here"), hang_up=not connected)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await asyncio.shield(self._lost)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Ends the link at once, without a DISCONNECT."""
        self._end(Closed("the link was aborted here"))
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> Closed:
        """Waits until the link has ended, and returns the reason."""
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
        for publishing in self._publishing.values():
            _fail(publishing, self.closed)
        for subscribing in self._subscribing.values():
            _fail(subscribing, self.closed)
        self._publishing.clear()
        self._subscribing.clear()
        if self._transport is None:
            self._lost.set_result(None)
        elif hang_up:
            self._transport.close()  # once what is written has left

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed is not None:
            self._transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # a socket that is no TCP has no such delay
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.closed is not None:
            return
        self._handle(self._session.receive(data, self._loop.time()))
        if self._session.pending:
            self._flush_soon()  # PUBACKs make room for what waits

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        what = "the connection was lost"
        # Before CONNACK: a broker at its connection limit does this, and so does a port of another protocol.
        if not self._accepted.done():
            what = "the broker closed the connection instead of answering, and its log says why"
        self._end(Closed(what + (f": {exc}" if exc else "")))
        if not self._lost.done():
            self._lost.set_result(None)

    # --- inside

    def _handle(self, events: list[Event]) -> None:
        arrived = False
        for event in events:
            if isinstance(event, Received):
                self._inbox.append(event)
                arrived = True
            elif isinstance(event, Publication):
                future = self._publishing.pop(event)
                if not future.done():
                    future.set_result(event.codes)
            elif isinstance(event, Subscribed):
                answer = self._subscribing.pop(event.packet_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(event.codes)
            elif isinstance(event, Connected):
                self._open(event)
            else:
                self._flush()
                self._end(event.error)
                return
        if arrived:
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(None)
            if not self._subscribing and self._session.load(len(self._inbox)) > 1:
                self._set_reading(False)

    def _open(self, event: Connected) -> None:
        self.session_present, self.client_id, self.max_packet_size = event
        self._tick()
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _tick(self) -> None:
        self._handle(self._session.tick(self._loop.time()))
        if self.closed is not None and self._transport is not None:
            self._transport.abort()  # a silent peer takes nothing either: what is unsent stays unsent
        deadline = self._session.deadline
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._tick)
        if self._session.pending:
            self._flush_soon()

    def _read_on(self) -> None:
        if self._subscribing or self._session.load(len(self._inbox)) < 0.5:
            self._set_reading(True)

    def _set_reading(self, reading: bool) -> None:
        if reading is self._reading or self._transport is None or self.closed is not None:
            return
        self._reading = reading
        self._session.reading(reading)
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
        session = self._session
        while (session.pending or session.owing) and (self._writable or session.state is State.ENDED):
            data, events = session.send(self._loop.time(), _ROOM)
            self._transport.write(data)
            if events:
                self._handle(events)


def _fail(future: "asyncio.Future[Any]", error: Closed | ConnackRefused) -> None:
    """Fails a future that perhaps nobody awaits any more, which is no cause for a warning."""
    if not future.done():
        future.set_exception(_again(error))
        future.exception()


def _again(error: Closed | ConnackRefused) -> Closed | ConnackRefused:
    """A copy to raise: one exception raised in many places would gather all their tracebacks."""
    if isinstance(error, Closed):
        return Closed(error.reason, error.code)
    return ConnackRefused(error.code, error.reason, error.server)
