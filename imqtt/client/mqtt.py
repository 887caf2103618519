"""One MQTT 5 connection of a device: the only module that knows aiomqtt and paho."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Self, TypeVar

import aiomqtt
from aiomqtt.exceptions import MqttCodeError, MqttConnectError
from paho.mqtt.reasoncodes import ReasonCode

from imqtt.client.settings import Address
from imqtt.errors import NotConnected

log = logging.getLogger(__name__)

MAX_WAITING = 2_000  # packets received and not yet taken; one more, and the connection ends behind them
MAX_IN_FLIGHT = 100  # publishes without PUBACK; paho queues further ones
REFUSALS = (0x85, 0x86, 0x87, 0x8A, 0x8C)  # MQTT 5, 3.2.2.2: client id, password, authorization, ban, method

Answer = TypeVar("Answer")


class Refused(Exception):
    """The broker does not take the credentials."""


class Lost(NotConnected):
    """The connection cannot be made, or has ended."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a connection is opened with. Times in seconds. The will is published at QoS 1."""

    name: str
    password: str = field(repr=False)
    will_topic: str
    will: bytes
    keep_alive: int
    timeout: float
    tls: ssl.SSLContext | None


class _Incoming(asyncio.Queue[aiomqtt.Message]):
    """What was received. Once it has been full it takes nothing more, and ends behind what it holds.

    aiomqtt would drop what finds no room, though the broker has its PUBACK: of a last message that is lost,
    no later one tells. A new connection asks for it.
    """

    _has_overflowed = False

    def put_nowait(self, item: aiomqtt.Message) -> None:
        self._has_overflowed = self._has_overflowed or self.full()
        if not self._has_overflowed:
            super().put_nowait(item)

    async def get(self) -> aiomqtt.Message:
        if self._has_overflowed and self.empty():
            raise Lost(f"more than {self.maxsize} packets waited to be taken")
        return await super().get()


class Mqtt:
    """An open connection with a clean session: whatever it misses is asked for, not queued by the broker."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    @classmethod
    async def open(cls, address: Address, login: Login) -> Self:
        """Raises `Refused` or `Lost`."""
        tls = login.tls
        if tls is None and address.is_encrypted:
            tls = ssl.create_default_context()
        client = aiomqtt.Client(
            address.host,
            address.port,
            username=login.name,
            password=login.password,
            identifier=login.name,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(login.will_topic, login.will, qos=1),
            transport="websockets" if address.is_websocket else "tcp",
            websocket_path=address.path if address.is_websocket else None,
            timeout=login.timeout,
            keepalive=login.keep_alive,
            clean_start=True,
            queue_type=_Incoming,
            max_queued_incoming_messages=MAX_WAITING,
            max_inflight_messages=MAX_IN_FLIGHT,
            tls_context=tls if address.is_encrypted else None,
            # Without it a command waits for the acknowledgement of the one before: 40 ms instead of 0.4.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            logger=log,
        )
        client.pending_calls_threshold = 1_000
        # aiomqtt has no option for it, and paho's own five seconds may be more than was asked for.
        client._client.connect_timeout = login.timeout  # noqa: SLF001
        opening = asyncio.create_task(client.__aenter__(), name=f"imqtt-open-{address}")
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # aiomqtt connects in a thread, which a cancellation does not stop: without this, a connection
            # that nobody knows of would stay open and keep the device's client id busy.
            opening.add_done_callback(lambda done: _abandon(client, done))
            raise
        except MqttConnectError as error:
            _hang_up(client)
            if isinstance(error.rc, ReasonCode) and error.rc.value in REFUSALS:
                raise Refused(f"{address}: {error.rc}") from None
            raise Lost(f"{address}: {error}") from None
        except (aiomqtt.MqttError, ValueError) as error:  # ValueError: a name that no resolver takes
            _hang_up(client)
            raise Lost(f"{address}: {error}") from None
        return cls(client)

    async def subscribe(self, topic: str) -> None:
        """Subscribes at QoS 1. Raises `Lost`, also where the broker grants less."""
        try:
            granted = await _cancellable(self._client.subscribe(topic, qos=1))
        except (aiomqtt.MqttError, ValueError) as error:
            raise Lost(f"subscribing to {topic}: {error}") from None
        for code in granted:
            if (code if isinstance(code, int) else code.value) != 1:
                raise Lost(f"the broker does not grant {topic}: {code}")

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publishes at QoS 1 and returns at the PUBACK, which promises nothing. Raises `Lost`."""
        try:
            await _cancellable(self._client.publish(topic, payload, qos=1))
        except MqttCodeError as error:
            raise Lost(f"publishing: {error}") from None
        except aiomqtt.MqttError as error:
            # No PUBACK in time. Whether the connection is alive is for the keep-alive to find out.
            log.debug("%s: %s", topic, error)

    async def receive(self, limit: int = 500) -> list[bytes]:
        """The payloads of what has arrived, at least one. Raises `Lost`."""
        messages = self._client.messages
        try:
            batch = [await anext(messages)]
            while len(messages) and len(batch) < limit:
                batch.append(await anext(messages))
        except aiomqtt.MqttError as error:
            raise Lost(str(error.__cause__ or error)) from None
        return [bytes(it.payload) for it in batch if isinstance(it.payload, bytes | bytearray)]

    @property
    def is_receiving(self) -> bool:
        """Whether a packet has arrived in part."""
        return bool(self._client._client._in_packet["command"])  # noqa: SLF001 - paho tells nobody

    async def close(self) -> None:
        """Says DISCONNECT, so that the broker does not publish the will."""
        try:
            await self._client.__aexit__(None, None, None)
        except aiomqtt.MqttError as error:
            log.debug("disconnecting: %s", error)
        finally:
            _hang_up(self._client)

    def drop(self) -> None:
        """Closes the socket without a word, so that the broker publishes the will."""
        _hang_up(self._client)


async def _cancellable(call: Awaitable[Answer]) -> Answer:
    """Awaits what aiomqtt does. Its `wait_for` loses a cancellation that comes together with the answer.

    So it is in Python 3.11; since 3.12 there is nothing left to do here.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine is awaited in one
    cancelled_before = task.cancelling()
    answer = await call
    if task.cancelling() > cancelled_before:
        raise asyncio.CancelledError
    return answer


def _abandon(client: aiomqtt.Client, opening: "asyncio.Task[aiomqtt.Client]") -> None:
    if not opening.cancelled():
        opening.exception()  # nobody is there to hear it
    _hang_up(client)


def _hang_up(client: aiomqtt.Client) -> None:
    """Closes the socket, which aiomqtt leaves open after a CONNACK that did not come in time."""
    client._client._sock_close()  # noqa: SLF001 - paho's `disconnect` sends, and then waits to be read
