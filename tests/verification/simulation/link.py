"""The server's link on the simulated broker.

`imqtt.broker.link.Link` itself is used, with its receiving, pausing, acking and ending. Only the layers below
are replaced: a transport that carries packets as objects, and a session that does not encode them.
`connector_to(broker)` replaces `imqtt.broker.link.connect`.

No pings are sent: whether the peer would answer is looked up in the simulated network.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from imqtt.broker.connection import Connected, Ended, Event, State, Subscribed
from imqtt.broker.errors import KEEP_ALIVE_TIMEOUT, PACKET_TOO_LARGE, SUCCESS, Closed, ConnackRefused
from imqtt.broker.keepalive import DEAD_AFTER
from imqtt.broker.link import Link
from imqtt.broker.publications import Publication
from imqtt.broker.receipts import Receipts
from imqtt.broker.values import LinkSettings, Received
from imqtt.broker.values import Packet as Message
from tests.verification.simulation.broker import (
    ACK,
    CONNACK,
    CONNECT,
    DELIVERY,
    DISCONNECT,
    MAX_PACKET,
    PUBACK,
    PUBLISH,
    RESET,
    SUBSCRIBE,
    Broker,
)
from tests.verification.simulation.loop import current
from tests.verification.simulation.network import Batch, Connection, Packet, latency

_received = tuple.__new__


def connector_to(broker: Broker) -> "Callable[[LinkSettings], Awaitable[SimLink]]":
    """A replacement for `imqtt.broker.link.connect` that connects to this broker; host and port are ignored.

    Raises `ConnackRefused`, `ConnectionRefusedError` while the broker is down, `TimeoutError` while it is
    paused or unreachable from the caller's process, and `Closed`.
    """

    async def connect(settings: LinkSettings) -> SimLink:
        link = SimLink(settings, broker)
        await link.open()
        return link

    return connect


async def dial(broker: Broker, to_client: Callable[[Batch], None]) -> Connection:
    """A TCP connection of the current process, once the broker's kernel has accepted it."""
    await asyncio.sleep(2 * latency(broker.loop.random))
    process = current()
    if process is not None and process.name in broker.unreachable:
        await broker.loop.create_future()  # no answer; callers have a timeout
    return broker.accept(to_client)


class SimLink(Link):
    """A link to the simulated broker, made by `connector_to`."""

    def __init__(self, settings: LinkSettings, broker: Broker) -> None:
        super().__init__(settings, broker.loop)
        self._broker = broker
        self._wire = _Transport(broker, self)
        self._connection: Any = _Connection(settings, broker, self._wire)

    async def open(self) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._wire.open()
                self.connection_made(self._wire)
                await self._accepted
        except BaseException:
            self.abort()
            raise


