"""An MQTT 5 client connection without I/O: bytes in, events and bytes out.

The driver passes bytes to `receive` in pieces of any size, calls `send` while something is `pending` or
`owing`, and `tick` at `deadline`. `publish`, `subscribe` and `ack` never wait and never fail. `now` is in
seconds, of any clock that does not go backwards. After an `Ended`, the connection only sends queued bytes.
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
from imqtt.broker.keepalive import NEVER, KeepAlive
from imqtt.broker.packets import ProtocolError
from imqtt.broker.publications import Publication, Publications
from imqtt.broker.receipts import Receipts
from imqtt.broker.values import LinkSettings, Packet, Received

_received = tuple.__new__  # takes half as long as Received(...)
_PINGREQ: Final = b"\xc0\x00"
_PUBACK: Final = b"\x40\x02"
_DISCONNECT: Final = b"\xe0\x00"


class Connected(NamedTuple):
    """The broker accepted. `max_packet`: the largest packet that it accepts, in bytes, or None."""

    session_present: bool
    client_id: str
    max_packet: int | None


class Subscribed(NamedTuple):
    """A reason code for each pattern."""

    packet_id: int
    codes: bytes


class Ended(NamedTuple):
    error: ConnackRefused | Closed


Event = Connected | Received | Publication | Subscribed | Ended
"""A `Publication` becomes an event when all its packets are answered."""


class State(Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    ENDED = "ended"


class Connection:
    """One connection, from its CONNECT on."""

    def __init__(self, settings: LinkSettings, now: float) -> None:
        self.state = State.CONNECTING
        self._settings = settings
        self._cutter = packets.Cutter(settings.max_packet)
        self._receipts = Receipts()
        self._publications = Publications()
        self._keep_alive = KeepAlive(settings.keep_alive, now)
        self.reading = True  # whether the socket is being read; else a silent peer is not dead
        self._out: list[bytes] = [_connect(settings)]
        self._acks: list[bytes] = []

    def receive(self, data: bytes, now: float) -> list[Event]:
        events: list[Event] = []
        if self.state is State.ENDED:
            return events
        self._keep_alive.received = now
        try:
            buffer, cuts = self._cutter.cut(data)
            for cut in cuts:
                kind = cut[0] & 0xF0
                event: Event | None
                if self.state is not State.OPEN:
                    event = self._opened(buffer, cut, now)
                elif kind == packets.PUBLISH:
                    event = self._published(buffer, cut)
                elif kind == packets.PUBACK:
                    event = self._publications.answer(*packets.read_puback(buffer, cut))
                else:
                    event = self._read(kind, buffer, cut)
                if event is not None:
                    events.append(event)
            if self._cutter.error is not None:
                raise self._cutter.error
        except (ProtocolError, IndexError, UnicodeDecodeError) as error:
            if not events or not isinstance(events[-1], Ended):  # packets after a DISCONNECT are ignored
                events.append(self._violated(error))
        return events

    def _violated(self, error: Exception) -> Ended:
        if not isinstance(error, ProtocolError):
            error = ProtocolError("a packet shorter than its length, or text that is not UTF-8")
        return self._end(Closed(f"the broker sent {error.reason}", error.code), error.code)

    def _read(self, kind: int, data: bytes, cut: packets.Cut) -> Event | None:
        if kind == packets.SUBACK:
            packet_id, codes = packets.read_suback(data, cut)
            self._publications.answer(packet_id, SUCCESS)
            return Subscribed(packet_id, codes)
        if kind == packets.DISCONNECT:
            code, reason = packets.read_disconnect(data, cut)
            return self._end(Closed(reason or "the broker ended the connection", code))
        if kind != packets.PINGRESP:
            raise ProtocolError(f"an unexpected packet of type {kind >> 4}", PROTOCOL_ERROR)
        return None

    def _opened(self, data: bytes, cut: packets.Cut, now: float) -> Event | None:
        if self.state is State.ENDED:
            return None  # packets after a DISCONNECT are ignored
        if cut[0] != packets.CONNACK:
            raise ProtocolError("another packet before CONNACK", PROTOCOL_ERROR)
        answer = packets.read_connack(data, cut)
        if answer.code != SUCCESS:
            return self._end(ConnackRefused(answer.code, answer.reason, answer.server))
        if answer.max_qos == 0:
            return self._end(ConnackRefused(QOS_NOT_SUPPORTED, "it only supports QoS 0"), SUCCESS)
        self.state = State.OPEN
        self._publications.open(answer.receive_max, answer.max_packet)
        if answer.keep_alive is not None:
            self._keep_alive = KeepAlive(answer.keep_alive, now)
        client_id = answer.client_id or self._settings.client_id
        return Connected(answer.session_present, client_id, answer.max_packet)

    def _published(self, data: bytes, cut: packets.Cut) -> Received:
        topic, payload, packet_id, dup, properties, qos = packets.read_publish(data, cut)
        if qos == 2:
            raise ProtocolError("a PUBLISH at QoS 2, without such a subscription", QOS_NOT_SUPPORTED)
        receipt = self._receipts.add(packet_id, len(payload))
        return _received(Received, (topic, payload, packet_id, dup, properties, qos, receipt))

    def tick(self, now: float) -> list[Event]:
        """Queues a PINGREQ when it is due, and ends the connection if the peer is silent."""
        if self.state is not State.OPEN:
            return []
        alive = self._keep_alive
        if not self.reading:
            alive.received = now
        if now >= alive.death:
            silent = now - alive.received
            return [self._end(Closed(f"the broker was silent for {silent:.0f} s"), KEEP_ALIVE_TIMEOUT)]
        if now >= alive.ping:
            alive.pinged = now
            self._out.append(_PINGREQ)
        return []

    @property
    def deadline(self) -> float | None:
        """When to call `tick`."""
        due = min(self._keep_alive.ping, self._keep_alive.death)
        return due if self.state is State.OPEN and due < NEVER else None

    def ack(self, received: Received) -> None:
        """Makes room for another packet, and queues the PUBACK, once all packets before it are acked."""
        if self.state is State.OPEN:
            for packet_id in self._receipts.ack(received.receipt):
                self._acks.append(_PUBACK + packet_id.to_bytes(2, "big"))

    @property
    def load(self) -> float:
        """Received packets that are not acked, in relation to their bounds: 1 is full."""
        settings, receipts = self._settings, self._receipts
        return max(len(receipts) / settings.receive_max, receipts.size / settings.receive_bytes)

    def publish(self, packets: Sequence[Packet]) -> Publication:
        """Queues packets. They leave in order, within the broker's Receive Maximum."""
        return self._publications.add(packets)

    def subscribe(self, patterns: Sequence[str]) -> int:
        """Queues a SUBSCRIBE at QoS 1 without retained messages. Returns its packet id."""
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
        """Queues a DISCONNECT, for which the broker drops the will."""
        if self.state is State.OPEN:
            self._end(Closed("the link was closed here", SUCCESS), SUCCESS)

    @property
    def pending(self) -> bool:
        """Whether something other than PUBACKs, which may wait, is to be sent."""
        return bool(self._out) or (self.state is State.OPEN and self._publications.waiting)

    @property
    def owing(self) -> int:
        """How many PUBACKs wait to be sent."""
        return len(self._acks)

    def send(self, now: float, room: int) -> tuple[bytes, Sequence[Event]]:
        """Returns bytes to write, including PUBACKs, and the events of having written them."""
        out, self._out = self._acks + self._out, []
        self._acks = []
        answered: Sequence[Publication] = ()
        if self.state is State.OPEN:
            encoded, answered = self._publications.send(room)
            out += encoded
        if out:
            self._keep_alive.sent = now
        return b"".join(out), answered

    def _end(self, error: ConnackRefused | Closed, disconnect: int | None = None) -> Ended:
        """Ends the connection, with a DISCONNECT if a code is given."""
        if disconnect == SUCCESS:
            self._out.append(_DISCONNECT)
        elif disconnect is not None:
            self._out.append(b"\xe0\x01" + bytes((disconnect,)))
        self.state = State.ENDED
        return Ended(error)


def _connect(settings: LinkSettings) -> bytes:
    will = None
    if settings.will is not None:
        topic, payload = settings.will.topic, settings.will.payload
        will = mqtt5.Will(topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)
    return mqtt5.ConnectPacket(
        settings.client_id,
        username=settings.username or None,
        password=settings.password.encode() if settings.password else None,
        clean_start=settings.clean_start,
        will=will,
        keep_alive=settings.keep_alive,
        session_expiry_interval=settings.session_expiry,
        receive_max=settings.receive_max,
        max_packet_size=settings.max_packet,
    ).write()
