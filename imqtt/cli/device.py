"""`imqtt device`: who may connect to the broker."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.data import DEFAULT, Data, DataDirectory
from imqtt.cli.names import parse_device
from imqtt.cli.output import Json, complain, print_json, print_line, print_table, read_secret
from imqtt.errors import SetupError

if TYPE_CHECKING:
    from imqtt.cli.mosquitto import Mosquitto
    from imqtt.cli.passwords import Passwords

app = typer.Typer(
    help="Give devices their credentials, and take them away.\n\n"
    "Each device has one of its own: MQTT username `USER@DEVICE`, and a password. A change holds on the"
    " running broker when the command returns.",
    no_args_is_help=True,
)

Names = Annotated[
    list[str],
    typer.Argument(metavar="USER@DEVICE", help="Such as `alice@phone`.", autocompletion=completion.devices),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--passwords",
        metavar="FILE",
        help="Mosquitto's password file, for a broker that `imqtt up` does not run; instead of `--data`.",
    ),
]
PidFile = Annotated[
    Path, typer.Option("--pid-file", metavar="FILE", help="That broker's pid file; it gets a SIGHUP.")
]
PID_FILE = Path("/run/mosquitto/mosquitto.pid")
BROKER_ACCOUNT = "mosquitto"  # `user` in deploy/mosquitto/mosquitto.conf


@app.command()
def add(
    names: Names,
    *,
    data: Data = DEFAULT,
    password_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Take the password from a file's first line (`-`: stdin), not a random one; not shown.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a device that exists a new password; it is disconnected.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Keep it in the data directory, for `imqtt chat` and the like.")
    ] = False,
    as_json: Json = False,
    password_file: PasswordFile = None,
    pid_file: PidFile = PID_FILE,
) -> None:
    """Give devices a credential. Prints each random password once: the broker keeps only a hash.

    With `--passwords` and `--password-from`, the server's own account can be added too: `imqtt-server`.
    """
    from imqtt.cli.passwords import SERVER_ACCOUNT

    # `imqtt up` looks after the server's own account by itself; another broker's operator adds it.
    own = [SERVER_ACCOUNT] if SERVER_ACCOUNT in names and password_file and password_from else []
    devices = {
        str(device): device for device in map(parse_device, (name for name in names if name not in own))
    }
    passwords, _ = _accounts(data, password_file, pid_file)
    taken = sorted(set(passwords.usernames()) & {*devices, *own})
    if taken and not replace:
        raise SetupError(f"{', '.join(taken)} has a credential already; --replace gives it a new one")
    if save and password_file is not None:
        raise SetupError("--save keeps credentials in a data directory; --passwords has none")
    given = passwords.add_all(
        [*devices, *own], None if password_from is None else _not_empty(read_secret(password_from))
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
def list_(*, data: Data = DEFAULT, as_json: Json = False, password_file: PasswordFile = None) -> None:
    """List the devices that may connect."""
    from imqtt.cli.passwords import SERVER_ACCOUNT

    passwords, _ = _accounts(data, password_file, PID_FILE)
    saved = {str(device) for device in DataDirectory(data).saved()} if password_file is None else set()
    names = [name for name in passwords.usernames() if name != SERVER_ACCOUNT]
    if as_json:
        for name in names:
            print_json({"device": name, "saved": name in saved})
    elif names:
        print_table(("device", "credential saved here"), ((n, "yes" if n in saved else "") for n in names))
    else:
        print_line("No device has a credential yet: `imqtt device add alice@phone` gives one.")


@app.command()
def revoke(
    names: Names,
    *,
    data: Data = DEFAULT,
    as_json: Json = False,
    password_file: PasswordFile = None,
    pid_file: PidFile = PID_FILE,
) -> None:
    """Take devices' credentials away, and end their connections and sessions.

    What their users have written and received stays, and so does the store's record that there was such a
    device: with a new credential it goes on where it was.
    """
    devices = {str(device): device for device in map(parse_device, names)}
    passwords, broker = _accounts(data, password_file, pid_file)
    unknown = sorted(devices.keys() - set(passwords.usernames()))
    if unknown:
        raise SetupError(f"{', '.join(unknown)} has no credential; `imqtt device list` shows who has")
    for name, device in devices.items():
        passwords.remove(name)
        if broker is not None:
            broker.end_session(name)
            DataDirectory(data).forget(device)
    if as_json:
        for name in devices:
            print_json({"device": name, "revoked": True})
    else:
        print_line(f"{', '.join(devices)} can no longer connect.")


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

    Passwords stay valid. Install `deploy/mosquitto/acl` of this version too, and restart Mosquitto: 2.0.11
    may crash if it only reloads a file from which accounts have gone. `imqtt up` migrates its data directory
    by itself.
    """
    from imqtt.cli.passwords import Passwords

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


def _accounts(data: Path, file: Path | None, pid_file: Path) -> tuple["Passwords", "Mosquitto | None"]:
    """The accounts that a command is about, and their broker if it is one of `imqtt up`."""
    from imqtt.cli.mosquitto import Mosquitto
    from imqtt.cli.passwords import Passwords

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
        raise SetupError("an empty password is none")
    return password
