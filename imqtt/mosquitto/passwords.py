"""Mosquitto's password file: who may connect to the broker.

One line an account: `username:$7$101$salt$hash`, PBKDF2 with SHA-512 as `mosquitto_passwd` writes it. The
file is replaced as a whole, under a lock, so that a broker which reads it at any moment reads a complete one.
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

ITERATIONS = 101  # Mosquitto's own default. Generated passwords hold 192 bits, so more would buy nothing,
# and Mosquitto checks every connected client's password again at each reload, on its only thread.
MAX_ITERATIONS = 10_000_000  # some seconds; the file may be damaged
SALT_BYTES = 12
HASH_BYTES = 64
RESEND_SECONDS = 0.05
RELOAD_SECONDS = 15.0

Login = Callable[[str, str], bool]
"""Tries to log in with a username and password. Raises `OSError` when no broker answers."""


class Passwords:
    """The accounts of one broker.

    A change is followed by SIGHUP to the broker, if one runs: `broker` is its pid file, or returns its
    process id. Where `login` is given, the call returns when the broker acts on the change. Mosquitto then
    disconnects whoever is connected with a password that no longer holds.

    A new file gets mode 0600. If root creates it and `account` exists, it belongs to that account, with mode
    0640: a Mosquitto that is started by root becomes its own user before it reads the file, and 2.1 warns of
    any other owner. A file that exists keeps its owner and mode, except that others lose access to it.
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
        """Every account, the server's among them, in order of name."""
        return sorted(self._read())

    def add(self, username: str, password: str | None = None) -> str:
        """Gives `username` this password, or a new random one, in place of any it had. Returns it.

        Raises `SetupError` for a name that is no device's, an unwritable file, or a broker that does not
        take the change.
        """
        return self.add_all([username], password)[username]

    def add_all(
        self,
        usernames: Iterable[str],
        password: str | None = None,
        end_sessions: Callable[[Iterable[str]], None] | None = None,
    ) -> dict[str, str]:
        """The same for many accounts with one reload. For `end_sessions` see `remove_all`."""
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

    def remove(self, username: str) -> bool:
        """Takes the account away; its live connection ends. False if there was none."""
        return bool(self.remove_all([username]))

    def remove_all(
        self, usernames: Iterable[str], end_sessions: Callable[[Iterable[str]], None] | None = None
    ) -> list[str]:
        """The same for many accounts, with two reloads. Returns the accounts that there were.

        `end_sessions` drops devices' sessions at the broker. Mosquitto 2.0 ends a session that has no
        connection a second time when it reads that its password no longer holds, and crashes when the
        session expires. So sessions are dropped before the broker reads the file, and those of devices that
        it has cut off thereby before it reads the file again.
        """
        known = self._read()
        found = sorted({it for it in usernames if it in known})
        if not found:
            return []
        given: dict[str, str] = {}
        if self._login:
            # Nobody knows the old passwords, so that they are refused cannot be tried. A new one can be: once
            # the broker accepts that, the old one is dead; once it refuses it, so is the account.
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
        """The accounts called `user/device`, as in imqtt 0.1, and what each is called now."""
        return {name: new for name in self._read() if (new := _present_name(name)) is not None}

    def migrate(self) -> list[str]:
        """Renames accounts `user/device`, as imqtt 0.1 called them, to `user@device`.

        Passwords stay valid, since a hash does not depend on the name. Where both names exist, the new one
        keeps its password and the old one is removed. Returns the new usernames. A running broker is not
        told.
        """
        with self._changing() as accounts:
            renamed = {name: new for name in accounts if (new := _present_name(name)) is not None}
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
        except ValueError:  # a damaged line: nobody gets in with it
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
            raise SetupError(f"{self.path} is no password file: {error}") from error
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """Yields the accounts; whatever they are at the end is on disk when this returns."""
        try:
            create_directory(self.path.parent)
            # The lock is a file of its own: the password file's inode changes with each rename.
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
        """Asks the running broker to read the file again. False if none runs."""
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
                f"have it reload with `kill -HUP {pid}`"
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
                    return  # it ended meanwhile, and reads the file when it starts
            if time.monotonic() > deadline:
                raise SetupError(
                    f"the file is changed, but Mosquitto does not act on it after {RELOAD_SECONDS:.0f} s"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            if pause > RESEND_SECONDS:
                self._reload()  # a broker that is just starting ignores the first


def _present_name(username: str) -> str | None:
    """What a device of imqtt 0.1 is called now; None for any other account."""
    new = username.replace("/", "@", 1)
    return new if "/" in username and parse_username(new) is not None else None


def broker_pid(pid_file: Path) -> int | None:
    """The process in `pid_file` if it is a Mosquitto: after a crash the number may be anybody's."""
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
