"""`imqtt device`: who may connect to the broker."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.data import DEFAULT, Data, DataDirectory, data_option
from imqtt.cli.names import parse_device, parse_user
from imqtt.cli.output import Json, complain, print_json, print_line, print_table, read_secret
from imqtt.cli.settings import server_config, server_flags
from imqtt.config import SETTINGS
from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.mosquitto.control import Access, ServerUnreachable

if TYPE_CHECKING:
    from imqtt.config import ServerConfig
    from imqtt.mosquitto.broker import Mosquitto
    from imqtt.mosquitto.passwords import Passwords

app = typer.Typer(
    help="Give devices credentials, and revoke them.\n\n"
    "Each device has a credential of its own: the MQTT username `USER@DEVICE` and a password. Changes are in"
    " effect on the running broker when the command returns.",
    no_args_is_help=True,
)

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="USER@DEVICE", help="For example `alice@phone`.", autocompletion=completion.devices
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--passwords",
        metavar="FILE",
        help="Mosquitto's password file, for a broker that `imqtt up` does not run. Replaces `--data`.",
    ),
]
PidFile = Annotated[
    Path, typer.Option("--pid-file", metavar="FILE", help="That broker's pid file: it is sent a SIGHUP.")
]
PID_FILE = Path("/run/mosquitto/mosquitto.pid")
BROKER_ACCOUNT = "mosquitto"  # `user` in deploy/mosquitto/mosquitto.conf
NOT_ASKED = [it.name for it in SETTINGS if it.name.split("_")[0] not in ("broker", "store", "mongo")]


@app.command()
def add(
    names: Names,
    *,
    data: Data = DEFAULT,
    password_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read the password from a file's first line (`-`: stdin) instead of drawing one. It is not"
            " printed.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give an existing device a new password, and disconnect it.")
    ] = False,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Save it in the data directory, where `imqtt chat` and the other commands find it."
        ),
    ] = False,
    as_json: Json = False,
    password_file: PasswordFile = None,
    pid_file: PidFile = PID_FILE,
) -> None:
    """Give devices a credential, and print the passwords. The broker keeps only their hashes.

    With `--passwords` and `--password-from`, you can also add the server's own account, `imqtt-server`.
    """
    from imqtt.mosquitto.passwords import SERVER_ACCOUNT

    # `imqtt up` looks after the server's own account by itself; another broker's operator adds it.
    own = [SERVER_ACCOUNT] if SERVER_ACCOUNT in names and password_file and password_from else []
    devices = {
        str(device): device for device in map(parse_device, (name for name in names if name not in own))
    }
    passwords, broker = _accounts(data, password_file, pid_file)
    taken = sorted(set(passwords.usernames()) & {*devices, *own})
    if taken and not replace:
        raise SetupError(f"{', '.join(taken)} has a credential already; --replace gives it a new one")
    if save and password_file is not None:
        raise SetupError("--save keeps credentials in a data directory; --passwords has none")
    given = passwords.add_all(
        [*devices, *own],
        None if password_from is None else _not_empty(read_secret(password_from)),
        end_sessions=None if broker is None else broker.end_sessions,
    )
    for name, device in devices.items():
        if save:
            DataDirectory(data).save(device, given[name])
    shown = {name: "" if password_from else password for name, password in given.items()}
    if as_json:
        for name, word in shown.items():
            print_json({"device": name, "password": word} if word else {"device": name})
        return
    print_table(("device", "password"), [(name, it or "as given") for name, it in shown.items()])
    if save:
        print_line(f"Saved in {DataDirectory(data).path}: `imqtt chat` and the other commands find it there.")


@app.command("list")
@server_flags(without=NOT_ASKED)
def list_(
    user: Annotated[
        str,
        typer.Argument(
            metavar="[USER]",
            help="Only this user's devices, in detail.",
            autocompletion=completion.peers,
        ),
    ] = "",
    *,
    data: Data = DEFAULT,
    as_json: Json = False,
    password_file: PasswordFile = None,
    **flags: str | None,
) -> None:
    """List the devices that may connect. For one user, also show platform, state and when each was last seen.

    These details come from the store and from the running server. With `--passwords`, give the settings of
    `imqtt serve`, which say where both are. "Last seen" is exact if the server knows it, otherwise
    accurate to a day.
    """
    from imqtt.mosquitto.passwords import SERVER_ACCOUNT

    passwords, broker = _accounts(data, password_file, PID_FILE)
    saved = {str(device) for device in DataDirectory(data).saved()} if password_file is None else set()
    names = [name for name in passwords.usernames() if name != SERVER_ACCOUNT]
    if user:
        _list_one(parse_user(user), names, saved, *_server(data, broker, flags), as_json=as_json)
    elif as_json:
        for name in names:
            print_json({"device": name, "saved": name in saved})
    elif names:
        print_table(("device", "credential saved here"), ((n, "yes" if n in saved else "") for n in names))
    else:
        where = "" if broker is None else data_option(data)
        print_line(f"No device has a credential yet: `imqtt device add alice@phone{where}` gives one.")


@app.command()
@server_flags(without=NOT_ASKED)
def revoke(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="USER[@DEVICE]",
            help="`alice@phone`, or `alice` for all devices of the user.",
            autocompletion=completion.devices,
        ),
    ],
    *,
    data: Data = DEFAULT,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", "-y", help="Do not ask for confirmation before revoking all devices of a user."
        ),
    ] = False,
    as_json: Json = False,
    password_file: PasswordFile = None,
    pid_file: PidFile = PID_FILE,
    **flags: str | None,
) -> None:
    """Revoke devices' credentials, end their connections and sessions, and have the server forget them.

    Nothing is published to them any more, and others see them go offline. Messages stay: with a new
    credential, a device continues where it was. With `--passwords`, give the settings of `imqtt serve`, which
    say how to reach the server.
    """
    from imqtt.mosquitto.passwords import Passwords

    passwords, broker = _accounts(data, password_file, pid_file)
    _, access = _server(data, broker, flags)
    devices = _named(names, passwords.usernames(), ask=not yes)
    not_told = ""
    if access is not None:
        try:
            access.end_sessions(devices)
        except ServerUnreachable as error:  # the credentials are taken away all the same
            access, not_told = None, str(error)
    if password_file is not None and access is not None:
        passwords = Passwords(password_file, pid_file, access.login)
    passwords.remove_all(devices, None if access is None else _suppressing(access.end_sessions))
    not_told = not_told or _forget_records(devices.values(), access, None if broker is None else data)
    if broker is not None:
        for device in devices.values():
            DataDirectory(data).forget(device)
    if as_json:
        for name in devices:
            print_json({"device": name, "revoked": True, "server_told": not not_told})
    else:
        print_line(f"{', '.join(devices)} can no longer connect.")
    if not_told:
        where = "" if broker is None else data_option(data)
        complain(
            f"the server was not told ({not_told}): it keeps their records, and others may see them online"
            f" for some minutes; `imqtt device forget {' '.join(devices)}{where}` tells it"
        )


@app.command()
def migrate(
    *,
    password_file: Annotated[
        Path,
        typer.Option(
            "--passwords", metavar="FILE",
            help="Mosquitto's password file, for a broker that `imqtt up` does not run.",
        ),
    ],
    as_json: Json = False,
) -> None:  # fmt: skip
    """Rename the devices in a password file of imqtt 0.1, from USER/DEVICE to USER@DEVICE.

    Passwords stay valid. Also install this version's `deploy/mosquitto/acl`, and restart Mosquitto: 2.0.11
    may crash if it only reloads a file from which accounts were removed. `imqtt up` migrates its data
    directory by itself.
    """
    from imqtt.mosquitto.passwords import Passwords

    if not password_file.exists():
        raise SetupError(f"{password_file} does not exist")
    renamed = Passwords(password_file, PID_FILE).migrate()
    if as_json:
        for name in renamed:
            print_json({"device": name})
    elif renamed:
        print_line(f"Renamed: {', '.join(renamed)}. Restart Mosquitto now.")
    else:
        print_line(f"{password_file} has no device of imqtt 0.1.")


@app.command()
@server_flags(without=NOT_ASKED)
def forget(names: Names, *, data: Data = DEFAULT, as_json: Json = False, **flags: str | None) -> None:
    """Have the server forget devices that were revoked by another program or on another machine.

    Needs the data directory of a running `imqtt up`, or the settings of `imqtt serve`. A device whose
    credential is still valid is registered again by its next command.
    """
    from imqtt.mosquitto.broker import Mosquitto

    devices = [str(device) for device in map(parse_device, names)]
    directory = DataDirectory(data)
    broker = Mosquitto(directory.path) if directory.exists() else None
    _, access = _server(data, broker, flags)
    if access is None:
        raise SetupError(
            f"no server can be told: {directory.path} has no broker that runs, and --config or"
            " --broker-password-file does not name the server's password"
        )
    try:
        access.end_sessions(devices)
        access.revoke(devices)
    except ServerUnreachable as error:
        raise SetupError(f"the server was not told: {error}") from error
    if as_json:
        for name in devices:
            print_json({"device": name, "server_told": True})
    else:
        print_line(f"The server forgets {', '.join(devices)}.")


def _named(names: Sequence[str], usernames: Sequence[str], *, ask: bool) -> dict[str, Device]:
    """The devices that are named, or whose user is. Raises `SetupError` for one without a credential."""
    devices: dict[str, Device] = {}
    for name in names:
        if "@" in name or "/" in name:
            found = [str(parse_device(name))]
            whole = False
        else:
            user, whole = parse_user(name), True
            found = [it for it in usernames if it.startswith(f"{user}@")]
        unknown = [it for it in found if it not in usernames] if found else [name]
        if unknown:
            raise SetupError(f"{', '.join(unknown)} has no credential; `imqtt device list` shows who has")
        if whole and ask and not _agrees(f"Revoke {', '.join(found)}?"):
            raise SetupError("nothing was revoked")
        devices |= {it: parse_device(it) for it in found}
    return devices


def _agrees(question: str) -> bool:
    """Whether the person says yes. The end of stdin is a no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise  # Ctrl-C
        typer.echo(err=True)
        return False


