"""Publishes a device's commands, encoded, to the partition of their conversation."""

import time

from imqtt.client.transport import MqttConnection
from imqtt.core.partitions import partition_of, route
from imqtt.errors import NotConnected
from imqtt.model import AnyCommand, Device, Limits
from imqtt.protocol import Format, encode_command
from imqtt.protocol.topics import up


class Uplink:
    """Outlives connections. The values of the last `Welcome` hold until the next one."""

    def __init__(self, device: Device, format: Format) -> None:
        self.device = device
        self.partitions = 0  # 0: unknown
        self.limits: Limits | None = None
        self.nonce = ""
        self.spoke_at = 0.0  # when the device last published, on `time.monotonic`
        self._format = format
        self.mqtt: MqttConnection | None = None

    @property
    def is_receiving(self) -> bool:
        """Whether part of a packet has arrived; it may hold an awaited answer."""
        return self.mqtt is not None and self.mqtt.is_receiving

    def drop(self) -> None:
        """Ends the connection without DISCONNECT, so that the broker publishes the will."""
        if self.mqtt is not None:
            self.mqtt.drop()

    def topic(self, command: AnyCommand, *, anywhere: bool = False) -> str:
        """The topic to publish the command to. `anywhere`: that of partition 0, which forwards it."""
        if anywhere or not self.partitions:
            return up(self.device, 0)
        return up(self.device, partition_of(route(command, self.device.user), self.partitions))

    def encode(self, command: AnyCommand) -> bytes:
        return encode_command(command, self._format)

    async def publish(self, command: AnyCommand, *, anywhere: bool = False) -> None:
        """Returns at the broker's PUBACK. Raises `NotConnected`, or `Untaken` if there is no subscriber."""
        if self.mqtt is None:
            raise NotConnected("there is no connection to a broker")
        at = time.monotonic()
        await self.mqtt.publish(self.topic(command, anywhere=anywhere), self.encode(command))
        self.spoke_at = at
