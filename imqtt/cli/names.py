"""Parsing of users and devices on the command line.

`imqtt.protocol` is imported inside the functions: it loads protobuf, which would delay shell completion.
"""

from imqtt.errors import SetupError
from imqtt.model import Device


def parse_user(name: str) -> str:
    """A valid user name. Raises `SetupError`."""
    from imqtt.protocol.topics import is_name

    if not is_name(name):
        raise SetupError(f"{name!r} is not a user: letters, digits and . _ -")
    return name


def parse_device(name: str) -> Device:
    """The device of `user@device` or `user/device`. Raises `SetupError`."""
    from imqtt.protocol.topics import MAX_NAME, parse_username

    username = name if "@" in name else name.replace("/", "@", 1)
    device = parse_username(username)
    if device is None:
        if len(username) > MAX_NAME:
            raise SetupError(f"{name!r} has {len(name)} characters; USER@DEVICE has at most {MAX_NAME}")
        raise SetupError(f"{name!r} is not a device: write USER@DEVICE, each of letters, digits and . _ -")
    return device