class _Transport(asyncio.Transport):
    """The client's end of a connection as `Link` uses it, with packets in place of bytes."""

    def __init__(self, broker: Broker, link: Link) -> None:
        super().__init__()
        self.connection: Connection | None = None
        self._broker = broker
        self._link: Any = link
        self._closing = False

    async def open(self) -> None:
        self.connection = await dial(self._broker, self._arrive)

    def _arrive(self, batch: Batch) -> None:
        if self._closing:
            return
        if batch[-1] is None:
            batch.pop()
            if batch:
                self._link.data_received(batch)
            self.close()
        else:
            self._link.data_received(batch)

    @property
    def silent(self) -> bool:
        """Whether a ping would get no answer now."""
        return self.connection is not None and self.connection.silent

    # --- asyncio's interface

    def write(self, packets: Any) -> None:
        if self.connection is not None and not self._closing:
            self.connection.up.send(packets)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self.connection is not None:
                self.connection.close_client_end(RESET)
            self._broker.loop.call_soon(self._link.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self.connection is not None:
            self.connection.down.read(False)

    def resume_reading(self) -> None:
        if self.connection is not None:
            self.connection.down.read(True)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class _Connection:
    """`imqtt.broker.connection.Connection` without an encoding: it sends and receives packets as objects."""

    def __init__(self, settings: LinkSettings, broker: Broker, wire: _Transport) -> None:
        self.state = State.CONNECTING
        self.deadline: float | None = None
        self._settings = settings
        self._random = broker.loop.random
        self._wire = wire
        self._receipts = Receipts()
        self._waiting: list[Publication] = []
        self._out: list[Packet] = [(CONNECT, settings, settings.receive_max)]
        self._acks: list[Packet] = []
        self._subscriptions = 0
        self._reading = True
        self._keep_alive = settings.keep_alive
        self._heard = 0.0
        self._suspected = False  # the broker would not have answered at the last tick

    # --- receiving

    def receive(self, batch: Sequence[Packet], now: float) -> list[Event]:
        events: list[Event] = []
        self._heard = now
        for packet in batch:
            kind = packet[0]
            if kind == DELIVERY:
                _, packet_id, message, dup = packet
                topic, payload, _, properties = message
                receipt = self._receipts.add(packet_id, len(payload))
                qos = 0 if packet_id is None else 1
                events.append(_received(Received, (topic, payload, packet_id, dup, properties, qos, receipt)))
            elif kind == PUBACK:
                publication, place = packet[1]
                publication.codes[place] = packet[2]
                publication.unanswered -= 1
                if not publication.unanswered:
                    events.append(publication)
            elif kind == CONNACK:
                self._connected(packet, now, events)
            elif kind == DISCONNECT:
                self.state, self.deadline = State.ENDED, None
                events.append(Ended(Closed("the broker ended the connection", packet[1])))
            else:
                events.append(Subscribed(packet[1], packet[2]))
        return events

    def _connected(self, packet: Packet, now: float, events: list[Event]) -> None:
        _, code, present, client_id, keep_alive = packet
        if code != SUCCESS:
            self.state = State.ENDED
            events.append(Ended(ConnackRefused(code)))
            return
        self.state = State.OPEN
        self._keep_alive = keep_alive
        self.deadline = now + keep_alive / 2
        events.append(Connected(present, client_id, MAX_PACKET))

    def tick(self, now: float) -> list[Event]:
        """Ends the connection after 1.5 silent keep-alive intervals, as the real session does."""
        if self.state is not State.OPEN:
            return []
        if not (self._reading and self._wire.silent):
            self._heard, self._suspected = now, False
            self.deadline = now + self._keep_alive / 2
            return []
        if not self._suspected:
            # The broker fell silent since the last tick and had answered a ping within an interval before
            # that.
            self._suspected = True
            last = now - (1 + self._random.random()) / 2 * self._keep_alive
            self._heard = max(self._heard, last)
        self.deadline = self._heard + DEAD_AFTER * self._keep_alive
        if now < self.deadline:
            return []
        silent = now - self._heard
        return [self._end(Closed(f"the broker was silent for {silent:.1f} s"), KEEP_ALIVE_TIMEOUT)]

    # --- unacked messages

    def ack(self, received: Received) -> None:
        if self.state is State.OPEN:
            for packet_id in self._receipts.ack(received.receipt):
                self._acks.append((ACK, packet_id))

    @property
    def load(self) -> float:
        settings, receipts = self._settings, self._receipts
        return max(len(receipts) / settings.receive_max, receipts.size / settings.receive_bytes)

    def reading(self, reading: bool) -> None:
        self._reading = reading

    # --- sending

    def publish(self, messages: Sequence[Message]) -> Publication:
        publication = Publication(messages)
        self._waiting.append(publication)
        return publication

    def subscribe(self, patterns: Sequence[str]) -> int:
        self._subscriptions += 1
        self._out.append((SUBSCRIBE, tuple(patterns), self._subscriptions))
        return self._subscriptions

    def disconnect(self) -> None:
        if self.state is State.OPEN:
            self._end(Closed("the link was closed here", SUCCESS), SUCCESS)

    @property
    def pending(self) -> bool:
        return bool(self._out) or (self.state is State.OPEN and bool(self._waiting))

    @property
    def owing(self) -> int:
        return len(self._acks)

    def send(self, now: float, room: int) -> tuple[list[Packet], list[Event]]:
        """Everything is sent at once; `now` and `room` are parameters of the real session."""
        out, self._out = self._acks + self._out, []
        self._acks = []
        events: list[Event] = []
        if self.state is State.OPEN and self._waiting:
            waiting, self._waiting = self._waiting, []
            for publication in waiting:
                self._send(publication, out)
                if not publication.unanswered:
                    events.append(publication)
        return out, events

    def _send(self, publication: Publication, out: list[Packet]) -> None:
        for place, message in enumerate(publication.packets):
            if len(message.payload) > MAX_PACKET:
                publication.codes[place] = PACKET_TOO_LARGE
                publication.unanswered -= 1
            elif message.qos == 0:
                publication.unanswered -= 1
                out.append((PUBLISH, message, None))
            else:
                out.append((PUBLISH, message, (publication, place)))

    def _end(self, error: ConnackRefused | Closed, disconnect: int) -> Ended:
        # Mosquitto 2.0.11 treats every DISCONNECT code except 0x04 as normal and drops the will.
        self._out.append((DISCONNECT, disconnect))
        self.state = State.ENDED
        self.deadline = None
        return Ended(error)
