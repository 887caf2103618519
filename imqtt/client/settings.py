"""A client's settings: its device, the brokers, and its timeouts."""

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
    """The first protocol on a connection."""

    MQTT = "mqtt"
    HTTP = "http"  # of WebSockets
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's listener. `scheme` is mqtt, mqtts (TLS), ws or wss (WebSockets)."""

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
        """Host and port, in the form of a setting."""
        return host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}" + (self.path if self.path != "/" else "")


def parse_address(text: str, *, encrypted: bool = False) -> Address:
    """`host`, `host:port` or a URL such as `mqtts://host:8883`. Raises `SetupError`.

    Without a scheme it is mqtts if `encrypted`, or if the port is the one registered for mqtts.
    """
    has_scheme = "://" in text
    wrong = f"not a broker's address: {redacted(text)!r}"
    try:
        parts = urlsplit(text if has_scheme else f"mqtt://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may quote part of a password
        raise SetupError(f"{wrong}{_hint(text)}") from None
    scheme = parts.scheme
    if not host or scheme not in DEFAULT_PORTS:
        raise SetupError(f"{wrong}; host:port, or mqtt, mqtts, ws or wss://…{_hint(text)}")
    if not has_scheme and (encrypted or port == DEFAULT_PORTS["mqtts"]):
        scheme = "mqtts"
    path = parts.path or "/"
    # No part of an address is ignored: it may be meant as a request for TLS.
    if parts.username is not None or parts.query or parts.fragment:
        raise SetupError(f"{wrong}; it has no account and no options")
    if path != "/" and scheme not in ("ws", "wss"):
        raise SetupError(f"{wrong}; only ws:// and wss:// have a path")
    return Address(host, port or DEFAULT_PORTS[scheme], scheme, path)


def _hint(text: str) -> str:
    place = text.rpartition("://")[2]
    is_ipv6 = place.count(":") > 1 and "[" not in place
    return "; an IPv6 address stands in brackets: [::1]:1883" if is_ipv6 else ""


@dataclass(frozen=True, slots=True)
class Timing:
    """A client's timeouts and intervals, in seconds. Most are randomized around their value."""

    connect: float = 5.0  # for TCP and the broker's CONNACK
    keep_alive: int = 30
    answer: float = 5.0  # for the answer to a first try; later tries wait longer
    patience: float = 60.0  # the longest wait for an answer
    untaken: float = 2.0  # the longest wait before repeating a command without subscriber (PUBACK 0x10)
    idle: float = 0.0  # without a packet from the server, after which the client sends a request; 0: never
    silence: float = 60.0  # without a packet while a request is open, after which the client reconnects
    retry: float = 0.5  # the longest wait before the first reconnection; it doubles with each
    retry_most: float = 30.0  # the longest wait before any reconnection
    hole: float = 0.3  # the longest wait before requesting a missing event, which may be on its way
    sync: float = 240.0  # between two syncs, which also find a lost last message
    marks: float = 0.3  # for further marks to send with the first
    farewell: float = 2.0  # the longest time for the commands of `close`


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
    """Raises `SetupError` for invalid names."""
    checked = Device(user, device)
    if parse_username(str(checked)) is None:
        raise SetupError(
            f"{checked}: user and device consist of letters, digits, '.', '_' and '-', together at most "
            f"{MAX_NAME} characters"
        )
    return checked


def parse_addresses(brokers: str | Iterable[str], *, encrypted: bool = False) -> tuple[Address, ...]:
    """Each address once, in the given order. `encrypted`: TLS is required. Raises `SetupError`.

    All of them use TLS or none does. Otherwise an attacker who blocks one address could make the device send
    its password unencrypted to the next.
    """
    given = [brokers] if isinstance(brokers, str) else list(brokers)
    if not given:
        raise SetupError("a client needs the address of a broker")
    addresses = tuple(dict.fromkeys(parse_address(text, encrypted=encrypted) for text in given))
    plain = [address for address in addresses if not address.is_encrypted]
    others = [address for address in addresses if address.is_encrypted]
    if plain and (encrypted or others):
        asked = "TLS is asked for" if encrypted else f"{others[0]} uses TLS"
        instead = "wss" if plain[0].is_websocket else "mqtts"
        raise SetupError(f"{asked}, but {plain[0]} would send the password unencrypted: use {instead}://")
    return addresses
