"""`imqtt device`: the devices that may connect to the broker."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.data import DEFAULT, Data, DataDirectory
from imqtt.cli.names import parse_device, parse_user
from imqtt.cli.output import Json, complain, print_json, print_line, print_table, read_secret
from imqtt.cli.settings import server_flags
from imqtt.config import SETTINGS
from imqtt.errors import SetupError
from imqtt.model import Device

if TYPE_CHECKING:
    from imqtt.cli.device_records import DeviceRecord

app = typer.Typer(
    help="Give devices credentials, and revoke them.\n\n"
    "Each device has its own credential: the MQTT username `USER@DEVICE` and a password. Changes are in"
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
NOT_ASKED = [one.name for one in SETTINGS if one.name.split("_")[0] not in ("broker", "store", "mongo")]


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
    from imqtt.cli.deployment import Deployment
    from imqtt.mosquitto.passwords import SERVER_ACCOUNT

    # `imqtt up` adds the server's own account itself; the operator of another broker has to.
    own = [SERVER_ACCOUNT] if SERVER_ACCOUNT in names and password_file and password_from else []
    devices = {
        str(device): device for device in map(parse_device, (name for name in names if name not in own))
    }
    deployment = Deployment(data, password_file, pid_file)
    taken = sorted(set(deployment.passwords.usernames()) & {*devices, *own})
    if taken and not replace:
        raise SetupError(f"{', '.join(taken)} has a credential already; --replace gives it a new one")
    if save and password_file is not None:
        raise SetupError("--save keeps credentials in a data directory; --passwords has none")
    password = None if password_from is None else read_secret(password_from)
    if password == "":
        raise SetupError("the password is empty")
    end_sessions = None if deployment.broker is None else deployment.broker.end_sessions
    given = deployment.passwords.add_all([*devices, *own], password, end_sessions)
    for name, device in devices.items():
        if save:
            deployment.directory.save(device, given[name])
    shown = {name: "" if password_from else password for name, password in given.items()}
    if as_json:
        for name, word in shown.items():
            print_json({"device": name, "password": word} if word else {"device": name})
        return
    print_table(("device", "password"), [(name, word or "as given") for name, word in shown.items()])
    if save:
        print_line(
            f"Saved in {deployment.directory.path}: `imqtt chat` and the other commands find it there."
        )


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
    from imqtt.cli.deployment import Deployment, server_of
    from imqtt.cli.device_records import read_records
    from imqtt.mosquitto.passwords import SERVER_ACCOUNT

    deployment = Deployment(data, password_file, PID_FILE)
    directory, broker = deployment.directory, deployment.broker
    saved = set() if broker is None else {str(device) for device in directory.saved()}
    names = [name for name in deployment.passwords.usernames() if name != SERVER_ACCOUNT]
    if user:
        records, problems = read_records(parse_user(user), names, saved, *server_of(directory, broker, flags))
        _print_records(user, records, problems, as_json=as_json)
    elif as_json:
        for name in names:
            print_json({"device": name, "saved": name in saved})
    elif names:
        print_table(("device", "credential saved here"), ((n, "yes" if n in saved else "") for n in names))
    else:
        suggestion = f"`imqtt device add alice@phone{deployment.option}` gives one"
        print_line(f"No device has a credential yet: {suggestion}.")


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
    from imqtt.cli.deployment import Deployment, server_of

    deployment = Deployment(data, password_file, pid_file)
    _, access = server_of(deployment.directory, deployment.broker, flags)
    devices = _named(names, deployment.passwords.usernames(), ask=not yes)
    trouble = deployment.revoke(devices, access)
    if as_json:
        for name in devices:
            print_json({"device": name, "revoked": True, "server_told": not trouble})
    else:
        print_line(f"{', '.join(devices)} can no longer connect.")
    if trouble:
        complain(
            f"the server was not told ({trouble}): it keeps their records, and others may see them online"
            f" for some minutes; `imqtt device forget {' '.join(devices)}{deployment.option}` tells it"
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
    from imqtt.cli.deployment import server_of
    from imqtt.mosquitto.broker import Mosquitto
    from imqtt.mosquitto.control import ServerUnreachable

    devices = [str(device) for device in map(parse_device, names)]
    directory = DataDirectory(data)
    broker = Mosquitto(directory.path) if directory.exists() else None
    _, access = server_of(directory, broker, flags)
    if access is None:
        raise SetupError(
            f"the server cannot be reached: no broker runs on {directory.path}, and neither --config nor"
            " --broker-password-file gives the server's password"
        )
    try:
        access.end_sessions(devices)
        access.revoke(devices)
    except ServerUnreachable as error:
        raise SetupError(f"the server was not told: {error.reason}") from error
    if as_json:
        for name in devices:
            print_json({"device": name, "server_told": True})
    else:
        print_line(f"The server forgets {', '.join(devices)}.")


def _named(names: Sequence[str], usernames: Sequence[str], *, ask: bool) -> dict[str, Device]:
    """The named devices, and all devices of the named users. Raises `SetupError` without a credential."""
    devices: dict[str, Device] = {}
    for name in names:
        if "@" in name or "/" in name:
            found = [str(parse_device(name))]
            whole = False
        else:
            user, whole = parse_user(name), True
            found = [username for username in usernames if username.startswith(f"{user}@")]
        unknown = [username for username in found if username not in usernames] if found else [name]
        if unknown:
            raise SetupError(f"{', '.join(unknown)} has no credential; `imqtt device list` shows all devices")
        if whole and ask and not _agrees(f"Revoke {', '.join(found)}?"):
            raise SetupError("nothing was revoked")
        devices |= {username: parse_device(username) for username in found}
    return devices


def _agrees(question: str) -> bool:
    """Asks the person. The end of stdin counts as no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise  # Ctrl-C
        typer.echo(err=True)
        return False


def _print_records(
    user: str, records: Sequence["DeviceRecord"], problems: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        for record in records:
            print_json(record)
    elif records:
        print_table(
            ("device", "may connect", "platform", "state", "last seen", "credential saved here"),
            (
                (
                    record.device, "yes" if record.credential else "no", record.platform,
                    record.state or "not known", record.seen, "yes" if record.saved else "",
                )
                for record in records
            ),
        )  # fmt: skip
    else:
        print_line(f"{user} has no device: `imqtt device add {user}@phone` gives one a credential.")
    for trouble in problems:
        complain(trouble)
