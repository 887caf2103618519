"""Keeps a device connected while the client is open, trying one broker after the other."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import random
from uuid import uuid4

from imqtt.client.connection_tasks import ConnectionTasks
from imqtt.client.probe import answers
from imqtt.client.requests import Requests
from imqtt.client.settings import Address, ClientSettings
from imqtt.client.transport import Login, LoginRefused, Lost, Transport
from imqtt.client.uplink import Uplink
from imqtt.client.values import ConnectionState
from imqtt.core.connection import UNCONTESTED, Connection, Phase
from imqtt.errors import CredentialsRefused, DeviceStoreError, ImqttError, NotConnected, TakenOver
from imqtt.model import Status

log = logging.getLogger(__name__)

ONE_PROCESS = "each process needs a device of its own (`imqtt device add`)"


@dataclass(eq=False)
class Connector:
    """Drives the connection's state machine. `changed` is called with every state."""

    settings: ClientSettings
    uplink: Uplink
    connection: ConnectionTasks
    requests: Requests
    transport: Transport
    changed: Callable[[ConnectionState], None]

    def __post_init__(self) -> None:
        self.state = ConnectionState()
        self.tried = asyncio.Event()  # one address accepted the device, or all failed
        self._is_open = False  # a broker is connected
        self.requests.silence_changed = self._show_silence
        self._stopping = False
        self._proven: set[Address] = set()  # addresses that have accepted the device
        self._error: ImqttError | None = None  # the end of the last attempt or connection
        self._suspicion: TakenOver | None = None  # why the last connection ended, if the next one is accepted
        timing = self.settings.timing
        self._machine = Connection(
            len(self.settings.addresses), random, base=timing.retry, cap=timing.retry_most
        )

    async def run(self) -> None:
        """Runs until cancelled. Raises `CredentialsRefused` or `DeviceStoreError`."""
        while not self._stopping:
            number, wait = self._machine.next(time.monotonic())
            address = self.settings.addresses[number]
            self._show(address, wait)
            await asyncio.sleep(wait)
            self._machine.connecting()
            self._show(address)
            try:
                await self._connect(address)
            except DeviceStoreError:
                raise
            except LoginRefused as refusal:
                self._suspicion = None
                self._error = NotConnected(f"refused: {refusal}")
                if self._machine.refused(time.monotonic()):
                    raise CredentialsRefused(
                        f"no broker accepts the password of {self.settings.name}: {refusal}"
                    ) from None
            except ImqttError as error:
                self._error = error
                if self._machine.phase is Phase.ESTABLISHED:
                    self._machine.lost(time.monotonic())
                else:
                    self._machine.failed(time.monotonic())
                if isinstance(error, Lost):
                    await self._look_for_another(address, error)
            log.info("no connection to %s: %s", address, self._error)
            if self._machine.tries >= len(self.settings.addresses):
                self.tried.set()
        # The cancellation met the loss of a connection, and Python 3.11's TaskGroup raised only the loss.
        raise asyncio.CancelledError

    def stop(self) -> None:
        """Lets no connection follow the present one. Call it before cancelling `run`."""
        self._stopping = True

    def close(self, reason: str) -> None:
        """Shows that the client has ended."""
        self._machine.close()
        self._error = NotConnected(reason) if reason else None
        self._show(None)
        self.tried.set()

    async def _connect(self, address: Address) -> None:
        """One connection, from opening it until it is lost."""
        nonce = uuid4().hex
        will = Status("offline", nonce)
        login = Login(
            name=self.settings.name,
            password=self.settings.password,
            will_topic=self.uplink.topic(will),
            will=self.uplink.encode(will),
            keep_alive=self.settings.timing.keep_alive,
            timeout=self.settings.timing.connect,
            tls=self.settings.tls,
            proven=address in self._proven,
        )
        mqtt = await self.transport(address, login)
        self._is_open = True
        if self._suspicion is not None:
            self._error, self._suspicion = self._suspicion, None
            self._show(address)
        self._show_silence()
        self._proven.add(address)
        settled: asyncio.TimerHandle | None = None

        def settle() -> None:  # the connection has lasted: the contest is over
            self._error = None
            self._show(address)

        def established() -> None:
            nonlocal settled
            self._machine.established(time.monotonic())
            if not self._machine.is_contested(time.monotonic()):
                self._error = None
            elif settled is None:
                settled = asyncio.get_running_loop().call_later(UNCONTESTED, settle)
            self._show(address)
            self.tried.set()

        try:
            await self.connection.run(mqtt, nonce, established)
        except asyncio.CancelledError:
            await mqtt.close()
            raise
        finally:
            if settled is not None:
                settled.cancel()
            self._is_open = False
            mqtt.drop()

    async def _look_for_another(self, address: Address, lost: Lost) -> None:
        """Finds out whether another process connects as this device, and reports it.

        The broker's reason code is not enough: Mosquitto 2.1 sends the same code to a revoked device, which
        it does not accept again.
        """
        name = self.settings.name
        # Mosquitto 2.0 closes the socket without a reason. A broker that ends does too, but does not answer.
        within = self.settings.timing.connect
        if not lost.taken_over and not (lost.hung_up and await answers(address, within)):
            return
        self._machine.taken_over(time.monotonic())
        if lost.taken_over:
            taken_over = TakenOver(f"another process is connected as {name}: {ONE_PROCESS}")
            if self._machine.is_contested(time.monotonic()):
                self._error = taken_over
            else:
                self._suspicion = taken_over
        elif self._machine.is_contested(time.monotonic()):
            self._error = TakenOver(
                f"another process is probably connected as {name}, since the broker keeps closing this one's"
                f" connections without a reason: {ONE_PROCESS}"
            )

    def _show(self, address: Address | None, retry_in: float = 0.0) -> None:
        machine, error = self._machine, self._error
        silent = self._is_open and self.requests.is_silent
        self.state = ConnectionState(
            machine.phase, str(address or ""), machine.tries, retry_in, str(error or ""), silent, error
        )
        self.changed(self.state)

    def _show_silence(self) -> None:
        silent = self._is_open and self.requests.is_silent
        if silent != self.state.silent:
            self.state = replace(self.state, silent=silent)
            self.changed(self.state)