def _server(
    data: Path, broker: "Mosquitto | None", flags: dict[str, str | None]
) -> "tuple[ServerConfig, Access | None]":
    """The server's settings, and how to speak to it: that of `imqtt up`, or of `imqtt serve`."""
    if broker is None:
        config = server_config(flags)
        return config, Access.of(config)
    return server_config(flags, store=DataDirectory(data).store), broker.access()


def _suppressing(end_sessions: Callable[[Iterable[str]], None]) -> Callable[[Iterable[str]], None]:
    """`end_sessions` for a broker that may end meanwhile, and its sessions with it."""

    def end(usernames: Iterable[str]) -> None:
        with contextlib.suppress(ServerUnreachable):
            end_sessions(usernames)

    return end


def _forget_records(devices: Collection[Device], access: Access | None, data: Path | None) -> str:
    """Has the server forget devices, or removes their records where no broker runs on `data`.

    Returns why that is not possible; empty if it is done.
    """
    try:
        if access is not None:
            access.revoke([str(device) for device in devices])
        elif data is not None:
            _remove_records(devices, data)
        else:
            return "--config or --broker-password-file is needed for it"
    except ServerUnreachable as error:
        return str(error)
    return ""


def _remove_records(devices: Collection[Device], data: Path) -> None:
    """Removes records from the store of a data directory on which no server runs."""
    import asyncio

    from imqtt.cli.device_records import remove_records

    directory = DataDirectory(data)
    if (directory.path / "imqtt.db").exists():
        try:
            asyncio.run(remove_records(devices, directory.store))
        except SetupError as error:
            raise ServerUnreachable(error.reason) from error


