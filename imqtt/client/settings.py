"""What a client is told once: who it is, where the brokers are, how long it waits for what."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal
from urllib.parse import urlsplit

from imqtt.addresses import host_port
from imqtt.client.tls import TlsContexts
from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.protocol import Format
from imqtt.protocol.topics import MAX_NAME, parse_username
from imqtt.redaction import redacted

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class Protocol(Enum):
    """What is spoken first on a connection."""

    MQTT = "mqtt"
    HTTP = "http"  # WebSockets begin with it
    TLS = "tls"


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

    @property
    def protocol(self) -> Protocol:
        if self.is_encrypted:
            return Protocol.TLS
        return Protocol.HTTP if self.is_websocket else Protocol.MQTT

    @property
    def place(self) -> str:
        """Host and port, as they can be pasted back."""
        return host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}" + (self.path if self.path != "/" else "")


def parse_address(text: str, *, encrypted: bool = False) -> Address:
    """`host`, `host:port` or a URL such as `mqtts://host:8883`. Raises `SetupError`.

    Without a scheme it is mqtts if TLS was asked for (`encrypted`), or by the port that is registered for it.
    """
    has_scheme = "://" in text
    try:
        parts = urlsplit(text if has_scheme else f"mqtt://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # which may quote a part of a password
        raise SetupError(f"not a broker's address: {redacted(text)!r}{_hint(text)}") from None
    scheme = parts.scheme
    if not host or scheme not in DEFAULT_PORTS:
        raise SetupError(
            f"not a broker's address: {redacted(text)!r}; host:port, or mqtt, mqtts, ws or wss://…"
            + _hint(text)
        )
    if not has_scheme and (encrypted or port == DEFAULT_PORTS["mqtts"]):
        scheme = "mqtts"
    path = parts.path or "/"
    # Nothing of an address is passed over: it may be meant to ask for TLS.
    if parts.username is not None or parts.query or parts.fragment:
        raise SetupError(f"not a broker's address: {redacted(text)!r}; it has no account and no options")
    if path != "/" and scheme not in ("ws", "wss"):
        raise SetupError(f"not a broker's address: {redacted(text)!r}; only ws:// and wss:// have a path")
    return Address(host, port or DEFAULT_PORTS[scheme], scheme, path)


def _hint(text: str) -> str:
    place = text.rpartition("://")[2]
    is_ipv6 = place.count(":") > 1 and "[" not in place
    return "; an IPv6 address stands in brackets: [::1]:1883" if is_ipv6 else ""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a client waits for what, in seconds. Most waits are drawn at random around their value."""

    connect: float = 5.0  # for TCP, and for the broker's CONNACK
    keep_alive: int = 30
    answer: float = 5.0  # for an answer to a first try; later tries wait longer
    patience: float = 60.0  # but no longer than this
    untaken: float = (
        2.0  # at most, before a command that nobody was subscribed for (PUBACK 0x10) is published again
    )
    idle: float = 0.0  # without anything from the server, before it is asked for a sign of life; 0: never
    silence: float = 60.0  # in which something is asked and nothing at all comes: then another connection
    retry: float = 0.5  # before the first reconnection at most, doubling from there
    retry_most: float = 30.0
    hole: float = 0.3  # at most, before a missing event is asked for: it may be on its way
    sync: float = 240.0  # between two syncs, so that a lost last message is found too
    marks: float = 0.3  # marks wait so long for others to come along
    farewell: float = 2.0  # at most, for what is said on closing


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The checked settings of one client."""

    device: Device
    password: str = field(repr=False)
    addresses: tuple[Address, ...]
    format: Format = Format.PROTOBUF
    start: Literal["latest", "beginning"] = "latest"
    platform: str = ""
    max_packet: int = 0
    keep: int | None = None
    tls: TlsContexts | None = None  # None: the addresses are unencrypted
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


def parse_addresses(brokers: str | Iterable[str], *, encrypted: bool = False) -> tuple[Address, ...]:
    """Every address once, in the order given. `encrypted`: TLS was asked for. Raises `SetupError`.

    All of them use TLS or none does: whoever keeps a device from one address would otherwise make it send its
    password in clear to the next.
    """
    given = [brokers] if isinstance(brokers, str) else list(brokers)
    if not given:
        raise SetupError("a client needs the address of a broker")
    addresses = tuple(dict.fromkeys(parse_address(text, encrypted=encrypted) for text in given))
    plain = [it for it in addresses if not it.is_encrypted]
    if plain and (encrypted or len(plain) < len(addresses)):
        asked = (
            "TLS is asked for" if encrypted else f"{next(it for it in addresses if it.is_encrypted)} uses TLS"
        )
        instead = "wss" if plain[0].is_websocket else "mqtts"
        raise SetupError(f"{asked}, but {plain[0]} would send the password unencrypted: use {instead}://")
    return addresses
