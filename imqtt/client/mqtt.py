"""One MQTT 5 connection of a device. Only this module imports aiomqtt and paho."""

import asyncio
import logging
import os
import socket
import ssl
from typing import Any, Self, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import Client, DisconnectFlags, error_string
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from imqtt.client.probe import advice, refusal, spoken
from imqtt.client.settings import Address, Protocol
from imqtt.client.tls import explain
from imqtt.client.transport import Login, LoginRefused, Lost, MqttConnection, Untaken
from imqtt.errors import NotConnected, SetupError, TlsFailed

log = logging.getLogger(__name__)

MAX_WAITING = 2_000  # received packets that wait; one more ends the connection after them
MAX_IN_FLIGHT = 100  # publishes without PUBACK; paho queues further ones
TAKEN_OVER, KEEP_ALIVE_TIMEOUT, NOT_AUTHORIZED = 0x8E, 0x8D, 0x87  # MQTT 5, 2.4
REFUSALS = (0x85, 0x86, 0x87, 0x8A, 0x8C)  # MQTT 5, 3.2.2.2: client id, password, authorization, ban, method


class _PahoLog(logging.LoggerAdapter[logging.Logger]):
    """The log of paho and aiomqtt, the only place where they report the cause of a lost connection.

    Everything is logged as DEBUG, since the SDK reports each cause itself, and without a handler `logging`
    would print errors to the screen.
    """

    cause: BaseException | None = None

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        for argument in args:
            if isinstance(argument, BaseException):
                self.cause = argument
        super().log(min(level, logging.DEBUG), msg, *args, **more)


class _Incoming(asyncio.Queue[aiomqtt.Message]):
    """The received packets. Once the queue was full, it accepts no more and ends after those that it holds.

    aiomqtt would drop a packet that does not fit although the broker has its PUBACK, and no later packet
    would reveal the loss of a last message. A new connection requests it.
    """

    _has_overflowed = False

    def put_nowait(self, item: aiomqtt.Message) -> None:
        self._has_overflowed = self._has_overflowed or self.full()
        if not self._has_overflowed:
            super().put_nowait(item)

    async def get(self) -> aiomqtt.Message:
        if self._has_overflowed and self.empty():
            raise Lost(f"more than {self.maxsize} received packets waited")
        return await super().get()