def _list_one(
    user: str,
    names: Collection[str],
    saved: Collection[str],
    config: "ServerConfig",
    access: Access | None,
    *,
    as_json: bool,
) -> None:
    from imqtt.cli.device_records import read_records

    records, problems = read_records(user, names, saved, config, access)
    if as_json:
        for record in records:
            print_json(record)
    elif records:
        print_table(
            ("device", "may connect", "platform", "state", "last seen", "credential saved here"),
            (
                (
                    it.device, "yes" if it.credential else "no", it.platform, it.state or "not known",
                    it.seen, "yes" if it.saved else "",
                )
                for it in records
            ),
        )  # fmt: skip
    else:
        print_line(f"{user} has no device: `imqtt device add {user}@phone` gives one a credential.")
    for trouble in problems:
        complain(trouble)


def _accounts(data: Path, file: Path | None, pid_file: Path) -> tuple["Passwords", "Mosquitto | None"]:
    """The accounts that a command is about, and their broker if it is one of `imqtt up`."""
    from imqtt.mosquitto.broker import Mosquitto
    from imqtt.mosquitto.passwords import Passwords

    if file is not None:
        if not file.exists() and not file.parent.is_dir():
            raise SetupError(f"{file.parent} does not exist")
        passwords = Passwords(file, pid_file, account=BROKER_ACCOUNT)
        if outdated := passwords.outdated():
            some = ", ".join(sorted(outdated)[:3]) + (", …" if len(outdated) > 3 else "")
            complain(
                f"{file} has devices of imqtt 0.1, which can no longer talk ({some}): "
                f"`imqtt device migrate --passwords {file}` renames them"
            )
        return passwords, None
    directory = DataDirectory(data)
    directory.check_exists()
    broker = Mosquitto(directory.path)
    return broker.passwords, broker


def _not_empty(password: str) -> str:
    if not password:
        raise SetupError("the password is empty")
    return password
