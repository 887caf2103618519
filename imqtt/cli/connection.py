"""Who speaks, and where: the options that `send`, `tail`, `history` and `chat` have in common."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.addresses import host_port
from imqtt.cli import completion
from imqtt.cli.data import DataDirectory, data_option
from imqtt.cli.names import parse_device
from imqtt.errors import SetupError
from imqtt.model import Device

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

PANEL = "Connection"

User = Annotated[
    str,
    typer.Option(
        "--user", "-u", envvar="IMQTT_USER",
        help="Your user name. Not needed if only one user's credential is saved.",
        autocompletion=completion.own_users, show_default=False, rich_help_panel=PANEL,
    ),
]  # fmt: skip
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", "-d", envvar="IMQTT_DEVICE", show_default=False, rich_help_panel=PANEL,
        autocompletion=completion.own_devices,
        help="Your device. No other process may be connected as it. Not needed if only one credential of the"
        " user is saved.",
    ),
]  # fmt: skip
Password = Annotated[
    str,
    typer.Option(
        "--password", envvar="IMQTT_PASSWORD", show_default=False, rich_help_panel=PANEL,
        help="The device's password. Other users of this machine can see command lines: use the variable, or"
        " `imqtt device add --save`.",
    ),
]  # fmt: skip
Brokers = Annotated[
    list[str] | None,
    typer.Option(
        "--broker", "-b", envvar="IMQTT_BROKER", metavar="HOST:PORT", show_default=False,
        rich_help_panel=PANEL,
        help="The broker's address. If there are several, they are tried in turn. mqtts://HOST:PORT uses TLS;"
        " ws:// and wss:// use WebSockets. Default: the broker of the data directory.",
    ),
]  # fmt: skip
Authorities = Annotated[
    Path | None,
    typer.Option(
        "--ca", envvar="IMQTT_CA", metavar="FILE", show_default=False, rich_help_panel=PANEL,
        help="PEM file with the authorities that sign the broker's certificate. Requires TLS. Default: the"
        " system's authorities.",
    ),
]  # fmt: skip
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--cert", envvar="IMQTT_CERT", metavar="FILE", show_default=False, rich_help_panel=PANEL,
        help="PEM file with this device's certificate, if the broker asks for one. Requires TLS.",
    ),
]  # fmt: skip
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", envvar="IMQTT_KEY", metavar="FILE", show_default=False, rich_help_panel=PANEL,
        help="PEM file with the certificate's key. Not needed if it is in the certificate's file.",
    ),
]  # fmt: skip
DeviceStore = Annotated[
    Path | None,
    typer.Option(
        "--device-store", metavar="FILE", show_default=False, rich_help_panel=PANEL,
        help="File for this device's messages, outbox and cursors. Default: a file in the data directory if"
        " the password is read from there. With `--password` (or its variable) or `--cert` there is no"
        " default: everything is kept in memory and lost when the command ends.",
    ),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a client needs."""

    device: Device
    password: str = field(repr=False)
    brokers: list[str]
    store: Path | None
    data: Path
    users: set[str] | None = None  # who has a device on this broker; None: not known
    tls: "Callable[[], ssl.SSLContext] | None" = None  # made for each connection, so that new files are read


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What `--ca`, `--cert` and `--key` name."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __bool__(self) -> bool:
        return any((self.ca, self.certificate, self.key))

    def context(self) -> "ssl.SSLContext":
        """Raises `SetupError`."""
        from imqtt.client.tls import files_context

        return files_context(self.ca, self.certificate, self.key)


def resolve(
    *,
    data: Path,
    user: str,
    device: str,
    password: str,
    brokers: list[str] | None,
    store: Path | None,
    tls: TlsFiles = TlsFiles(),
) -> Connection:
    """Fills in from the data directory what was not given. Raises `SetupError` for what cannot be known."""
    directory = DataDirectory(data)
    has_certificate = tls.certificate is not None
    who = _who(directory, user, device, is_identified=bool(password) or has_certificate)
    if tls and not brokers:
        raise SetupError(
            "--ca, --cert and --key (IMQTT_CA, IMQTT_CERT, IMQTT_KEY) ask for TLS: say with --broker where."
            " The broker of `imqtt up` has no TLS listener"
        )
    if not password and not has_certificate:
        saved = directory.password(who)
        if saved is None:
            raise SetupError(
                f"no password for {who}: set IMQTT_PASSWORD,"
                f" or `imqtt device add {who} --save{data_option(data)}`,"
                f" or give --cert where the broker asks for a certificate (looked in {directory.path})"
            )
        password = saved
        store = store or directory.device_store(who)
    own = _broker(directory)
    if not brokers and own is None:
        raise SetupError(f"--broker is needed: {directory.path} is no data directory of `imqtt up`")
    # IMQTT_BROKER names the directory's own broker too, if it is set as `imqtt up` prints it.
    users = directory.users(who) if brokers in (None, [], [own]) else None
    return Connection(who, password, brokers or [str(own)], store, data, users, tls.context if tls else None)


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """A device and its store on this machine, for what needs no connection."""

    device: Device
    store: Path
    data: Path


def resolve_store(data: Path, user: str, device: str, store: Path | None) -> LocalDevice:
    """Fills in from the data directory what was not given. Raises `SetupError`."""
    directory = DataDirectory(data)
    who = _who(directory, user, device, is_identified=False)
    if store is None and directory.password(who) is None:
        raise SetupError(f"no store of {who} in {directory.path}: --device-store FILE names another")
    return LocalDevice(who, store or directory.device_store(who), data)


def _who(directory: DataDirectory, user: str, device: str, *, is_identified: bool) -> Device:
    if not device and ("@" in user or "/" in user):
        return parse_device(user)
    if user and device:
        return Device(user, device)
    saved = [it for it in directory.saved() if user in ("", it.user) and device in ("", it.device)]
    if len(saved) == 1 and not is_identified:
        return saved[0]
    if saved and not is_identified:
        raise SetupError(f"which one are you? --user and --device choose from {', '.join(map(str, saved))}")
    missing = "--device" if user else "--user"
    of_whom = f" of {user}" if user else f" of a device {device}" if device else ""
    name = f"{user or 'USER'}@{device or 'NAME'}"
    raise SetupError(
        f"{missing} is needed: no credential{of_whom} is saved in {directory.path}"
        f" (`imqtt device add {name} --save{data_option(directory.path)}` saves one)"
    )


def _broker(directory: DataDirectory) -> str | None:
    """Where the broker of `imqtt up` listens; None if this is no data directory of it."""
    try:
        known = json.loads(directory.broker.listeners.read_text())
        return host_port(reachable(known["host"]), known["port"])
    except (OSError, ValueError, KeyError):
        return None


def reachable(host: str) -> str:
    """Where a program on this machine connects to a broker that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing listens here
