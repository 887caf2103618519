"""Parsing of the broker's bytes: the fixed header, and the packets that a client of QoS 0 and 1 receives.

`mqtt5` writes packets and could also read them. They are read here because `mqtt5` 0.8 raises on an unknown
reason code (Mosquitto's `message_size_limit` answers 0x95 in PUBACK), and panics on a string that is not
UTF-8, with an exception that `except Exception` does not catch. PUBLISH and PUBACK, the frequent ones, take
as long as in `mqtt5`.

Section numbers are those of MQTT Version 5.0, OASIS Standard, 7 March 2019.
"""

from typing import Final, NamedTuple

from imqtt.broker.errors import MALFORMED_PACKET, PACKET_TOO_LARGE, PROTOCOL_ERROR, SUCCESS
from imqtt.broker.values import UserProperties

CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
SUBACK: Final = 0x90
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0

LARGEST: Final = 268_435_455 + 5  # bytes of a packet with its fixed header (section 2.1.4)


class ProtocolError(Exception):
    """The broker violated MQTT 5. `code` is sent to it in DISCONNECT, and the link raises `Closed`."""

    def __init__(self, reason: str, code: int = MALFORMED_PACKET) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


Cut = tuple[int, int, int]
"""A packet in a buffer: its first byte, and the start and end of the bytes after its length."""


class Cutter:
    """Cuts the stream, which arrives in pieces of any size, into packets."""

    def __init__(self, largest: int | None) -> None:
        self._largest = LARGEST if largest is None else largest
        self._kept: list[bytes] = []  # the start of an incomplete packet
        self._size = 0
        self._needed = 0  # bytes for which to wait, so that a large packet is joined once
        self.error: ProtocolError | None = None  # what ended the stream, after the packets that were cut

    def cut(self, data: bytes) -> tuple[bytes, list[Cut]]:
        """Returns a buffer and the complete packets in it. A packet that is too long ends the stream."""
        if self._kept:
            self._kept.append(data)
            self._size += len(data)
            if self._size < self._needed:
                return b"", []
            data = b"".join(self._kept)
            self._kept.clear()
        cuts: list[Cut] = []
        at, size = 0, len(data)
        while at < size:
            try:
                start, end = _bounds(data, at, size)
            except ProtocolError as error:
                self.error = error
                break
            if end - at > self._largest:
                self.error = ProtocolError(
                    f"a packet of {end - at} bytes; at most {self._largest}", PACKET_TOO_LARGE
                )
                break
            if not at < end <= size:
                self._kept.append(data[at:])
                self._size = size - at
                self._needed = end - at
                break
            cuts.append((data[at], start, end))
            at = end
        return data, cuts


def _bounds(data: bytes, at: int, size: int) -> tuple[int, int]:
    """The start and end of the body of the packet at `at`; (0, 0) while its length is incomplete."""
    if at + 3 <= size:  # most packets are below 16 KiB
        low, high = data[at + 1], data[at + 2]
        if low < 0x80:
            return at + 2, at + 2 + low
        if high < 0x80:
            return at + 3, at + 3 + (low & 0x7F) + (high << 7)
    length = shift = 0
    for start in range(at + 1, min(at + 5, size)):
        byte = data[start]
        if byte < 0x80:
            return start + 1, start + 1 + length + (byte << shift)
        length += (byte & 0x7F) << shift
        shift += 7
    if shift == 28:
        raise ProtocolError("a packet length of more than four bytes")
    return 0, 0


def read_publish(data: bytes, cut: Cut) -> tuple[str, bytes, int | None, bool, UserProperties, int]:
    """Topic, payload, packet id, dup, user properties, QoS (section 3.3)."""
    first, start, end = cut
    at = start + 2 + (data[start] << 8 | data[start + 1])
    topic = data[start + 2 : at].decode()
    packet_id = None
    qos = first >> 1 & 3
    if qos:
        packet_id = data[at] << 8 | data[at + 1]
        at += 2
    if data[at]:
        properties, at = read_properties(data, at, end)
        user = tuple(properties.user)
        if ALIAS in properties.numbers:
            raise ProtocolError("a topic alias, although none is allowed", PROTOCOL_ERROR)
    else:
        at += 1
        user = ()
    if at > end or packet_id == 0 or qos == 3 or not topic:
        raise ProtocolError("a malformed PUBLISH")
    return topic, data[at:end], packet_id, first & 8 != 0, user, qos


def read_puback(data: bytes, cut: Cut) -> tuple[int, int]:
    """The packet id and the reason code, which is success if absent (section 3.4.2.1)."""
    _, start, end = cut
    if end - start < 2:
        raise ProtocolError("a PUBACK without a packet identifier")
    return data[start] << 8 | data[start + 1], data[start + 2] if end - start > 2 else SUCCESS


