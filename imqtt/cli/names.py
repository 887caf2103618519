"""How people name devices at the command line."""

from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.protocol.topics import MAX_NAME, is_name, parse_username


def parse_user(name: str) -> str:
    """The user of that name. Raises `SetupError`."""
    if not is_name(name):
        raise SetupError(f"{name!r} is not a user: letters, digits and . _ -")
    return name


def parse_device(name: str) -> Device:
    """The device that a person calls `user@device`, or `user/device`. Raises `SetupError`."""
    username = name if "@" in name else name.replace("/", "@", 1)
    device = parse_username(username)
    if device is None:
        if len(username) > MAX_NAME:
            raise SetupError(f"{name!r} has {len(name)} characters; USER@DEVICE has at most {MAX_NAME}")
        raise SetupError(f"{name!r} is not a device: write USER@DEVICE, each of letters, digits and . _ -")
    return device