class Mqtt(MqttConnection):
    """An open connection with clean start: the client requests missed events; the broker queues nothing."""

    def __init__(self, address: Address, login: Login, tls: ssl.SSLContext | None) -> None:
        self._log = _PahoLog(log)
        self._loop = asyncio.get_running_loop()
        self._publishing: dict[int, asyncio.Future[int]] = {}  # by packet id
        self._end: Lost | None = None
        client = self._client = aiomqtt.Client(
            address.host,
            address.port,
            username=login.name,
            password=login.password or None,
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
            tls_context=tls,
            # Without it a command waits for the acknowledgement of the previous one: 40 ms instead of 0.4.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            logger=cast("logging.Logger", self._log),
        )
        paho = self._paho = client._client  # noqa: SLF001 - aiomqtt has no option for this
        paho.connect_timeout = login.timeout  # instead of paho's five seconds
        self._tell_disconnected = paho.on_disconnect
        paho.on_disconnect = self._disconnected
        paho.on_publish = self._published
        paho.on_socket_register_write = self._register_write

    @classmethod
    async def open(cls, address: Address, login: Login) -> Self:
        """Raises `LoginRefused`, `TlsFailed` or `Lost`."""
        try:
            mqtt = cls(address, login, login.tls.context() if login.tls is not None else None)
        except SetupError as error:
            raise TlsFailed(error.reason) from error
        client = mqtt._client
        opening = asyncio.create_task(client.__aenter__(), name=f"imqtt-open-{address}")
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # aiomqtt connects in a thread, which a cancellation does not stop. Without this, an unowned
            # connection would stay open and occupy the device's client id.
            opening.add_done_callback(lambda done: _abandon(client, done))
            raise
        except MqttConnectError as error:
            _hang_up(client)
            if isinstance(error.rc, ReasonCode) and error.rc.value in REFUSALS:
                raise LoginRefused(f"{address}: {error.rc}") from None
            if isinstance(error.rc, ReasonCode):
                raise Lost(f"{address}: {error.rc}") from None
            # Not a CONNACK of MQTT 5: the number is paho's or MQTT 3's.
            raise await _failure(
                address, ConnectionError("the listener is not an MQTT 5 broker"), login
            ) from None
        except (aiomqtt.MqttError, ValueError) as error:  # ValueError: an invalid host name
            _hang_up(client)
            raised = error.__context__ or mqtt._log.cause or error
            raise await _failure(address, raised, login) from None
        return mqtt

    def _register_write(self, paho: Client, _: object, sock: Any) -> None:
        """As aiomqtt's. But that registers a number, which by then may be no socket's or another one's."""

        def write() -> None:
            try:
                paho.loop_write()
            except Exception as error:  # noqa: BLE001 - the connection is lost, as in aiomqtt
                if not self._client._disconnected.done():  # noqa: SLF001
                    self._client._disconnected.set_exception(error)  # noqa: SLF001

        def register() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), write)

        self._loop.call_soon_threadsafe(register)  # paho calls this in the thread that connects, too

    async def subscribe(self, topic: str) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine is awaited in one
        cancelled_before = task.cancelling()
        try:
            granted = await self._client.subscribe(topic, qos=1)
        except (aiomqtt.MqttError, ValueError) as error:
            raise self._end or Lost(f"subscribing to {topic}: {error}") from None
        # aiomqtt calls `wait_for`, which loses a cancellation that arrives with the answer on Python 3.11.
        if task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        for code in granted:
            if (code if isinstance(code, int) else code.value) != 1:
                raise Lost(f"the broker does not grant {topic}: {code}")

    async def publish(self, topic: str, payload: bytes) -> None:
        # aiomqtt's `publish` ignores the PUBACK's reason code, and waits on after the connection is lost.
        try:
            info = self._paho.publish(topic, payload, qos=1)
        except ValueError as error:
            raise Lost(f"publishing: {error}") from None
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._end or Lost(f"publishing: {error_string(info.rc)}")
        answer = self._publishing[info.mid] = self._loop.create_future()
        try:
            async with asyncio.timeout(self._client.timeout):
                code = await answer
        except TimeoutError:
            # The keep-alive detects a dead connection.
            log.debug("%s: no PUBACK in %g s", topic, self._client.timeout)
            return
        finally:
            self._publishing.pop(info.mid, None)
        if code == NOT_AUTHORIZED:
            raise Lost(
                f"the broker does not let this device publish to {topic} (0x87, not authorized): its access"
                " rules, or the common name of the device's certificate, are for another username"
            )
        if code != 0:
            raise Untaken(topic, code)

    async def receive(self, limit: int = 500) -> list[bytes]:
        messages = self._client.messages
        try:
            batch = [await anext(messages)]
            while len(messages) and len(batch) < limit:
                batch.append(await anext(messages))
        except aiomqtt.MqttError as error:
            raise self._end or Lost(str(error.__cause__ or error)) from None
        return [bytes(message.payload) for message in batch if isinstance(message.payload, bytes | bytearray)]

    @property
    def is_receiving(self) -> bool:
        return bool(self._paho._in_packet["command"])  # noqa: SLF001 - paho has no method for it

    async def close(self) -> None:
        try:
            await self._client.__aexit__(None, None, None)
        except aiomqtt.MqttError as error:
            log.debug("disconnecting: %s", error)
        finally:
            _hang_up(self._client)

    def drop(self) -> None:
        _hang_up(self._client)

    # --- paho's callbacks

    def _published(
        self, _client: object, _userdata: object, mid: int, code: ReasonCode, _properties: object
    ) -> None:
        if (answer := self._publishing.get(mid)) is not None and not answer.done():
            answer.set_result(code.value)

    def _disconnected(
        self, client: Client, userdata: Any, flags: DisconnectFlags, code: ReasonCode, properties: Any
    ) -> None:
        # In paho's opening thread, if the connection ends there.
        self._loop.call_soon_threadsafe(self._ended, flags.is_disconnect_packet_from_server, code)
        cast("Any", self._tell_disconnected)(client, userdata, flags, code, properties)

    def _ended(self, by_broker: bool, code: ReasonCode) -> None:
        cause = self._log.cause
        connected = self._client._connected  # noqa: SLF001 - aiomqtt has no method for it
        disconnected = self._client._disconnected  # noqa: SLF001
        if disconnected.done():
            disconnected.exception()  # otherwise asyncio logs that it was never retrieved
        if by_broker:
            taken_over = code.value == TAKEN_OVER
            why = "" if taken_over else f": {code}"  # a revoked device gets this code too
            self._end = Lost(f"the broker ended the connection{why}", taken_over=taken_over)
        elif code.value == 0:
            return  # `close`
        elif code.value == KEEP_ALIVE_TIMEOUT:
            self._end = Lost("the broker is silent")
        elif cause is not None and not isinstance(cause, ConnectionAbortedError):
            self._end = Lost(explain(cause) or f"the connection was lost: {cause}")
        else:  # a WebSocket that ends is an error to paho
            self._end = Lost("the broker closed the connection", hung_up=True)
        for answer in self._publishing.values():
            if not answer.done():
                answer.set_exception(self._end)
                answer.exception()  # retrieved, since nobody may wait
        # aiomqtt would wait for the CONNACK until its timeout.
        if not connected.done():
            connected.set_exception(aiomqtt.MqttError(self._end.reason))
            connected.exception()  # retrieved, since nobody may wait


async def _failure(address: Address, cause: BaseException, login: Login) -> NotConnected:
    if certain := explain(cause):
        return TlsFailed(f"{address}: {certain}")
    unclear = isinstance(cause, ssl.SSLError | ConnectionResetError | BrokenPipeError)
    if unclear and login.tls is not None:
        # In TLS 1.3 the broker refuses a device's certificate after the handshake, and closes the connection.
        # If the device was still writing, it has not read the reason.
        refused = await refusal(address, login.tls.context(), min(2.0, login.timeout))
        if refused is not None and (certain := explain(refused)):
            return TlsFailed(f"{address}: {certain}")
    if isinstance(cause, OSError) and cause.errno is not None and not unclear:
        return Lost(f"{address}: {os.strerror(cause.errno) if cause.errno > 0 else cause.strerror}")
    if not login.proven:
        found = await spoken(address, min(2.0, login.timeout))
        if found is not None and found is not address.protocol:
            text = f"{address.place} {advice(address, found)}"
            return TlsFailed(text) if found is Protocol.TLS or address.is_encrypted else Lost(text)
    if isinstance(cause, TimeoutError):
        return Lost(f"{address}: no answer within {login.timeout:g} s")
    return Lost(f"{address}: {cause}")


def _abandon(client: aiomqtt.Client, opening: "asyncio.Task[aiomqtt.Client]") -> None:
    if not opening.cancelled():
        opening.exception()  # retrieved, since nobody waits
    _hang_up(client)


def _hang_up(client: aiomqtt.Client) -> None:
    """Closes the socket, which aiomqtt leaves open if no CONNACK came in time."""
    client._client._sock_close()  # noqa: SLF001 - paho's `disconnect` sends, and closes later
