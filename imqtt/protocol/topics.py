"""The topics, and the names in them.

imqtt/{user}@{device}/up/{p}   device to server, partition p
imqtt/{user}@{device}/down     server to device

`{user}@{device}` is the device's MQTT username. It takes a single topic level, since not every broker lets
`%u` in an access rule span several: Mosquitto 2.1 does not.
"""

import re

from imqtt.model import Device

MAX_NAME = 64  # characters of `user@device`: a certificate's CN holds no more

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_USERNAME = re.compile(r"([A-Za-z0-9._-]+)@([A-Za-z0-9._-]+)")


def is_name(name: str) -> bool:
    """Whether `name` may be a user, device or group id."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def parse_username(username: str) -> Device | None:
    """The device whose MQTT username is `username`, or None if it is not of the form `user@device`."""
    match = _USERNAME.fullmatch(username) if len(username) <= MAX_NAME else None
    return Device(*match.groups()) if match else None


def up(device: Device, partition: int) -> str:
    return f"imqtt/{device}/up/{partition}"


def down(device: Device) -> str:
    return f"imqtt/{device}/down"


def all_up(partition: int) -> str:
    """The filter with which a partition's owner receives every device's commands."""
    return f"imqtt/+/up/{partition}"


def parse_up(topic: str) -> Device | None:
    """The device that published to `topic`, or None if the topic names no valid device."""
    levels = topic.split("/")
    return parse_username(levels[1]) if len(levels) == 4 else None
