"""The topics, and who may stand in them.

imqtt/{user}/{device}/up/{p}   device to server, partition p
imqtt/{user}/{device}/down     server to device
"""

import re

from imqtt.model import Device

MAX_NAME = 64  # characters of `user/device`: a certificate's CN holds no more

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def is_name(name: str) -> bool:
    """Whether `name` may be a user, device or group id."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def up(device: Device, partition: int) -> str:
    """Where a device publishes commands for a partition."""
    return f"imqtt/{device.user}/{device.device}/up/{partition}"


def down(device: Device) -> str:
    """Where a device receives frames."""
    return f"imqtt/{device.user}/{device.device}/down"


def all_up(partition: int) -> str:
    """The filter with which a partition's owner receives every device's commands."""
    return f"imqtt/+/+/up/{partition}"


def parse_up(topic: str) -> Device | None:
    """The device that published to `topic`, or None where its names are not ones that imqtt gives out."""
    levels = topic.split("/")
    if len(levels) != 5:
        return None
    device = Device(levels[1], levels[2])
    if not (is_name(device.user) and is_name(device.device)) or len(str(device)) > MAX_NAME:
        return None
    return device
