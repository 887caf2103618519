"""Properties of the link's parser for any stream from a broker, split in any way.

An input is three bytes, which set up the connection and the splitting, and the stream.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, Final, NamedTuple

import mqtt5

from imqtt.broker import packets
from imqtt.broker.connection import Connected, Connection, Ended, Event, State
from imqtt.broker.packets import Cutter, ProtocolError
from imqtt.broker.publications import Publication
from imqtt.broker.values import LinkSettings, Packet, Received

HEAD: Final = 3  # bytes before the stream
OPENED, BOUNDED, AT_ONCE, BACKWARDS = 1, 2, 4, 8  # bits of the first byte
MAX_PACKET: Final = 100
CONNACK: Final = mqtt5.ConnAckPacket(receive_max=50).write()
ROOM: Final = 1 << 20
LONGEST_HEAD: Final = 5  # bytes: a packet's first one and its length
_READ_IN_FULL: Final = (packets.CONNACK, packets.PUBLISH, packets.SUBACK)
_READ: Final = (*_READ_IN_FULL, packets.PUBACK, packets.DISCONNECT)


class Scenario(NamedTuple):
    """`opened`: a valid CONNACK comes first. `at_once`: each message is acked on receipt, in a piece's order
    or backwards; otherwise all are acked at the end.
    """

    opened: bool
    max_packet: int | None
    at_once: bool
    backwards: bool
    pieces: int  # a seed; 0: byte by byte
    published: int
    stream: bytes

    @classmethod
    def of(cls, data: bytes) -> "Scenario":
        flags, pieces, published = data[:HEAD].ljust(HEAD, b"\0")
        return cls(
            bool(flags & OPENED),
            MAX_PACKET if flags & BOUNDED else None,
            bool(flags & AT_ONCE),
            bool(flags & BACKWARDS),
            pieces,
            published % 8,
            data[HEAD:],
        )

    @property
    def settings(self) -> LinkSettings:
        return LinkSettings("host", 1883, "one", max_packet=self.max_packet)

    def cut(self) -> list[bytes]:
        """The stream in pieces, mostly of a few bytes."""
        stream, size = self.stream, 1
        draw = Random(self.pieces)
        pieces: list[bytes] = []
        at = 0
        while at < len(stream):
            if self.pieces:
                size = draw.choice((1, 2, 3, 5, 17, 200))
            pieces.append(stream[at : at + size])
            at += size
        return pieces


def link(data: bytes) -> None:
    """However it is split: the same events, none after the end, PUBACKs in order, bounded memory."""
    scenario = Scenario.of(data)
    whole = _events_of(scenario, [scenario.stream])
    cut = scenario.cut()
    assert _events_of(scenario, cut) == whole
    _check_copying(scenario, cut)
    if scenario.opened:
        _compare_with_mqtt5(scenario)


def _events_of(scenario: Scenario, pieces: list[bytes]) -> list[object]:
    """The events of a connection that receives these pieces, in a form independent of the splitting."""
    connection = Connection(scenario.settings, 0.0)
    connection.subscribe(["t/#"])
    publications = [connection.publish([Packet("u", b"")] * 2) for _ in range(scenario.published)]
    connection.send(0.0, ROOM)
    if scenario.opened:
        assert connection.receive(CONNACK, 0.0) == [Connected(False, "one", None)]
        connection.send(0.0, ROOM)
    events: list[Event] = []
    received: list[Received] = []
    for piece in pieces:
        ended = connection.state is State.ENDED
        news = connection.receive(piece, 1.0)
        assert not (ended and news), "no event may follow the end"
        events += news
        fresh = [event for event in news if isinstance(event, Received)]
        received += fresh
        if scenario.at_once:
            for message in reversed(fresh) if scenario.backwards else fresh:
                connection.ack(message)
        _check_memory(connection, scenario)
    _check_end(connection, events)
    _check_answers(publications, events)
    for message in reversed(received) if scenario.backwards else received:
        connection.ack(message)
    _check_acks(connection, received)
    return [_outcome(event) for event in events]


def _check_memory(connection: Connection, scenario: Scenario) -> None:
    """It buffers less than the packet that it waits for, and that is bounded."""
    cutter = connection._cutter
    if connection.state is not State.ENDED:
        assert sum(map(len, cutter._kept)) < max(cutter._needed, LONGEST_HEAD)
        assert cutter._needed <= (scenario.max_packet or packets.LARGEST)


def _check_end(connection: Connection, events: list[Event]) -> None:
    ends = [event for event in events if isinstance(event, Ended)]
    assert ends == (events[-1:] if connection.state is State.ENDED else [])
    if ends:
        str(ends[0].error).encode("utf-8")
        assert connection.tick(1e9) == []
        assert connection.deadline is None


def _check_answers(publications: list[Publication], events: list[Event]) -> None:
    answered = [event for event in events if isinstance(event, Publication)]
    assert len(answered) == len(set(map(id, answered)))
    for publication in answered:
        assert publication in publications
        assert publication.unanswered == 0
    assert all(0 <= publication.unanswered <= 2 for publication in publications)


def _check_acks(connection: Connection, received: list[Received]) -> None:
    """When everything is acked, PUBACKs leave in the order of receipt, unless the connection has ended."""
    receipts = [message.receipt for message in received]
    assert receipts == sorted(set(receipts))
    ended = connection.state is State.ENDED
    written, _ = connection.send(2.0, ROOM)
    packets = list(_read_all(written))
    acks = [packet.packet_id for packet in packets if isinstance(packet, mqtt5.PubAckPacket)]
    expected = [message.packet_id for message in received if message.packet_id is not None]
    assert acks == (expected[: len(acks)] if ended else expected)
    if not ended:
        assert connection.load == 0
    again, events = connection.send(3.0, ROOM)
    assert ended <= (not again and not events and not connection.owing and not connection.pending)


def _read_all(written: bytes) -> Iterator[mqtt5.Packet]:
    view = memoryview(written)
    while view:
        packet, size = mqtt5.read(view)
        yield packet
        view = view[size:]


def _outcome(event: Event) -> object:
    """The comparable part of an event: each connection numbers receipts from another start."""
    if isinstance(event, Received):
        return event._replace(receipt=0)
    if isinstance(event, Publication):
        return tuple(event.codes)
    if isinstance(event, Ended):
        return type(event.error), event.error.code
    return event


def _check_copying(scenario: Scenario, pieces: list[bytes]) -> None:
    """A packet is joined once, not once per piece: copied bytes grow linearly with the stream."""
    cutter = Cutter(scenario.max_packet)
    copied = 0
    for piece in pieces:
        copied += len(cutter.cut(piece)[0])
        if cutter.error is not None:
            break
    assert copied <= 3 * len(scenario.stream) + 5 * len(pieces)


# --- mqtt5 as the oracle ------------------------------------------------------------------------------


def whole_packets(stream: bytes) -> list[bytes]:
    """The packets at the start of `stream`, split by code other than the link's."""
    found: list[bytes] = []
    while len(stream) >= 2:
        length = shift = 0
        for at in range(1, min(5, len(stream))):
            length |= (stream[at] & 0x7F) << shift
            shift += 7
            if stream[at] < 0x80:
                break
        else:
            return found
        end = at + 1 + length
        if end > len(stream):
            return found
        found.append(stream[:end])
        stream = stream[end:]
    return found


