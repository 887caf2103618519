"""Keeps a device connected: one broker after the other, for as long as the client is open."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from random import random
from uuid import uuid4

from imqtt.client.mqtt import Login, Mqtt, Refused
from imqtt.client.requests import Requests
from imqtt.client.session import Session
from imqtt.client.settings import Address, Settings
from imqtt.client.uplink import Uplink
from imqtt.client.values import ConnectionState
from imqtt.core.connection import Connection, Phase
from imqtt.core.partitions import home_of
from imqtt.errors import CredentialsRefused, DeviceStoreError, ImqttError
from imqtt.model import Status

log = logging.getLogger(__name__)


class Connector:
    """Drives the connection's state machine. `changed` is told every state."""

    def __init__(
        self,
        settings: Settings,
        uplink: Uplink,
        session: Session,
        requests: Requests,
        changed: Callable[[ConnectionState], None],
    ) -> None:
        self.state = ConnectionState()
        self.tried = asyncio.Event()  # one address let the device in, or none did
        self._settings = settings
        self._uplink = uplink
        self._session = session
        self._requests = requests
        self._changed = changed
        self._is_open = False  # a broker is connected
        requests.silence_changed = self._show_silence
        self._stopping = False
        timing = settings.timing
        self._machine = Connection(len(settings.addresses), random, base=timing.retry, cap=timing.retry_most)

    async def run(self) -> None:
        """Until cancelled. Raises `CredentialsRefused`, or `DeviceStoreError`."""
        reason = ""
        while not self._stopping:
            number, wait = self._machine.next(time.monotonic())
            address = self._settings.addresses[number]
            self._show(address, reason, wait)
            await asyncio.sleep(wait)
            self._machine.connecting()
            self._show(address, reason)
            try:
                await self._connect(address)
            except DeviceStoreError:
                raise
            except Refused as refusal:
                reason = f"refused: {refusal}"
                if self._machine.refused(time.monotonic()):
                    raise CredentialsRefused(
                        f"no broker takes the password of {self._settings.name}: {refusal}"
                    ) from None
            except ImqttError as error:
                reason = str(error)
                if self._machine.phase is Phase.ESTABLISHED:
                    self._machine.lost(time.monotonic())
                else:
                    self._machine.failed(time.monotonic())
            log.info("no connection to %s: %s", address, reason)
            if self._machine.tries >= len(self._settings.addresses):
                self.tried.set()
        # The cancellation met the loss of a connection, and Python 3.11's TaskGroup told of the loss alone.
        raise asyncio.CancelledError

    def stop(self) -> None:
        """No connection follows the present one. To be called before `run` is cancelled."""
        self._stopping = True

    def close(self, reason: str) -> None:
        """The end, for whatever reason."""
        self._machine.close()
        self._show(None, reason)
        self.tried.set()

    async def _connect(self, address: Address) -> None:
        """One connection, from its first byte until it is lost."""
        nonce = uuid4().hex
        login = Login(
            name=self._settings.name,
            password=self._settings.password,
            will_topic=self._uplink.topic(home_of(self._settings.device.user)),
            will=self._uplink.encode(Status("offline", nonce)),
            keep_alive=self._settings.timing.keep_alive,
            timeout=self._settings.timing.connect,
            tls=self._settings.tls,
        )
        mqtt = await Mqtt.open(address, login)
        self._is_open = True
        self._show_silence()

        def established() -> None:
            self._machine.established(time.monotonic())
            self._show(address, "")
            self.tried.set()

        try:
            await self._session.run(mqtt, nonce, established)
        except asyncio.CancelledError:
            await mqtt.close()
            raise
        finally:
            self._is_open = False
            mqtt.drop()

    def _show(self, address: Address | None, reason: str, retry_in: float = 0.0) -> None:
        silent = self._is_open and self._requests.is_silent
        self.state = ConnectionState(
            self._machine.phase, str(address or ""), self._machine.tries, retry_in, reason, silent
        )
        self._changed(self.state)

    def _show_silence(self) -> None:
        silent = self._is_open and self._requests.is_silent
        if silent != self.state.silent:
            self.state = replace(self.state, silent=silent)
            self._changed(self.state)
