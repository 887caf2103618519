"""What a client is told once: who it is, where the brokers are, how long it waits for what."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.protocol import Format
from imqtt.protocol.topics import MAX_NAME, parse_username
from imqtt.redaction import redacted

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens. `scheme` is mqtt, mqtts (TLS), ws or wss (websockets)."""

    host: str
    port: int
    scheme: str = "mqtt"
    path: str = "/"

    @property
    def is_encrypted(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    @property
    def is_websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`host`, `host:port` or a URL such as `mqtts://host:8883`. Raises `SetupError`."""
    try:
        parts = urlsplit(text if "://" in text else f"mqtt://{text}")
        port = parts.port
    except ValueError:  # which may quote a part of a password
        raise SetupError(f"not a broker's address: {redacted(text)!r}") from None
    if not parts.hostname or parts.scheme not in DEFAULT_PORTS:
        raise SetupError(
            f"not a broker's address: {redacted(text)!r}; host:port, or mqtt, mqtts, ws or wss://…"
        )
    return Address(parts.hostname, port or DEFAULT_PORTS[parts.scheme], parts.scheme, parts.path or "/")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a client waits for what, in seconds. Each wait is drawn at random around its value."""

    connect: float = 5.0  # for TCP, and for the broker's CONNACK
    keep_alive: int = 30
    answer: float = 5.0  # for an answer to a first try; later tries wait longer
    patience: float = 60.0  # but no longer than this
    idle: float = 0.0  # without anything from the server, before it is asked for a sign of life; 0: never
    silence: float = 60.0  # in which something is asked and nothing at all comes: then another connection
    retry: float = 0.5  # before the first reconnection at most, doubling from there
    retry_most: float = 30.0
    hole: float = 0.3  # at most, before a missing event is asked for: it may be on its way
    sync: float = 240.0  # between two syncs, so that a lost last message is found too
    marks: float = 0.3  # marks wait so long for others to come along
    farewell: float = 2.0  # at most, for what is said on closing


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of one client."""

    device: Device
    password: str = field(repr=False)
    addresses: tuple[Address, ...]
    format: Format = Format.PROTOBUF
    start: Literal["latest", "beginning"] = "latest"
    platform: str = ""
    max_packet: int = 0
    keep: int | None = None
    tls: ssl.SSLContext | None = None
    timing: Timing = Timing()

    @property
    def name(self) -> str:
        """The device's MQTT username and client id."""
        return str(self.device)


def check_device(user: str, device: str) -> Device:
    """Raises `SetupError` for names that no device can have."""
    checked = Device(user, device)
    if parse_username(str(checked)) is None:
        raise SetupError(
            f"{checked}: user and device are of letters, digits, '.', '_' and '-', together at most "
            f"{MAX_NAME} characters"
        )
    return checked


def parse_addresses(brokers: str | Iterable[str]) -> tuple[Address, ...]:
    """Every address once, in the order given. Raises `SetupError`."""
    given = [brokers] if isinstance(brokers, str) else list(brokers)
    if not given:
        raise SetupError("a client needs the address of a broker")
    return tuple(dict.fromkeys(map(parse_address, given)))