def _compare_with_mqtt5(scenario: Scenario) -> None:
    """Packets that both parsers read are equal, and valid packets are not refused."""
    for raw in whole_packets(scenario.stream):
        ours = _read(raw)
        # mqtt5 panics on text that is not UTF-8. A packet that the link has read completely has no such text.
        if raw[1:].isascii() or (ours is not None and raw[0] & 0xF0 in _READ_IN_FULL):
            packet = _mqtt5(raw)
            if packet is not None and ours is not None:
                assert ours == _reported(packet), (ours, packet)
            elif packet is not None and raw[0] & 0xF0 in _READ:
                assert not _is_valid(packet, raw), packet


def _read(raw: bytes) -> object:
    """The link's reading of it, or None if it refuses it."""
    data, cuts = Cutter(None).cut(raw)
    assert len(cuts) == 1
    (cut,) = cuts
    assert cut[2] == len(raw)
    try:
        if cut[0] & 0xF0 == packets.PUBLISH:
            return packets.read_publish(data, cut)
        if cut[0] & 0xF0 == packets.PUBACK:
            return packets.read_puback(data, cut)
        if cut[0] & 0xF0 == packets.CONNACK:
            return tuple(packets.read_connack(data, cut))
        if cut[0] & 0xF0 == packets.SUBACK:
            return packets.read_suback(data, cut)
        if cut[0] & 0xF0 == packets.DISCONNECT:
            return packets.read_disconnect(data, cut)
    except (ProtocolError, IndexError, UnicodeDecodeError):
        pass
    return None


def _mqtt5(raw: bytes) -> Any:
    """mqtt5's packet, or None if it refuses what the link may accept, such as future reason codes."""
    try:
        packet, size = mqtt5.read(memoryview(raw))
    except Exception:  # noqa: BLE001 - it has no error class
        return None
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        return None
    assert size == len(raw)
    return packet


def _is_valid(packet: Any, raw: bytes) -> bool:
    """mqtt5 reads some invalid packets. Packets that it writes back unchanged are mostly valid."""
    if isinstance(packet, mqtt5.PublishPacket) and (packet.topic_alias is not None or packet.packet_id == 0):
        return False  # aliases are not permitted, and 0 is not a packet id (section 2.2.1)
    return packet.write() == raw


def _reported(packet: Any) -> object:
    """What the link's readers report."""
    if isinstance(packet, mqtt5.PublishPacket):
        return (
            packet.topic, packet.payload, packet.packet_id, packet.duplicate, tuple(packet.user_properties),
            int(packet.qos),
        )  # fmt: skip
    if isinstance(packet, mqtt5.PubAckPacket):
        return packet.packet_id, int(packet.reason_code)
    if isinstance(packet, mqtt5.ConnAckPacket):
        return (
            packet.session_present, int(packet.reason_code), packet.reason_str or "",
            packet.server_reference or "", packet.assigned_client_id or "", packet.server_keep_alive,
            packet.receive_max or 0xFFFF, packet.max_packet_size, int(packet.max_qos),
        )  # fmt: skip
    if isinstance(packet, mqtt5.SubAckPacket):
        return packet.packet_id, bytes(map(int, packet.reason_codes))
    assert isinstance(packet, mqtt5.DisconnectPacket)
    return int(packet.reason_code), packet.reason_str or ""