class ConnAck(NamedTuple):
    """Section 3.2. None if the broker does not say."""

    session_present: bool
    code: int
    reason: str
    server: str
    client_id: str
    keep_alive: int | None
    receive_max: int
    max_packet: int | None
    max_qos: int


def read_connack(data: bytes, cut: Cut) -> ConnAck:
    _, start, end = cut
    if end - start < 2:
        raise ProtocolError("a CONNACK without a reason code")
    properties = Properties({}, {}, [])
    if end - start > 2:  # the refusal of an MQTT 3.1.1 broker has no properties
        properties, _ = read_properties(data, start + 2, end)
    numbers, texts, _ = properties
    return ConnAck(
        session_present=data[start] & 1 != 0,
        code=data[start + 1],
        reason=texts.get(REASON, ""),
        server=texts.get(SERVER_REFERENCE, ""),
        client_id=texts.get(ASSIGNED_CLIENT_ID, ""),
        keep_alive=numbers.get(SERVER_KEEP_ALIVE),
        # Mosquitto sends 0, which MQTT forbids, for "no limit".
        receive_max=numbers.get(RECEIVE_MAXIMUM, 0) or 0xFFFF,
        max_packet=numbers.get(MAXIMUM_PACKET_SIZE),
        max_qos=numbers.get(MAXIMUM_QOS, 2),
    )


def read_suback(data: bytes, cut: Cut) -> tuple[int, bytes]:
    """The packet id, and a reason code for each filter (section 3.9)."""
    _, start, end = cut
    if end - start < 3:
        raise ProtocolError("a SUBACK without a packet identifier")
    _, at = read_properties(data, start + 2, end)
    return data[start] << 8 | data[start + 1], data[at:end]


def read_disconnect(data: bytes, cut: Cut) -> tuple[int, str]:
    """The reason code and the reason string (section 3.14)."""
    _, start, end = cut
    code = data[start] if end > start else SUCCESS
    if end - start < 2:
        return code, ""
    properties, _ = read_properties(data, start + 1, end)
    return code, properties.texts.get(REASON, "")


# --- properties (section 2.2.2) ---------------------------------------------------------------------

ASSIGNED_CLIENT_ID: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
SERVER_REFERENCE: Final = 0x1C
REASON: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
ALIAS: Final = 0x23
MAXIMUM_QOS: Final = 0x24
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27

_WIDTHS: Final = {  # bytes of numeric properties
    **dict.fromkeys((0x01, 0x17, 0x19, MAXIMUM_QOS, 0x25, 0x28, 0x29, 0x2A), 1),
    **dict.fromkeys((SERVER_KEEP_ALIVE, RECEIVE_MAXIMUM, 0x22, ALIAS), 2),
    **dict.fromkeys((0x02, 0x11, 0x18, MAXIMUM_PACKET_SIZE), 4),
}
_TEXTS: Final = frozenset({0x03, 0x08, ASSIGNED_CLIENT_ID, 0x15, 0x1A, SERVER_REFERENCE, REASON})
_BINARY: Final = frozenset({0x09, 0x16})
_VARIABLE: Final = 0x0B


class Properties(NamedTuple):
    """By identifier; user properties in order."""

    numbers: dict[int, int]
    texts: dict[int, str]
    user: list[tuple[str, str]]


def read_properties(data: bytes, at: int, end: int) -> tuple[Properties, int]:
    """The properties at `at`, and their end."""
    at, stop = _bounds(data, at - 1, end)
    if not at or stop > end:
        raise ProtocolError("properties longer than their packet")
    found = Properties({}, {}, [])
    while at < stop:
        kind = data[at]
        at += 1
        if kind == USER_PROPERTY:
            name, at = _text(data, at, stop)
            value, at = _text(data, at, stop)
            found.user.append((name, value))
        elif kind in _TEXTS:
            found.texts[kind], at = _text(data, at, stop)
        elif kind in _WIDTHS:
            width = _WIDTHS[kind]
            found.numbers[kind] = int.from_bytes(data[at : at + width], "big")
            at += width
        elif kind in _BINARY:
            _, at = _string(data, at, stop)
        elif kind == _VARIABLE:
            while at < stop and data[at] & 0x80:
                at += 1
            at += 1
        else:
            raise ProtocolError(f"the unknown property 0x{kind:02X}")
    if at != stop:
        raise ProtocolError("a property longer than the properties")
    return found, at


def _text(data: bytes, at: int, stop: int) -> tuple[str, int]:
    raw, at = _string(data, at, stop)
    return raw.decode(), at


def _string(data: bytes, at: int, stop: int) -> tuple[bytes, int]:
    end = at + 2 + (int.from_bytes(data[at : at + 2], "big"))
    if end > stop:
        raise ProtocolError("a string longer than the properties")
    return data[at + 2 : end], end
