"""Registering a batch's devices, as the pipeline does beside the commit."""

from collections.abc import Mapping

from imqtt.model import Device, Hello
from imqtt.protocol import Format
from imqtt.server.devices import Devices, Registered


async def register(devices: Devices, spoke: Mapping[Device, tuple[Format, Hello | None]]) -> Registered:
    registered = devices.match(spoke, await devices.of({device.user for device in spoke}))
    return await devices.write(registered) if registered.changed else registered
