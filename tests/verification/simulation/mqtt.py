"""The SDK's connection to the simulated broker: like `imqtt.client.mqtt.Mqtt`, including paho's quirks."""

import asyncio
from typing import Any, Self

from imqtt.broker.errors import SUCCESS, describe
from imqtt.broker.values import LinkSettings, Will
from imqtt.broker.values import Packet as Message
from imqtt.client.mqtt import MAX_WAITING, REFUSALS, TAKEN_OVER
from imqtt.client.settings import Address
from imqtt.client.transport import Login, LoginRefused, Lost, Untaken
from tests.verification.simulation.broker import (
    ACK,
    CONNACK,
    CONNECT,
    DELIVERY,
    DISCONNECT,
    PUBLISH,
    RESET,
    SUBSCRIBE,
    Broker,
)
from tests.verification.simulation.link import dial
from tests.verification.simulation.loop import Handle
from tests.verification.simulation.network import Batch, Connection, Packet

DEAD_AFTER = 2.0  # keep-alive intervals: paho sends a ping after one and waits for another
GRANTED = b"\x01"


class SimMqtt:
    """An open connection with a clean session, like `Mqtt`, made by `open`."""

    def __init__(self, broker: Broker, address: Address, login: Login) -> None:
        self._broker = broker
        self._address = address
        self._login = login
        self._loop = broker.loop
        self._connection: Connection | None = None  # None once the socket is closed
        self._ended: Lost | None = None  # the reason; None before the end, and after `drop`
        self._opening: asyncio.Future[int] = self._loop.create_future()
        self._inbox: list[bytes] = []
        self._publishing: set[asyncio.Future[int]] = set()
        self._has_overflowed = False
        self._arrival: asyncio.Future[None] | None = None
        self._heard = 0.0
        self._suspected = False
        self._timer: Handle | None = None

    @classmethod
    async def open(cls, broker: Broker, address: Address, login: Login) -> Self:
        """Connects to `broker`, whatever the address. Raises `LoginRefused` or `Lost`."""
        self = cls(broker, address, login)
        try:
            await self._open()
        except BaseException:
            self.drop()
            raise
        return self

    async def _open(self) -> None:
        address, login = self._address, self._login
        try:
            async with asyncio.timeout(login.timeout):
                self._connection = await dial(self._broker, self._arrive)
            self._send((CONNECT, self._settings(), 0))
            async with asyncio.timeout(login.timeout):
                code = await self._opening
        except OSError as error:  # TimeoutError is one
            raise Lost(f"{address}: {error}") from None
        if code in REFUSALS:
            raise LoginRefused(f"{address}: {describe(code)}")
        if code != SUCCESS:
            raise Lost(f"{address}: {describe(code)}")

    def _settings(self) -> LinkSettings:
        login = self._login
        return LinkSettings(
            self._address.host,
            self._address.port,
            login.name,
            clean_start=True,
            keep_alive=login.keep_alive,
            will=Will(login.will_topic, login.will),
        )

    async def subscribe(self, topic: str) -> None:
        """Raises `Lost`, after `login.timeout` if the connection is lost meanwhile."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._send((SUBSCRIBE, (topic,), answer))
        if not await self._answered(answer):
            raise Lost(f"subscribing to {topic}: Operation timed out")
        if answer.result() != GRANTED:
            raise Lost(f"the broker does not grant {topic}: {answer.result()!r}")

    async def publish(self, topic: str, payload: bytes) -> None:
        """Returns at the PUBACK, or after `login.timeout` without one. Raises `Lost` and `Untaken`."""
        answer: asyncio.Future[int] = self._loop.create_future()
        self._send((PUBLISH, Message(topic, payload), answer))
        self._publishing.add(answer)
        try:
            answered = await self._answered(answer)
        finally:
            self._publishing.discard(answer)
        if answered and answer.result() != SUCCESS:
            raise Untaken(topic, answer.result())

    @property
    def is_receiving(self) -> bool:
        """A packet arrives whole or not at all."""
        return False

    async def receive(self, limit: int = 500) -> list[bytes]:
        """Raises `Lost` when the connection has ended and everything received has been returned."""
        while not self._inbox:
            if self._has_overflowed or self._ended:
                raise self._ended or Lost("overflow")
            self._arrival = self._loop.create_future()
            await self._arrival
        batch = self._inbox[:limit]
        del self._inbox[:limit]
        return batch

    async def close(self) -> None:
        """Sends DISCONNECT and closes the socket: paho waits for no answer."""
        if self._connection is not None:
            self._send((DISCONNECT, SUCCESS))
            self._close_socket(0.0)
            self._end(Lost("Disconnected during message iteration"))

    def drop(self) -> None:
        """Closes the socket without notifying callers that wait here."""
        self._close_socket(RESET)

    # --- inside

    def _send(self, *packets: Packet) -> None:
        if self._connection is None:
            raise Lost("The client is not currently connected.")
        self._connection.up.send(packets)

    async def _answered(self, answer: "asyncio.Future[Any]") -> bool:
        """Waits for the answer, at most `login.timeout`."""
        timer = self._loop.call_later(self._login.timeout, answer.cancel)
        try:
            await asyncio.wait((answer,))
        finally:
            timer.cancel()
        return not answer.cancelled()

    def _arrive(self, batch: Batch) -> None:
        connection = self._connection
        if connection is None:
            return
        self._heard = self._loop.time()
        for packet in batch:
            if packet is None:
                self._close_socket(RESET)
                self._end(Lost("Unexpected disconnection"))
                return
            kind = packet[0]
            if kind == DELIVERY:
                self._has_overflowed = self._has_overflowed or len(self._inbox) == MAX_WAITING
                if not self._has_overflowed:
                    self._inbox.append(packet[2].payload)
                if packet[1] is not None:
                    connection.up.send(((ACK, packet[1]),))
            elif kind == CONNACK:
                self._connected(packet[1])
            elif kind == DISCONNECT:
                self._close_socket(RESET)
                taken_over = packet[1] == TAKEN_OVER
                self._end(Lost(f"the broker ended the connection: {packet[1]}", taken_over=taken_over))
                return
            else:
                _answer(packet[1], packet[2])
        if self._inbox and self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _connected(self, code: int) -> None:
        _answer(self._opening, code)
        if code == SUCCESS:
            self._timer = self._loop.call_later(self._login.keep_alive / 2, self._tick)

    def _tick(self) -> None:
        """Ends the connection if the broker is silent. Pings are looked up, as in `link`."""
        connection = self._connection
        if connection is None:
            return
        now, keep_alive = self._loop.time(), self._login.keep_alive
        if not connection.silent:
            self._suspected = False
            self._timer = self._loop.call_later(keep_alive / 2, self._tick)
            return
        if not self._suspected:
            self._suspected = True
            self._heard = max(self._heard, now - (1 + self._loop.random.random()) / 2 * keep_alive)
        left = self._heard + DEAD_AFTER * keep_alive - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._tick)
        else:
            self._close_socket(RESET)
            self._end(Lost("Keep alive timeout"))

    def _close_socket(self, losing: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close_client_end(losing)
            self._connection = None

    def _end(self, lost: Lost) -> None:
        # An end before CONNACK goes unnoticed: `open` waits for its timeout.
        self._ended = lost
        for answer in self._publishing:
            if not answer.done():
                answer.set_exception(lost)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


def _answer(future: "asyncio.Future[Any]", answer: object) -> None:
    if not future.done():
        future.set_result(answer)
