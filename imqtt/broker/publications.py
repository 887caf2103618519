"""Messages on their way to the broker: those that wait, and those in flight until their PUBACK."""

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

from mqtt5 import PublishPacket, QoS

from imqtt.broker.errors import PACKET_TOO_LARGE, SUCCESS, TOPIC_NAME_INVALID
from imqtt.broker.values import Message

MOST_IN_FLIGHT: Final = 65_000  # leaves packet ids for SUBSCRIBE, whatever the broker allows

_UNFIT: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Characters on which Mosquitto ends the connection (section 1.5.4), and every other message with it."""


class Publication:
    """Messages that were given together, and the reason code of each, in their order, once it is known."""

    __slots__ = ("codes", "messages", "unanswered", "unsent")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.codes = [SUCCESS] * len(messages)
        self.unanswered = len(messages)
        self.unsent = 0  # index of the first message that still waits


class Publications:
    """Keeps to the broker's Receive Maximum (section 4.9) and Maximum Packet Size; gives out packet ids."""

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque()
        self._in_flight: dict[int, tuple[Publication, int] | None] = {}  # by packet id; None: a SUBSCRIBE
        self._last_id = 0
        self._most = 0
        self._max_packet: int | None = None

    def open(self, receive_max: int, max_packet: int | None) -> None:
        """What CONNACK allows."""
        self._most = min(receive_max, MOST_IN_FLIGHT)
        self._max_packet = max_packet

    @property
    def waiting(self) -> bool:
        """Whether messages wait that may be sent now."""
        return bool(self._waiting) and len(self._in_flight) < self._most

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def add(self, messages: Sequence[Message]) -> Publication:
        publication = Publication(messages)
        if messages:
            self._waiting.append(publication)
        return publication

    def take_id(self) -> int:
        """A packet id for a SUBSCRIBE, in use until `answer`."""
        packet_id = self._free_id()
        self._in_flight[packet_id] = None
        return packet_id

    def send(self, out: list[bytes], room: int) -> list[Publication]:
        """Appends packets to `out`, about `room` bytes of them. Returns what is answered by that alone."""
        answered: list[Publication] = []
        waiting = self._waiting
        while waiting:
            publication = waiting[0]
            room = self._send(publication, out, room)
            if publication.unanswered == 0:
                answered.append(publication)
            if publication.unsent < len(publication.messages):
                break
            waiting.popleft()
        return answered

    def _send(self, publication: Publication, out: list[bytes], room: int) -> int:
        in_flight, most, max_packet = self._in_flight, self._most, self._max_packet
        messages = publication.messages
        for index in range(publication.unsent, len(messages)):
            if room <= 0 or len(in_flight) >= most:
                break
            publication.unsent = index + 1
            message = messages[index]
            packet_id = None if message.qos == 0 else self._free_id()
            packet = _encode(message, packet_id)
            if packet is None or (max_packet is not None and len(packet) > max_packet):
                publication.codes[index] = TOPIC_NAME_INVALID if packet is None else PACKET_TOO_LARGE
                publication.unanswered -= 1
                continue
            if packet_id is None:
                publication.unanswered -= 1  # section 4.3.1: nothing answers, so it is done when written
            else:
                in_flight[packet_id] = publication, index
            out.append(packet)
            room -= len(packet)
        return room

    def answer(self, packet_id: int, code: int) -> Publication | None:
        """A PUBACK or SUBACK came. Returns the publication, if it is complete by that.

        An answer that nothing awaits is ignored.
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


def _encode(message: Message, packet_id: int | None) -> bytes | None:
    """The PUBLISH, or None for one whose topic or user properties MQTT cannot carry."""
    topic, payload, _, properties, retain = message
    if not (topic.isascii() and topic.isprintable()) and _UNFIT.search(topic):
        return None
    if properties and any(_UNFIT.search(text) for pair in properties for text in pair):
        return None
    try:
        return PublishPacket(
            topic,
            payload,
            qos=QoS.AT_MOST_ONCE if packet_id is None else QoS.AT_LEAST_ONCE,
            retain=retain,
            packet_id=packet_id,
            user_properties=list(properties) if properties else None,
        ).write()
    except ValueError:  # empty, a wildcard, or longer than 65,535 bytes
        return None
