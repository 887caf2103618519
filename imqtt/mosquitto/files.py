"""The broker's files in a data directory, and their owners and modes.

    listeners.json  server-password  lock  mosquitto.pid  mosquitto.log    of this process
    broker/         mosquitto.conf  acl  passwords                         read by the broker
    broker/state/   mosquitto.db                                           written by the broker

If root starts the broker as another user, that user owns the files in `broker/` (Mosquitto 2.1 requires it),
but of the directories only `state/`. A compromised broker can therefore create links only there, where root
opens no file. The broker's working directory is `broker/` and its configuration has relative paths, so it
needs no access to the directories above.
"""

import contextlib
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

from imqtt.mosquitto.file_access import create_directory, set_access
from imqtt.mosquitto.system_user import SystemUser, own_name

log = logging.getLogger(__name__)

# The prefixes of the names that imqtt gives to files in a data directory.
_OWN = (
    "acl", "broker", "credentials", "devices", "imqtt.db", "listeners.json", "lock", "mosquitto.",
    "passwords", "server-password",
)  # fmt: skip


class BrokerFiles:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "broker"
        self.configuration = self.home / "mosquitto.conf"
        self.acl = self.home / "acl"
        self.passwords = self.home / "passwords"
        self.state = self.home / "state" / "mosquitto.db"
        self.listeners = directory / "listeners.json"
        self.lock = directory / "lock"
        self.log = directory / "mosquitto.log"
        self.pid = directory / "mosquitto.pid"
        self.server_password = directory / "server-password"

    def outdated(self) -> bool:
        """Whether imqtt 0.1 wrote this directory. It kept the broker's files at the top."""
        return (self.directory / "passwords").exists()

    def move_outdated(self) -> None:
        """Moves the files of imqtt 0.1 to their places. Raises `OSError`."""
        create_directory(self.home)
        create_directory(self.state.parent)
        with contextlib.suppress(FileNotFoundError):
            (self.directory / "mosquitto.db").replace(self.state)
        for name in ("acl", "mosquitto.conf", "passwords.lock", "passwords.new"):
            (self.directory / name).unlink(missing_ok=True)
        (self.directory / "passwords").replace(self.passwords)  # last: now the directory is not outdated

    def make_private(self, user: SystemUser | None) -> None:
        """Denies others access to all files, and lets `user` read the broker's own. Raises `OSError`.

        A directory that also contains files that are not imqtt's keeps its mode.
        """
        create_directory(self.home)
        create_directory(self.state.parent)
        self._close_directory()
        for path in (self.listeners, self.lock, self.log, self.pid, self.server_password):
            set_access(path, 0o600)
        set_access(self.log.with_name(self.log.name + ".1"), 0o600)
        for directory in (self.directory / "credentials", self.directory / "devices"):
            set_access(directory, 0o700)
        with contextlib.suppress(FileNotFoundError):
            for path in (self.directory / "credentials").iterdir():
                set_access(path, 0o600)
        own = SystemUser(own_name(), os.geteuid(), os.getegid())
        owner = user or (own if os.geteuid() == 0 else None)
        for path in (self.configuration, self.acl, self.passwords):
            set_access(path, 0o600, owner)
        for path in self.state.parent.iterdir():
            with contextlib.suppress(OSError):  # a link, or gone
                set_access(path, 0o600, owner)
        set_access(self.state.parent, 0o700, owner)
        if user is None:
            set_access(self.home, 0o700, owner)
        else:
            set_access(self.home, 0o750, replace(own, gid=user.gid))

    def _close_directory(self) -> None:
        mode = stat.S_IMODE(self.directory.stat().st_mode)
        if mode & 0o077 == 0:
            return
        names = sorted(path.name for path in self.directory.iterdir())
        others = [name for name in names if not name.startswith((*_OWN, "lost+found"))]
        if others:
            log.warning(
                "others may enter the data directory %s (mode %04o), which also holds %s; "
                "imqtt's own files are closed to them",
                self.directory, mode, ", ".join(others[:3]) + (" …" if others[3:] else ""),
            )  # fmt: skip
            return
        try:
            self.directory.chmod(0o700)
        except PermissionError:
            log.warning("others may enter the data directory %s (mode %04o)", self.directory, mode)
            return
        if self.listeners.exists():
            log.warning(
                "the data directory %s was open to others (mode %04o); now only %s may enter it (0700)",
                self.directory, mode, own_name(),
            )  # fmt: skip
