"""The accounts of a broker and the server on it, as `imqtt device` changes them."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from imqtt.cli.data import DataDirectory, data_option
from imqtt.cli.device_records import remove_records
from imqtt.cli.output import complain
from imqtt.cli.settings import server_config
from imqtt.config import ServerConfig
from imqtt.errors import SetupError
from imqtt.model import Device
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.control import Access, ServerUnreachable
from imqtt.mosquitto.passwords import Passwords

BROKER_ACCOUNT = "mosquitto"  # `user` in deploy/mosquitto/mosquitto.conf


class Deployment:
    """The data directory of `imqtt up`; or with a `password_file`, a separate broker and `imqtt serve`.

    In the second case `broker` is None. Raises `SetupError` if there is neither.
    """

    def __init__(self, data: Path, password_file: Path | None, pid_file: Path) -> None:
        self.directory = DataDirectory(data)
        self.broker: Mosquitto | None = None
        self._pid_file = pid_file
        if password_file is None:
            self.directory.check_exists()
            self.broker = Mosquitto(self.directory.path)
            self.passwords = self.broker.passwords
            return
        if not password_file.exists() and not password_file.parent.is_dir():
            raise SetupError(f"{password_file.parent} does not exist")
        self.passwords = Passwords(password_file, pid_file, account=BROKER_ACCOUNT)
        if outdated := self.passwords.outdated():
            some = ", ".join(sorted(outdated)[:3]) + (", …" if len(outdated) > 3 else "")
            complain(
                f"{password_file} has devices of imqtt 0.1, which cannot communicate any more ({some}): "
                f"`imqtt device migrate --passwords {password_file}` renames them"
            )

    @property
    def option(self) -> str:
        """` --data DIR` for a suggested command; empty if it needs none."""
        return "" if self.broker is None else data_option(self.directory.path)

    def revoke(self, devices: Mapping[str, Device], access: Access | None) -> str:
        """Removes devices' credentials, sessions, saved passwords, and their records at the server.

        Returns why the server was not told; empty if it was.
        """
        passwords, trouble = self.passwords, ""
        if access is not None:
            try:
                access.end_sessions(devices)
            except ServerUnreachable as error:  # the credentials are removed nevertheless
                access, trouble = None, error.reason
        if self.broker is None and access is not None:
            passwords = Passwords(passwords.path, self._pid_file, access.login)
        passwords.remove_all(devices, None if access is None else access.try_end_sessions)
        trouble = trouble or self._remove_records(devices.values(), access)
        if self.broker is not None:
            for device in devices.values():
                self.directory.forget(device)
        return trouble

    def _remove_records(self, devices: Collection[Device], access: Access | None) -> str:
        """Has the server forget devices; if the directory's broker does not run, changes the store itself."""
        try:
            if access is not None:
                access.revoke([str(device) for device in devices])
            elif self.broker is None:
                return "--config or --broker-password-file is needed to reach it"
            elif (self.directory.path / "imqtt.db").exists():
                asyncio.run(remove_records(devices, self.directory.store))
        except (ServerUnreachable, SetupError) as error:
            return error.reason
        return ""


def server_of(
    directory: DataDirectory, broker: Mosquitto | None, flags: dict[str, str | None]
) -> tuple[ServerConfig, Access | None]:
    """The settings of the server and the access to it: of `imqtt up` on `broker`, or of `imqtt serve`."""
    if broker is None:
        config = server_config(flags)
        return config, Access.of(config)
    return server_config(flags, store=directory.store), broker.access()
