"""Mosquitto's password file, which contains the accounts of the broker.

Each account is a line `username:$7$101$salt$hash`: PBKDF2 with SHA-512, as written by `mosquitto_passwd`. The
file is replaced atomically and under a lock, so a broker always reads a complete file.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import pwd
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imqtt.errors import SetupError
from imqtt.mosquitto.file_access import create_directory, set_access, write_private
from imqtt.mosquitto.system_user import SystemUser
from imqtt.processes import command_line
from imqtt.protocol.topics import parse_username

SERVER_ACCOUNT = "imqtt-server"

# Mosquitto's default. More would not protect generated passwords, which are random, and on each reload
# Mosquitto checks the passwords of all connected clients in its only thread.
ITERATIONS = 101
MAX_ITERATIONS = 10_000_000  # takes some seconds; the file may be damaged
SALT_BYTES = 12
HASH_BYTES = 64
RESEND_SECONDS = 0.05
RELOAD_SECONDS = 15.0

Login = Callable[[str, str], bool]
"""Whether the broker accepts a username and password. Raises `OSError` if no broker answers."""


class Passwords:
    """The accounts of one broker.

    After a change, a running broker gets a SIGHUP; `broker` is its pid file, or returns its process id. If
    `login` is given, the call returns when the change is in effect. Mosquitto then disconnects clients whose
    password is no longer valid.

    A new file has mode 0600. If root creates it and the system user `account` exists, it belongs to that user
    and has mode 0640: a Mosquitto started by root switches to its own user before it reads the file, and 2.1
    warns about other owners. An existing file keeps its owner and mode, but others lose access.
    """

    def __init__(
        self,
        path: Path,
        broker: Path | Callable[[], int | None],
        login: Login | None = None,
        *,
        account: str | None = None,
    ) -> None:
        self.path = path
        self._broker_pid = broker if callable(broker) else lambda: broker_pid(broker)
        self._login = login
        self._account = account

    def usernames(self) -> list[str]:
        """All accounts including the server's, sorted."""
        return sorted(self._read())

    def add(self, username: str, password: str | None = None) -> str:
        """Sets the password of `username`, by default to a random one. Returns the password.

        Raises `SetupError` if the name is not a device's, the file cannot be written, or the broker does not
        apply the change.
        """
        return self.add_all([username], password)[username]

    def add_all(
        self,
        usernames: Iterable[str],
        password: str | None = None,
        end_sessions: Callable[[Iterable[str]], None] | None = None,
    ) -> dict[str, str]:
        """`add` for many accounts with one reload. For `end_sessions` see `remove_all`."""
        given = {username: password or secrets.token_hex(16) for username in usernames}
        for username in given:
            if username != SERVER_ACCOUNT and parse_username(username) is None:
                raise SetupError(f"{username!r} is not a device's username: it must be USER@DEVICE")
        known = self._read()
        replaced = [username for username in given if username in known]
        if end_sessions is not None and replaced:
            end_sessions(replaced)
        with self._changing() as accounts:
            accounts.update({username: _hash(word) for username, word in given.items()})
        if given and self._reload():
            self._expect(*list(given.items())[-1], accepted=True)
        if end_sessions is not None and replaced:
            end_sessions(replaced)
        return given

    def remove_all(
        self, usernames: Iterable[str], end_sessions: Callable[[Iterable[str]], None] | None = None
    ) -> list[str]:
        """Removes accounts, which ends their connections, with two reloads. Returns those that existed.

        `end_sessions` drops devices' sessions at the broker. If the password of a session without a
        connection becomes invalid, Mosquitto 2.0 ends the session twice, and crashes when it expires. So
        sessions are dropped before the broker reads the file, and those of devices that it then disconnects
        before it reads the file again.
        """
        known = self._read()
        found = sorted(known.keys() & usernames)
        if not found:
            return []
        given: dict[str, str] = {}
        if self._login:
            # The old passwords are unknown, so it cannot be tested whether the broker refuses them. Once it
            # accepts a new one, the old one is invalid; once it refuses the new one, the account is.
            given = self.add_all(found, end_sessions=end_sessions)
        elif end_sessions is not None:
            end_sessions(found)
        with self._changing() as accounts:
            for username in found:
                accounts.pop(username, None)
        if self._reload() and given:
            self._expect(*list(given.items())[-1], accepted=False)
        return found

    def outdated(self) -> dict[str, str]:
        """The accounts with names of imqtt 0.1 (`user/device`), and their present names."""
        return _outdated(self._read())

    def migrate(self) -> list[str]:
        """Renames accounts of imqtt 0.1 from `user/device` to `user@device`. Returns the new usernames.

        Passwords stay valid, since a hash does not depend on the name. If both names exist, the new one keeps
        its password and the old one is removed. A running broker does not reload the file.
        """
        with self._changing() as accounts:
            renamed = _outdated(accounts)
            for old, new in renamed.items():
                accounts.setdefault(new, accounts[old])
                del accounts[old]
        return sorted(set(renamed.values()))

    def holds(self, username: str, password: str) -> bool:
        """Whether the file has this password for `username`."""
        stored = self._read().get(username, "")
        parts = stored.split("$")
        if len(parts) != 5 or parts[1] != "7":
            return False
        try:
            iterations = int(parts[2])
            salt, digest = base64.b64decode(parts[3]), base64.b64decode(parts[4])
            if not 0 < iterations <= MAX_ITERATIONS:
                return False
            found = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, len(digest))
        except ValueError:  # a damaged line matches no password
            return False
        return secrets.compare_digest(found, digest)

    def _read(self) -> dict[str, str]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise SetupError(f"cannot read the password file {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SetupError(f"{self.path} is not a password file: {error}") from error
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """Yields the accounts, and writes them to disk at the end of the block."""
        try:
            create_directory(self.path.parent)
            # A separate lock file, because each change replaces the password file.
            lock_file = self.path.with_name(self.path.name + ".lock")
            with os.fdopen(os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                accounts = self._read()
                yield accounts
                self._write(accounts)
        except OSError as error:
            raise SetupError(f"cannot write the password file {self.path}: {error.strerror}") from error

    def _write(self, accounts: dict[str, str]) -> None:
        text = "".join(f"{username}:{word}\n" for username, word in sorted(accounts.items()))
        new = not self.path.exists()
        write_private(self.path, text)
        if new and self._account is not None and os.geteuid() == 0:
            with contextlib.suppress(KeyError):
                account = pwd.getpwnam(self._account)
                set_access(self.path, 0o640, SystemUser(self._account, account.pw_uid, account.pw_gid))

    def _reload(self) -> bool:
        """Makes the running broker reload the file. False if none runs."""
        pid = self._broker_pid()
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise SetupError(
                f"the file is changed, but Mosquitto (process {pid}) belongs to another user: "
                f"make it reload the file with `kill -HUP {pid}`"
            ) from None
        return True

    def _expect(self, username: str, password: str, *, accepted: bool) -> None:
        if self._login is None:
            return
        deadline = time.monotonic() + RELOAD_SECONDS
        pause = 0.001
        while True:
            try:
                if self._login(username, password) is accepted:
                    return
            except OSError:
                if self._broker_pid() is None:
                    return  # it has ended, and reads the file when it starts
            if time.monotonic() > deadline:
                raise SetupError(
                    f"the file is changed, but Mosquitto has not applied it after {RELOAD_SECONDS:.0f} s"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            if pause > RESEND_SECONDS:
                self._reload()  # a broker that is starting loses the first signal


def _outdated(accounts: Iterable[str]) -> dict[str, str]:
    present = {name: name.replace("/", "@", 1) for name in accounts if "/" in name}
    return {name: new for name, new in present.items() if parse_username(new) is not None}


def broker_pid(pid_file: Path) -> int | None:
    """The process id in `pid_file`, if that process is a Mosquitto and not another one since a crash."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    program = command_line(pid).partition(" ")[0]
    return pid if Path(program).name == "mosquitto" else None


def _hash(password: str) -> str:
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, HASH_BYTES)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
