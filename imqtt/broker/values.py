"""What goes into the link and comes out of it."""

import ssl
from dataclasses import dataclass, field
from typing import NamedTuple

UserProperties = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when the connection ends without a DISCONNECT. `delay` in seconds."""

    topic: str
    payload: bytes
    qos: int = 1
    delay: int = 0
    properties: UserProperties = ()


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """One connection. Times in seconds, sizes in bytes.

    `session_expiry`: how long the broker keeps the session after the connection has ended. Mosquitto
    persists only sessions that were begun with `clean_start=False`.

    `receive_max`: messages that are received and not acked before the link stops reading the socket; also
    told to the broker as Receive Maximum. `receive_bytes` bounds the same messages by their payloads.

    `max_packet`: the largest packet that the broker may send, or None. A broker drops larger messages
    silently, so this bounds memory at the price of losing them.

    `keep_alive`: at most so long without a packet to the broker; 0: no limit, and no detection of a peer
    that has gone silent. The broker may set another in CONNACK, which is then what counts.

    `ack_delay`: how long PUBACKs may wait for others to leave with. Each write costs both sides, and nobody
    waits for a PUBACK but the broker's memory.

    `timeout`: of the whole of connecting, and of closing.
    """

    host: str
    port: int
    client_id: str
    username: str = ""
    password: str = field(default="", repr=False)
    clean_start: bool = False
    session_expiry: int = 0
    keep_alive: int = 30
    receive_max: int = 1_000
    receive_bytes: int = 16 * 1024 * 1024
    ack_delay: float = 0.0
    max_packet: int | None = None
    tls: ssl.SSLContext | None = None
    will: Will | None = None
    properties: UserProperties = ()
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.receive_max <= 0xFFFF:
            raise ValueError(f"receive_max is 1 to 65535, not {self.receive_max}")
        if not 0 <= self.keep_alive <= 0xFFFF:
            raise ValueError(f"keep_alive is 0 to 65535 seconds, not {self.keep_alive}")


class Message(NamedTuple):
    """To be published, at QoS 0 or 1. `properties` are MQTT 5 user properties."""

    topic: str
    payload: bytes
    qos: int = 1
    properties: UserProperties = ()
    retain: bool = False


class Received(NamedTuple):
    """A message from the broker, at QoS 0 or 1.

    `packet_id` is None at QoS 0. `dup`: the broker has sent it before, maybe on another connection.
    `receipt` is its place in the order of receipt, unique over all connections of the process; -1 at
    QoS 0. Packet ids are no such thing: Mosquitto 2.0.11 reuses them while they are unacked.
    """

    topic: str
    payload: bytes
    packet_id: int | None
    dup: bool
    properties: UserProperties
    qos: int
    receipt: int
