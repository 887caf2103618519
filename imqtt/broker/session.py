"""An MQTT 5 client, without I/O: bytes in, events out, bytes to send.

    session = Session(settings, now)              its CONNECT is the first thing to send
    events = session.receive(data, now)           whatever arrives, in any pieces
    session.publish(…), .subscribe(…), .ack(…)    never wait, never fail
    data, events = session.send(now, room)        about `room` bytes; again while `pending` or `owing`
    events = session.tick(now)                    at `session.deadline`, for the keep alive

`now` is in seconds, of any clock that does not step back. After an `Ended` the session does nothing more,
but for what is still to be sent.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

import mqtt5

from imqtt.broker import packets
from imqtt.broker.errors import (
    KEEP_ALIVE_TIMEOUT,
    PROTOCOL_ERROR,
    QOS_NOT_SUPPORTED,
    SUCCESS,
    Closed,
    ConnackRefused,
)
from imqtt.broker.keepalive import Due, KeepAlive
from imqtt.broker.packets import Bad
from imqtt.broker.publications import Publication, Publications
from imqtt.broker.receipts import Receipts
from imqtt.broker.values import LinkSettings, Message, Received

_received = tuple.__new__  # what Received(...) does, at half the time
_PINGREQ: Final = b"\xc0\x00"
_PUBACK: Final = b"\x40\x02"
_DISCONNECT: Final = b"\xe0\x00"


class Connected(NamedTuple):
    """The broker took the CONNECT. `max_packet`: the largest packet that it takes, in bytes, or None."""

    session_present: bool
    client_id: str
    max_packet: int | None


class Subscribed(NamedTuple):
    """A reason code for each pattern."""

    packet_id: int
    codes: bytes


class Ended(NamedTuple):
    """The connection is over."""

    error: ConnackRefused | Closed


Event = Connected | Received | Publication | Subscribed | Ended
"""A `Publication` as an event is one whose messages are all answered."""


class State(Enum):
    """Of the connection."""

    CONNECTING = "connecting"
    OPEN = "open"
    ENDED = "ended"


class Session:
    """One connection, from its CONNECT on."""

    def __init__(self, settings: LinkSettings, now: float) -> None:
        self.state = State.CONNECTING
        self._settings = settings
        self._cutter = packets.Cutter(settings.max_packet)
        self._receipts = Receipts()
        self._publications = Publications()
        self._keep_alive = KeepAlive(settings.keep_alive, now)
        self._reading = True
        self._out: list[bytes] = [_connect(settings)]
        self._acks: list[bytes] = []

    # --- in

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What the bytes mean, in their order."""
        events: list[Event] = []
        if self.state is State.ENDED:
            return events
        self._keep_alive.received = now
        try:
            buffer, cuts = self._cutter.cut(data)
            for cut in cuts:
                kind = cut[0] & 0xF0
                if self.state is not State.OPEN:
                    self._opened(buffer, cut, now, events)
                elif kind == packets.PUBLISH:
                    events.append(self._published(buffer, cut))
                elif kind == packets.PUBACK:
                    answered = self._publications.answer(*packets.read_puback(buffer, cut))
                    if answered is not None:
                        events.append(answered)
                else:
                    self._read(kind, buffer, cut, events)
            if self._cutter.bad is not None:
                raise self._cutter.bad
        except Bad as bad:
            self._bad(bad, events)
        except (IndexError, UnicodeDecodeError):
            self._bad(Bad("a packet that is shorter than it says, or text that is not UTF-8"), events)
        return events

    def _bad(self, bad: Bad, events: list[Event]) -> None:
        if not events or not isinstance(events[-1], Ended):  # nothing counts behind a DISCONNECT
            events.append(self._end(Closed(f"the broker sent {bad.reason}", bad.code), bad.code))

    def _read(self, kind: int, data: bytes, cut: packets.Cut, events: list[Event]) -> None:
        if kind == packets.SUBACK:
            packet_id, codes = packets.read_suback(data, cut)
            self._publications.answer(packet_id, SUCCESS)
            events.append(Subscribed(packet_id, codes))
        elif kind == packets.DISCONNECT:
            code, reason = packets.read_disconnect(data, cut)
            events.append(self._end(Closed(reason or "the broker ended the connection", code)))
        elif kind != packets.PINGRESP:
            raise Bad(f"a packet of type {kind >> 4}, which nothing asked for", PROTOCOL_ERROR)

    def _opened(self, data: bytes, cut: packets.Cut, now: float, events: list[Event]) -> None:
        if self.state is State.ENDED:
            return  # what follows a DISCONNECT is not read
        if cut[0] != packets.CONNACK:
            raise Bad("something other than CONNACK first", PROTOCOL_ERROR)
        answer = packets.read_connack(data, cut)
        if answer.code != SUCCESS:
            events.append(self._end(ConnackRefused(answer.code, answer.reason, answer.server)))
            return
        if answer.max_qos == 0:
            events.append(self._end(ConnackRefused(QOS_NOT_SUPPORTED, "it knows QoS 0 alone"), SUCCESS))
            return
        self.state = State.OPEN
        self._publications.open(answer.receive_max, answer.max_packet)
        if answer.keep_alive is not None:
            self._keep_alive = KeepAlive(answer.keep_alive, now)
        client_id = answer.client_id or self._settings.client_id
        events.append(Connected(answer.session_present, client_id, answer.max_packet))

    def _published(self, data: bytes, cut: packets.Cut) -> Received:
        topic, payload, packet_id, dup, properties, qos = packets.read_publish(data, cut)
        if packet_id is None:
            return Received(topic, payload, None, dup, properties, 0, -1)
        if qos == 2:
            raise Bad("a message at QoS 2, of a subscription that this link did not make", QOS_NOT_SUPPORTED)
        receipt = self._receipts.add(packet_id, len(payload))
        return _received(Received, (topic, payload, packet_id, dup, properties, qos, receipt))

    def tick(self, now: float) -> list[Event]:
        """Sends a PINGREQ when it is time, and gives up on a silent peer."""
        if self.state is not State.OPEN:
            return []
        due = self._keep_alive.due(now, reading=self._reading)
        if due is Due.PING:
            self._out.append(_PINGREQ)
        elif due is Due.DEAD:
            silent = now - self._keep_alive.received
            return [self._end(Closed(f"the broker was silent for {silent:.0f} s"), KEEP_ALIVE_TIMEOUT)]
        return []

    @property
    def deadline(self) -> float | None:
        """When to call `tick`."""
        return self._keep_alive.next() if self.state is State.OPEN else None

    # --- received and not acked

    def ack(self, received: Received) -> None:
        """Lets its PUBACK leave, as soon as all before it are acked."""
        if self.state is State.OPEN:
            for packet_id in self._receipts.ack(received.receipt):
                self._acks.append(_PUBACK + packet_id.to_bytes(2, "big"))

    def load(self, unread: int) -> float:
        """How full the room for received messages is: 1 is the bound. `unread`: messages not yet taken."""
        settings = self._settings
        return max(
            max(len(self._receipts), unread) / settings.receive_max,
            self._receipts.size / settings.receive_bytes,
        )

    def reading(self, reading: bool) -> None:
        """Whether the socket is being read; a peer that nobody listens to is not given up."""
        self._reading = reading

    # --- out

    def publish(self, messages: Sequence[Message]) -> Publication:
        """Queues messages; they leave in their order, as far as the broker's Receive Maximum allows."""
        return self._publications.add(messages)

    def subscribe(self, patterns: Sequence[str]) -> int:
        """Queues a SUBSCRIBE at QoS 1, without retained messages. Returns the packet id of its answer."""
        packet_id = self._publications.take_id()
        filters = [
            mqtt5.TopicFilter(
                pattern,
                max_qos=mqtt5.QoS.AT_LEAST_ONCE,
                retain_handling=mqtt5.RetainHandling.SEND_NEVER,
            )
            for pattern in patterns
        ]
        self._out.append(mqtt5.SubscribePacket(packet_id, filters).write())
        return packet_id

    def disconnect(self) -> None:
        """Queues a DISCONNECT, after which the broker drops the will."""
        if self.state is State.OPEN:
            self._end(Closed("the link was closed here", SUCCESS), SUCCESS)

    @property
    def pending(self) -> bool:
        """Whether there is something to send now, PUBACKs aside: they may wait."""
        return bool(self._out) or (self.state is State.OPEN and self._publications.waiting)

    @property
    def owing(self) -> bool:
        """Whether PUBACKs wait to be sent."""
        return bool(self._acks)

    def send(self, now: float, room: int) -> tuple[bytes, list[Event]]:
        """What to write, PUBACKs included, and what is done once it is written."""
        out, self._out = self._acks + self._out, []
        self._acks = []
        events: list[Event] = []
        if self.state is State.OPEN:
            events.extend(self._publications.send(out, room))
        if out:
            self._keep_alive.sent = now
        return b"".join(out), events

    def _end(self, error: ConnackRefused | Closed, disconnect: int | None = None) -> Ended:
        """Ends the session; with a code, by a DISCONNECT of our own."""
        if disconnect == SUCCESS:
            self._out.append(_DISCONNECT)
        elif disconnect is not None:
            self._out.append(b"\xe0\x01" + bytes((disconnect,)))
        self.state = State.ENDED
        return Ended(error)


def _connect(settings: LinkSettings) -> bytes:
    will = settings.will
    return mqtt5.ConnectPacket(
        settings.client_id,
        username=settings.username or None,
        password=settings.password.encode() if settings.password else None,
        clean_start=settings.clean_start,
        will=None
        if will is None
        else mqtt5.Will(
            will.topic,
            payload=will.payload,
            qos=mqtt5.QoS(will.qos),
            will_delay_interval=will.delay,
            user_properties=list(will.properties),
        ),
        keep_alive=settings.keep_alive,
        session_expiry_interval=settings.session_expiry,
        receive_max=settings.receive_max,
        max_packet_size=settings.max_packet,
        user_properties=list(settings.properties),
    ).write()
