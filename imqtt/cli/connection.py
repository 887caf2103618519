"""The options of the commands that act as a device, and the connection that they describe."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.addresses import host_port
from imqtt.cli import completion
from imqtt.cli.data import DEFAULT, Data, DataDirectory, data_option
from imqtt.cli.names import parse_device
from imqtt.errors import SetupError
from imqtt.model import Device

if TYPE_CHECKING:
    import ssl

option = partial(typer.Option, show_default=False, rich_help_panel="Connection")

User = Annotated[
    str,
    option(
        "--user", "-u", envvar="IMQTT_USER", autocompletion=completion.own_users,
        help="Your user name. Not needed if only one user's credential is saved.",
    ),
]  # fmt: skip
DeviceName = Annotated[
    str,
    option(
        "--device", "-d", envvar="IMQTT_DEVICE", autocompletion=completion.own_devices,
        help="Your device. No other process may be connected as it. Not needed if only one credential of the"
        " user is saved.",
    ),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The options of a command that connects."""

    user: User = ""
    device: DeviceName = ""
    password: Annotated[
        str,
        option(
            "--password", envvar="IMQTT_PASSWORD",
            help="The device's password. Other users of this machine can see command lines: use the variable,"
            " or `imqtt device add --save`.",
        ),
    ] = field(default="", repr=False)  # fmt: skip
    brokers: Annotated[
        list[str] | None,
        option(
            "--broker", "-b", envvar="IMQTT_BROKER", metavar="HOST:PORT",
            help="The broker's address. If there are several, they are tried in turn. mqtts://HOST:PORT uses"
            " TLS; ws:// and wss:// use WebSockets. Default: the broker of the data directory.",
        ),
    ] = None  # fmt: skip
    ca: Annotated[
        Path | None,
        option(
            "--ca", envvar="IMQTT_CA", metavar="FILE",
            help="PEM file with the authorities that sign the broker's certificate. Requires TLS. Default:"
            " the system's authorities.",
        ),
    ] = None  # fmt: skip
    cert: Annotated[
        Path | None,
        option(
            "--cert", envvar="IMQTT_CERT", metavar="FILE",
            help="PEM file with this device's certificate, if the broker asks for one. Requires TLS.",
        ),
    ] = None  # fmt: skip
    key: Annotated[
        Path | None,
        option(
            "--key", envvar="IMQTT_KEY", metavar="FILE",
            help="PEM file with the certificate's key. Not needed if it is in the certificate's file.",
        ),
    ] = None  # fmt: skip
    device_store: Annotated[
        Path | None,
        option(
            "--device-store", metavar="FILE",
            help="File for this device's messages, outbox and cursors. Default: a file in the data directory"
            " if the password is read from there. With `--password` (or its variable) or `--cert` there is no"
            " default: everything is kept in memory and lost when the command ends.",
        ),
    ] = None  # fmt: skip
    data: Data = DEFAULT


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The options of a command that reads a device's store and does not connect."""

    user: User = ""
    device: DeviceName = ""
    device_store: Annotated[
        Path | None,
        option(
            "--device-store", metavar="FILE",
            help="File for this device's messages, outbox and cursors. Default: the one in the data"
            " directory.",
        ),
    ] = None  # fmt: skip
    data: Data = DEFAULT


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """The arguments of a client. `users` have a device on this broker; None if that is unknown."""

    device: Device
    password: str = field(repr=False)
    brokers: list[str]
    store: Path | None
    data: Path
    users: set[str] | None
    tls: "Callable[[], ssl.SSLContext] | None"  # called for each connection, so that new files are read


def resolve(options: ConnectionOptions) -> DeviceAccess:
    """Completes the options from the data directory. Raises `SetupError` if something is still missing."""
    directory = DataDirectory(options.data)
    password, store = options.password, options.device_store
    is_identified = bool(password or options.cert)
    device = _device(directory, options, is_identified=is_identified)
    uses_tls = any((options.ca, options.cert, options.key))
    if uses_tls and not options.brokers:
        raise SetupError(
            "--ca, --cert and --key (IMQTT_CA, IMQTT_CERT, IMQTT_KEY) ask for TLS: name a broker with"
            " --broker. The broker of `imqtt up` has no TLS listener"
        )
    if not is_identified:
        saved = directory.password(device)
        if saved is None:
            raise SetupError(
                f"no password for {device}: set IMQTT_PASSWORD,"
                f" or `imqtt device add {device} --save{data_option(options.data)}`,"
                f" or give --cert if the broker asks for a certificate (looked in {directory.path})"
            )
        password = saved
        store = store or directory.device_store(device)
    own = _broker(directory)
    if not options.brokers and own is None:
        raise SetupError(f"--broker is needed: {directory.path} is not a data directory of `imqtt up`")
    # IMQTT_BROKER as printed by `imqtt up` names the directory's own broker, too.
    users = directory.users(device) if options.brokers in (None, [], [own]) else None
    brokers = options.brokers or [str(own)]
    tls = None
    if uses_tls:
        from imqtt.tls_files import files_context

        tls = partial(files_context, options.ca, options.cert, options.key)
    return DeviceAccess(device, password, brokers, store, options.data, users, tls)


def resolve_store(options: StoreOptions) -> tuple[Device, Path]:
    """The device and the file of its store. Raises `SetupError` if one is missing."""
    directory = DataDirectory(options.data)
    device = _device(directory, options, is_identified=False)
    store = options.device_store
    if store is None and directory.password(device) is None:
        raise SetupError(f"no store of {device} in {directory.path}: --device-store FILE names another")
    return device, store or directory.device_store(device)


def _device(
    directory: DataDirectory, options: ConnectionOptions | StoreOptions, *, is_identified: bool
) -> Device:
    user, device = options.user, options.device
    if not device and ("@" in user or "/" in user):
        return parse_device(user)
    if user and device:
        return Device(user, device)
    saved = [one for one in directory.saved() if user in ("", one.user) and device in ("", one.device)]
    if len(saved) == 1 and not is_identified:
        return saved[0]
    if saved and not is_identified:
        raise SetupError(
            f"which device are you? Choose with --user and --device: {', '.join(map(str, saved))}"
        )
    missing = "--device" if user else "--user"
    of_whom = f" of {user}" if user else f" of a device {device}" if device else ""
    name = f"{user or 'USER'}@{device or 'NAME'}"
    raise SetupError(
        f"{missing} is needed: no credential{of_whom} is saved in {directory.path}"
        f" (`imqtt device add {name} --save{data_option(directory.path)}` saves one)"
    )


def _broker(directory: DataDirectory) -> str | None:
    """The address of the broker of `imqtt up`; None if the directory has none."""
    try:
        known = json.loads(directory.broker.listeners.read_text())
        return host_port(reachable(known["host"]), known["port"])
    except (OSError, ValueError, KeyError):
        return None


def reachable(host: str) -> str:
    """The address at which a program on this machine reaches a broker that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing listens here
