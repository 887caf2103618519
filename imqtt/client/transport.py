"""The interface to MQTT: one connection of a device at a time."""

from dataclasses import dataclass, field
from typing import Protocol

from imqtt.client.settings import Address
from imqtt.client.tls import TlsContexts
from imqtt.errors import NotConnected

UNTAKEN = {0x10: "nobody is subscribed", 0x97: "the broker's quota is exceeded"}


class LoginRefused(Exception):
    """The broker does not accept the credentials."""


class Lost(NotConnected):
    """The connection cannot be made, or has ended.

    `hung_up`: the broker closed it without a reason code, as Mosquitto 2.0 does when another connection has
    the same client id. `taken_over`: the broker gave that as the reason.
    """

    def __init__(self, reason: str, *, hung_up: bool = False, taken_over: bool = False) -> None:
        super().__init__(reason)
        self.hung_up = hung_up
        self.taken_over = taken_over


class Untaken(NotConnected):
    """The broker acknowledged a publish that nobody will answer.

    `puback` is the reason code: 0x10 if there is no subscriber, because the server has not connected since
    the broker lost its sessions; from 0x80 on, the broker refused the publish.
    """

    def __init__(self, topic: str, code: int) -> None:
        super().__init__(f"{topic}: {UNTAKEN.get(code, 'the broker refused it')} (0x{code:02x})")
        self.puback = code


@dataclass(frozen=True, slots=True)
class Login:
    """The parameters of a connection. Times are in seconds. The will is published at QoS 1.

    `proven`: this address has accepted the device before, so its protocol is right.
    """

    name: str
    password: str = field(repr=False)
    will_topic: str
    will: bytes
    keep_alive: int
    timeout: float
    tls: TlsContexts | None
    proven: bool = False


class MqttConnection(Protocol):
    """An open MQTT 5 connection with clean start: the broker queues nothing for the device."""

    async def subscribe(self, topic: str) -> None:
        """Subscribes at QoS 1. Raises `Lost`, also if the broker grants less."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publishes at QoS 1; returns at the PUBACK or when it is overdue. Raises `Untaken` and `Lost`."""

    async def receive(self) -> list[bytes]:
        """Returns the payloads of the packets that have arrived, at least one. Raises `Lost`."""

    @property
    def is_receiving(self) -> bool:
        """Whether part of a packet has arrived."""

    async def close(self) -> None:
        """Sends DISCONNECT, so that the broker does not publish the will."""

    def drop(self) -> None:
        """Closes the socket without DISCONNECT, so that the broker publishes the will."""


class Transport(Protocol):
    """Opens a connection to one broker. Raises `LoginRefused`, `TlsFailed` or `Lost`."""

    async def __call__(self, address: Address, login: Login) -> MqttConnection: ...
