"""The data directory of `imqtt up`, with all data of a deployment on one machine."""

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
    typer.Option("--data", envvar="IMQTT_DATA", metavar="DIR", help="The data directory of `imqtt up`."),
]
DEFAULT = Path("data")


def data_option(path: Path) -> str:
    """` --data DIR` for a suggested command; empty for the default directory."""
    return "" if path.absolute() == DEFAULT.absolute() else f" --data {shlex.quote(str(path.absolute()))}"


class DataDirectory:
    """The store, the saved credentials, the stores of devices, and the broker's files."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.broker = BrokerFiles(self.path)
        self._credentials = self.path / "credentials"
        self._stores = self.path / "devices"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.path / 'imqtt.db'}"

    def exists(self) -> bool:
        """Whether `imqtt up` has created this directory."""
        return self.broker.listeners.is_file()

    def check_exists(self) -> None:
        """Raises `SetupError` unless `imqtt up` of this version has created this directory."""
        if not self.exists():
            try:
                is_occupied = any(self.path.iterdir())
            except OSError as error:
                is_occupied = isinstance(error, NotADirectoryError)
            advice = "" if is_occupied else f": `imqtt up{data_option(self.path)}` creates it"
            raise SetupError(f"{self.path} is not a data directory of `imqtt up`{advice}")
        if self.broker.outdated():
            raise SetupError(
                f"an earlier version of imqtt wrote {self.path}: (re)start"
                f" `imqtt up{data_option(self.path)}`, which migrates it"
            )

    # --- credentials that `imqtt device add --save` saves for the other commands

    def save(self, device: Device, password: str) -> None:
        """Saves a device's password in a file that only this user can read."""
        path = self._credential(device)
        try:
            create_private_directory(path.parent)
            write_private(path, password + "\n")
        except OSError as error:
            raise SetupError(f"cannot save the credential in {path}: {error.strerror}") from error

    def devices(self) -> list[Device]:
        """The devices with a credential here, as far as this user can read it, sorted."""
        names = {str(device) for device in self.saved()} | (self._accounts() or set())
        return sorted(Device(*name.split("@")) for name in names if name.count("@") == 1)

    def users(self, sender: Device) -> set[str] | None:
        """The users with a device on this broker; None if that is unknown.

        It is unknown if the password file lacks `sender`, which may connect: others may be missing as well.
        """
        names = self._accounts()
        if names is None or str(sender) not in names:
            return None
        return {name.partition("@")[0] for name in names if "@" in name}

    def _accounts(self) -> set[str] | None:
        """The accounts in the broker's password file; None if this user cannot read it."""
        try:
            lines = self.broker.passwords.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        return {line.partition(":")[0] for line in lines if not line.startswith("#")}

    def saved(self) -> list[Device]:
        """The devices whose passwords are saved here, sorted."""
        with contextlib.suppress(OSError):
            names = (file.name for file in self._credentials.glob("*@*") if not file.name.endswith(DRAFT))
            return sorted(Device(*name.split("@")) for name in names if name.count("@") == 1)
        return []

    def password(self, device: Device) -> str | None:
        try:
            return self._credential(device).read_text().strip()
        except OSError:
            return None

    def forget(self, device: Device) -> None:
        """Removes a device's saved password and its store."""
        self._credential(device).unlink(missing_ok=True)
        for suffix in DATABASE_SUFFIXES:  # no wildcard: `phone.db2` is another device
            (self._stores / f"{device}.db{suffix}").unlink(missing_ok=True)

    def device_store(self, device: Device) -> Path:
        """The file with a device's outbox and cursors."""
        create_private_directory(self._stores)
        return self._stores / f"{device}.db"

    def _credential(self, device: Device) -> Path:
        # One file name, not a path of two names: a name may be `..`.
        return self._credentials / str(device)
