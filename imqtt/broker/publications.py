"""Packets to the broker: those that wait, and those in flight until their PUBACK."""

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

from mqtt5 import PublishPacket, QoS

from imqtt.broker.errors import PACKET_TOO_LARGE, SUCCESS, TOPIC_NAME_INVALID
from imqtt.broker.values import Packet

MAX_IN_FLIGHT: Final = 65_000  # leaves packet ids for SUBSCRIBE

_FORBIDDEN: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters for which Mosquitto closes the connection (section 1.5.4), which affects all other packets."""


class Publication:
    """Packets of one `publish` call, and the reason code of each once it is known."""

    __slots__ = ("codes", "packets", "unanswered", "unsent")

    def __init__(self, packets: Sequence[Packet]) -> None:
        self.packets = packets
        self.codes = [SUCCESS] * len(packets)
        self.unanswered = len(packets)
        self.unsent = 0  # index of the first packet that still waits


class Publications:
    """Observes the broker's Receive Maximum (section 4.9) and Maximum Packet Size, and assigns packet ids."""

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque()
        self._in_flight: dict[int, tuple[Publication, int] | None] = {}  # by packet id; None: a SUBSCRIBE
        self._last_id = 0
        self._most = 0
        self._max_packet: int | None = None

    def open(self, receive_max: int, max_packet: int | None) -> None:
        """Sets the limits of the CONNACK."""
        self._most = min(receive_max, MAX_IN_FLIGHT)
        self._max_packet = max_packet

    @property
    def waiting(self) -> bool:
        """Whether packets wait that may be sent now."""
        return bool(self._waiting) and len(self._in_flight) < self._most

    def add(self, packets: Sequence[Packet]) -> Publication:
        publication = Publication(packets)
        if packets:
            self._waiting.append(publication)
        return publication

    def take_id(self) -> int:
        """A packet id for a SUBSCRIBE, in use until `answer`."""
        packet_id = self._free_id()
        self._in_flight[packet_id] = None
        return packet_id

    def send(self, room: int) -> tuple[list[bytes], list[Publication]]:
        """Returns about `room` bytes of packets, and the publications that await no answer."""
        out: list[bytes] = []
        answered: list[Publication] = []
        waiting = self._waiting
        while waiting:
            publication = waiting[0]
            encoded, room = self._send(publication, room)
            out += encoded
            if publication.unanswered == 0:
                answered.append(publication)
            if publication.unsent < len(publication.packets):
                break
            waiting.popleft()
        return out, answered

    def _send(self, publication: Publication, room: int) -> tuple[list[bytes], int]:
        """Its packets that fit into `room` bytes, and the room that is left."""
        out: list[bytes] = []
        in_flight, most, max_packet = self._in_flight, self._most, self._max_packet
        packets = publication.packets
        for index in range(publication.unsent, len(packets)):
            if room <= 0 or len(in_flight) >= most:
                break
            publication.unsent = index + 1
            packet = packets[index]
            packet_id = None if packet.qos == 0 else self._free_id()
            encoded = _encode(packet, packet_id)
            if encoded is None or (max_packet is not None and len(encoded) > max_packet):
                publication.codes[index] = TOPIC_NAME_INVALID if encoded is None else PACKET_TOO_LARGE
                publication.unanswered -= 1
                continue
            if packet_id is None:
                publication.unanswered -= 1  # QoS 0 has no answer (section 4.3.1)
            else:
                in_flight[packet_id] = publication, index
            out.append(encoded)
            room -= len(encoded)
        return out, room

    def answer(self, packet_id: int, code: int) -> Publication | None:
        """Handles a PUBACK or SUBACK. Returns the publication if this was its last missing answer.

        Ignores an answer to an unknown packet id.
        """
        found = self._in_flight.pop(packet_id, None)
        if found is None:
            return None
        publication, index = found
        if code:
            publication.codes[index] = code
        publication.unanswered -= 1
        return publication if publication.unanswered == 0 else None

    def _free_id(self) -> int:
        packet_id = self._last_id % 0xFFFF + 1
        while packet_id in self._in_flight:
            packet_id = packet_id % 0xFFFF + 1
        self._last_id = packet_id
        return packet_id


def _encode(packet: Packet, packet_id: int | None) -> bytes | None:
    """The bytes of a PUBLISH; None if MQTT does not allow its topic or user properties."""
    topic, payload, _, properties = packet
    if not (topic.isascii() and topic.isprintable()) and _FORBIDDEN.search(topic):
        return None
    if properties and any(_FORBIDDEN.search(text) for pair in properties for text in pair):
        return None
    try:
        return PublishPacket(
            topic,
            payload,
            qos=QoS.AT_MOST_ONCE if packet_id is None else QoS.AT_LEAST_ONCE,
            packet_id=packet_id,
            user_properties=list(properties) if properties else None,
        ).write()
    except ValueError:  # empty, a wildcard, or longer than 65,535 bytes
        return None
