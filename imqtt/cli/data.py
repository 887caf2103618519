"""The data directory of `imqtt up`: everything that one deployment on one machine keeps."""

import contextlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.mosquitto.file_access import DRAFT, write_private
from imqtt.mosquitto.files import BrokerFiles
from imqtt.private_files import DATABASE_SUFFIXES, create_private_directory

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="IMQTT_DATA",
        metavar="DIR",
        show_default=True,
        help="The data directory of `imqtt up`.",
    ),
]
DEFAULT = Path("data")


def data_option(path: Path) -> str:
    """` --data DIR` for a command that is suggested; empty if it finds the directory without."""
    return "" if path.absolute() == DEFAULT.absolute() else f" --data {shlex.quote(str(path.absolute()))}"


class DataDirectory:
    """The store in `imqtt.db`, saved credentials and devices' stores, and the broker's files (`broker`)."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.broker = BrokerFiles(self.path)

    @property
    def store(self) -> str:
        return f"sqlite:///{self.path / 'imqtt.db'}"

    def exists(self) -> bool:
        """Whether `imqtt up` has made this directory."""
        return self.broker.listeners.is_file()

    def _is_foreign(self) -> bool:
        """Whether there is something else in it."""
        try:
            return any(self.path.iterdir())
        except NotADirectoryError:
            return True
        except OSError:
            return False

    def check_exists(self) -> None:
        """Raises `SetupError` unless `imqtt up` of this version has made this directory."""
        if not self.exists():
            makes = "" if self._is_foreign() else f": `imqtt up{data_option(self.path)}` makes it one"
            raise SetupError(f"{self.path} is no data directory of `imqtt up`{makes}")
        if self.broker.outdated():
            raise SetupError(
                f"an earlier version of imqtt wrote {self.path}: (re)start"
                f" `imqtt up{data_option(self.path)}`, which migrates it"
            )

    # --- credentials that `imqtt device add --save` leaves for the other commands

    def save(self, device: Device, password: str) -> Path:
        """Keeps a device's password in a file that only this user reads."""
        path = self._credential(device)
        try:
            create_private_directory(path.parent)
            write_private(path, password + "\n")
        except OSError as error:
            raise SetupError(f"cannot save the credential in {path}: {error.strerror}") from error
        return path

    def devices(self) -> list[Device]:
        """The devices that have a credential here, as far as this user may know, in order of name."""
        names = {str(device) for device in self.saved()} | (self._accounts() or set())
        return sorted(Device(*name.split("@")) for name in names if name.count("@") == 1)

    def users(self, sender: Device) -> set[str] | None:
        """The users who have a device with a credential on this broker; None if that is not known.

        `sender` is a device that may connect: if it is not in the password file, others need not be either.
        """
        names = self._accounts()
        if names is None or str(sender) not in names:
            return None
        return {name.partition("@")[0] for name in names if "@" in name}

    def _accounts(self) -> set[str] | None:
        """What the broker's password file holds, if this user may read it."""
        try:
            lines = self.broker.passwords.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        return {line.partition(":")[0] for line in lines if not line.startswith("#")}

    def saved(self) -> list[Device]:
        """The devices whose passwords are kept here, in order of name."""
        with contextlib.suppress(OSError):
            return sorted(
                Device(*name.name.split("@")) for name in self._credentials.glob("*@*") if _whole(name)
            )
        return []

    def password(self, device: Device) -> str | None:
        try:
            return self._credential(device).read_text().strip()
        except OSError:
            return None

    def forget(self, device: Device) -> None:
        """Removes a device's saved password, and what it kept of its conversations."""
        self._credential(device).unlink(missing_ok=True)
        store = self._stores / f"{device}.db"
        for suffix in DATABASE_SUFFIXES:  # `phone.db2` is a device of its own
            store.with_name(store.name + suffix).unlink(missing_ok=True)

    def device_store(self, device: Device) -> Path:
        """Where a device of this machine keeps its outbox and cursors."""
        create_private_directory(self._stores)
        return self._stores / f"{device.user}@{device.device}.db"

    @property
    def _credentials(self) -> Path:
        return self.path / "credentials"

    @property
    def _stores(self) -> Path:
        return self.path / "devices"

    def _credential(self, device: Device) -> Path:
        # One file name, joined by a character that no name has: `..` is a name, too.
        return self._credentials / f"{device.user}@{device.device}"


def _whole(path: Path) -> bool:
    return path.name.count("@") == 1 and not path.name.endswith(DRAFT)
