"""One Mosquitto process on a directory of its own, with the configuration of `deploy/mosquitto`."""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from imqtt.cli.installation import configuration, configure, executable
from imqtt.cli.limits import limit_connections, raise_file_limit
from imqtt.cli.login import log_in
from imqtt.cli.passwords import SERVER_ACCOUNT, Passwords, broker_pid, command_line
from imqtt.cli.ports import INTERNAL_HOST, Listeners, PortTaken, choose
from imqtt.errors import SetupError

log = logging.getLogger(__name__)

__all__ = ["INTERNAL_HOST", "Mosquitto", "configuration", "executable"]

START_SECONDS = 20.0  # reading back a large mosquitto.db takes its time
STOP_SECONDS = 30.0  # and so does writing one
LOG_BYTES = 16 * 1024 * 1024  # a longer log is put aside at the start
# The listeners' ports in deploy/mosquitto/mosquitto.conf, by what they are for.
PUBLIC, WEBSOCKET, INTERNAL = "1883", "8083", "1884"


class Mosquitto:
    """A broker that runs in `directory`: its configuration, password file, log and persistent state.

    A port of 0 stands for the one that this directory had last, or else a free one; once started, the ports
    stay the same for this object and for the directory. One directory has one broker at a time, which
    a lock sees to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        internal_port: int = 0,
        websocket_port: int = 0,
    ) -> None:
        self.directory = directory.absolute()
        self._given = self._listeners = Listeners(host, port, websocket_port, internal_port)
        self._process: asyncio.subprocess.Process | None = None
        self._lock: IO[str] | None = None
        self._settled = False
        self.passwords = Passwords(self.directory / "passwords", self._pid_file, self._login)

    # --- what it is

    @property
    def host(self) -> str:
        return self._listeners.host

    @property
    def port(self) -> int:
        """The public listener's port: where devices connect."""
        return self._listeners.port

    @property
    def websocket_port(self) -> int:
        return self._listeners.websocket_port

    @property
    def internal_port(self) -> int:
        """Where the server connects, on loopback."""
        return self._listeners.internal_port

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.directory / "mosquitto.log"

    @property
    def server_password(self) -> str:
        """The password of the account `imqtt-server`, drawn when the directory is first used."""
        path = self.directory / "server-password"
        with self._writable():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                draft = self.directory / f"server-password.{os.getpid()}"
                draft.touch(0o600)
                draft.write_text(secrets.token_urlsafe(32))
                try:
                    os.link(draft, path)  # all of it or nothing, and whoever is first
                finally:
                    draft.unlink()
            return path.read_text().strip()

    def running(self) -> bool:
        """Whether this directory's broker runs, in whatever process it was started."""
        return self._orphan() is not None

    # --- its life

    async def start(self) -> None:
        """Returns when it accepts connections.

        Raises `SetupError`: not installed, directory in use or not writable, port in use, or whatever
        Mosquitto says when it ends instead of starting.
        """
        if self.pid is not None:
            return
        program = executable()
        self._hold()
        try:
            await self._end_orphan()
            self._migrate()
            for attempt in range(3):
                if not self._settled:
                    last = self._known() if attempt == 0 else self._given  # those of the first try were taken
                    self._listeners = choose(self._given, last)
                self._prepare()
                try:
                    await self._launch(program)
                    break
                except PortTaken:  # between choosing it and Mosquitto's binding to it
                    if self._settled or attempt == 2:
                        raise
        except BaseException:
            if self.pid is not None:
                await self.kill()
            self._let_go()
            raise
        self._settled = True
        with self._writable():
            _replace(self._listeners_file, json.dumps(asdict(self._listeners)))

    async def stop(self) -> None:
        """Has it write its state and end; ends it by force if it takes longer than 30 seconds."""
        process = self._process
        if process is not None and process.returncode is None:
            try:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                await self.kill()
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                raise
        self._let_go()

    async def kill(self) -> None:
        """Ends it at once: what it held since it last wrote its state is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._let_go()

    def save(self) -> None:
        """Has it write its state now, beside its own intervals, so that a crash does not take back more."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    async def wait(self) -> int:
        """Waits until the process that was started last ends; its exit status, negative for a signal."""
        if self._process is None:
            raise RuntimeError("not started")
        return await self._process.wait()

    def last_words(self, start: int = 0, lines: int = 3) -> str:
        """The end of what it has logged after byte `start`, without times."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(start, self.log.stat().st_size - 16_384))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        said = [
            re.sub(r"^\S*\d{4}-\d\d-\d\dT[\d:]+: |^\d+: ", "", line).strip() for line in text.splitlines()
        ]
        errors = [line for line in said if line.startswith(("Error", "Warning: Unable"))]
        return "; ".join((errors or [line for line in said if line])[-lines:])

    def end_session(self, username: str) -> None:
        """Ends a device's connection and drops its session, with whatever is queued for it.

        A session belongs to its client id, which on the public listener is the username. On the internal
        listener the server may take any client id, so it takes this one over and leaves it empty.
        """
        if self.running():
            with contextlib.suppress(OSError):
                log_in(
                    INTERNAL_HOST, self._known().internal_port, SERVER_ACCOUNT, self.server_password, username
                )

    # --- the parts

    @property
    def _pid_file(self) -> Path:
        return self.directory / "mosquitto.pid"

    @property
    def _config_file(self) -> Path:
        return self.directory / "mosquitto.conf"

    @property
    def _listeners_file(self) -> Path:
        return self.directory / "listeners.json"

    def _known(self) -> Listeners:
        """Where this directory's broker listens, as given or as written down when it last started."""
        if self._settled:
            return self._listeners
        try:
            return Listeners(**json.loads(self._listeners_file.read_text()))
        except (OSError, ValueError, TypeError):
            return self._listeners

    def _login(self, username: str, password: str) -> bool:
        # The internal listener leaves the client id alone, so that trying a password disturbs no device.
        return log_in(INTERNAL_HOST, self._known().internal_port, username, password)

    def _hold(self) -> None:
        """Takes the directory's lock, unless this object has it."""
        if self._lock is not None:
            return
        with self._writable():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            by = f" by process {holder}" if holder else ""
            raise SetupError(f"the data directory {self.directory} is in use{by}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _orphan(self) -> int | None:
        pid = broker_pid(self._pid_file)
        return pid if pid is not None and str(self._config_file) in command_line(pid) else None

    async def _end_orphan(self) -> None:
        """Ends a broker whose `imqtt up` was killed: the lock is free, so nobody minds it."""
        pid = self._orphan()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._orphan() is not None:
            if time.monotonic() > deadline:
                raise SetupError(f"a Mosquitto of an earlier run (process {pid}) does not end")
            await asyncio.sleep(0.02)

    def _migrate(self) -> None:
        """Renames the devices of a directory that imqtt 0.1 has written, from `user/device` to `user@device`.

        What the broker kept belongs to sessions and topics that no longer exist, so it is removed. It was
        never the only copy of a message that had been accepted.
        """
        if not self.passwords.outdated():
            return
        with self._writable():
            (self.directory / "mosquitto.db").unlink(missing_ok=True)
        renamed = self.passwords.migrate()
        log.warning(
            "%s is migrated: usernames are USER@DEVICE now, no longer USER/DEVICE, and topics "
            "imqtt/USER@DEVICE/up/… and …/down. Passwords and messages stay as they are. Renamed: %s",
            self.directory, ", ".join(renamed),
        )  # fmt: skip

    def _prepare(self) -> None:
        """Writes the configuration, and the server's account if the password file does not have it."""
        source = configuration()
        spoken = self._listeners
        with self._writable():
            shutil.copyfile(source / "acl", self.directory / "acl")
            (self.directory / "acl").chmod(0o600)  # from 2.1 on Mosquitto minds if others may read it
            text = configure(
                (source / "mosquitto.conf").read_text(),
                options={
                    "user": _user(),
                    "pid_file": str(self._pid_file),
                    "log_dest": f"file {self.log}",
                    "password_file": str(self.passwords.path),
                    "acl_file": str(self.directory / "acl"),
                    "persistence_location": str(self.directory),
                },
                listeners={
                    PUBLIC: f"{spoken.port} {spoken.host}",
                    WEBSOCKET: f"{spoken.websocket_port} {spoken.host}",
                    INTERNAL: f"{spoken.internal_port} {INTERNAL_HOST}",
                },
            )
            _replace(self._config_file, limit_connections(text, raise_file_limit()))
            if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
            self.log.touch(0o600)
            self._pid_file.unlink(missing_ok=True)
        if not self.passwords.holds(SERVER_ACCOUNT, self.server_password):
            self.passwords.add(SERVER_ACCOUNT, self.server_password)

    async def _launch(self, program: str) -> None:
        start = self.log.stat().st_size
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal goes to imqtt, which ends the server first.
            self._process = await asyncio.create_subprocess_exec(
                program, "-c", str(self._config_file),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # Until it has a handler for it, a SIGHUP (a device added just now) would end it.
                preexec_fn=_ignore_hangup,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        pause = 0.005
        while not await self._answers():
            if self._process.returncode is not None:
                said = self.last_words(start) or f"exit status {self._process.returncode}"
                error = PortTaken if os.strerror(errno.EADDRINUSE) in said else SetupError
                status = self._process.returncode
                raise error(f"Mosquitto ended at its start ({status}): {said}; its log is {self.log}")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"Mosquitto does not answer after {START_SECONDS:.0f} s; its log is {self.log}"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    async def _answers(self) -> bool:
        """Whether it accepts the server's own password, which no other broker on that port would."""
        try:
            return await asyncio.to_thread(self._login, SERVER_ACCOUNT, self.server_password)
        except OSError:
            return False

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(f"cannot write in {self.directory}: {error.strerror}") from error

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _user() -> str:
    """Who this process is. Whatever the environment says: Mosquitto started by root becomes this user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container, a user may be a mere number; only for root does it matter
        return str(os.geteuid())


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.replace(path)


def _ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
