"""The values that the link takes and returns."""

import ssl
from dataclasses import dataclass, field
from typing import NamedTuple

UserProperties = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Will:
    """Published by the broker at QoS 1 if the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The settings of one connection. Times in seconds, sizes in bytes.

    `session_expiry`: how long the broker keeps the session after the connection has ended. Mosquitto
    persists only sessions that began with `clean_start=False`.

    `receive_max`: the number of received packets without an ack at which the link stops reading the socket,
    at QoS 0 as well; also sent to the broker as Receive Maximum. `receive_bytes` limits their payloads.

    `max_packet`: the largest packet that the broker may send, or None. A broker silently drops larger ones,
    so this bounds memory at the cost of losing them.

    `keep_alive`: the longest time without a packet to the broker; 0: no limit, and a silent peer is not
    detected. A value in the broker's CONNACK replaces it.

    `ack_delay`: how long a few PUBACKs may wait, so that several leave in one write. A PUBACK only frees
    memory of the broker.

    `timeout`: for connecting as a whole, and for closing.
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
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.receive_max <= 0xFFFF:
            raise ValueError(f"receive_max must be 1 to 65535, not {self.receive_max}")
        if not 0 <= self.keep_alive <= 0xFFFF:
            raise ValueError(f"keep_alive must be 0 to 65535 seconds, not {self.keep_alive}")


class Packet(NamedTuple):
    """A packet to publish, at QoS 0 or 1. `properties` are MQTT 5 user properties."""

    topic: str
    payload: bytes
    qos: int = 1
    properties: UserProperties = ()


class Received(NamedTuple):
    """A packet from the broker, at QoS 0 or 1.

    `packet_id` is None at QoS 0. `dup`: the broker has sent it before, perhaps on another connection.
    `receipt` is its number in the order of receipt, unique among all connections of the process. The packet
    id is not unique: Mosquitto 2.0.11 reuses ids that are not acked.
    """

    topic: str
    payload: bytes
    packet_id: int | None
    dup: bool
    properties: UserProperties
    qos: int
    receipt: int
