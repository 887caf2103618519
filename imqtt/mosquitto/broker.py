"""One Mosquitto process on a directory of its own, with the configuration of `deploy/mosquitto`."""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from imqtt.errors import SetupError
from imqtt.lock_holder import Holder
from imqtt.mosquitto.control import Access, ServerUnreachable
from imqtt.mosquitto.file_access import create_directory, write_private
from imqtt.mosquitto.file_limits import limit_connections, raise_file_limit
from imqtt.mosquitto.files import BrokerFiles
from imqtt.mosquitto.installation import configuration, configure, executable
from imqtt.mosquitto.listeners import INTERNAL_HOST, Listeners, PortTaken, choose, holder
from imqtt.mosquitto.log_file import LogFile
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.passwords import SERVER_ACCOUNT, Passwords
from imqtt.mosquitto.pid_file import PidFile
from imqtt.mosquitto.process import Process
from imqtt.mosquitto.system_user import CannotSwitchUser, SystemUser, broker_user, own_name
from imqtt.processes import command_line

log = logging.getLogger(__name__)

__all__ = ["INTERNAL_HOST", "Mosquitto", "configuration", "executable"]

START_SECONDS = 20.0  # reading back a large mosquitto.db takes its time
STOP_SECONDS = 30.0  # and so does writing one
# The listeners' ports in deploy/mosquitto/mosquitto.conf, by what they are for.
PUBLIC, WEBSOCKET, INTERNAL = "1883", "8083", "1884"


class Mosquitto:
    """A broker that runs in `directory`: its configuration, password file, log and persistent state.

    A port of 0 stands for the one that this directory had last, or else the one of `preferred`, or else a
    free one; once started, the ports stay the same for this object and for the directory. One directory has
    one broker at a time, which a lock sees to.

    Started by root, Mosquitto runs as `user`, by default an unprivileged user of this machine. It ends when
    this process or the thread that started it ends.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        internal_port: int = 0,
        websocket_port: int = 0,
        preferred: tuple[int, int] = (0, 0),
        user: str = "",
    ) -> None:
        self.directory = directory.absolute()
        self.files = BrokerFiles(self.directory)
        self.log = self.files.log
        self._pid_file = PidFile(self.files.pid)
        self._output = LogFile(self.files.log)
        self.log_start = 0
        """Where in its log the process that was started last begins."""
        self._given = self._listeners = Listeners(host, port, websocket_port, internal_port)
        self._preferred = Listeners(host, *preferred, 0)
        self._user_name = user
        self._process: Process | None = None
        self._lock: IO[str] | None = None
        self._settled = False
        self.displaced: dict[int, str] = {}
        """Preferred ports on which other programs listen, and which programs, as far as that is known."""
        self.passwords = Passwords(self.files.passwords, self._pid_file.process, self._login)

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
        if self._process is None or self._process.status is not None:
            return None
        return self._process.pid

    @property
    def server_password(self) -> str:
        """The password of the account `imqtt-server`, drawn when the directory is first used."""
        path = self.files.server_password
        with self._writable():
            create_directory(self.directory)
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
        return self._pid_file.process() is not None

    # --- its life

    async def start(self) -> None:
        """Returns when it accepts connections.

        Raises `SetupError`: not installed, directory in use or not writable, port in use, or whatever
        Mosquitto says when it ends instead of starting.
        """
        if self.pid is not None:
            return
        program = executable()
        user = self._user()
        self._hold()
        try:
            await self._pid_file.end(STOP_SECONDS)  # left behind: the lock is free, so nobody uses it
            self._upgrade()
            wanted = self._wanted()
            for attempt in range(3):
                if not self._settled:
                    self._listeners = choose(self._given, wanted if attempt == 0 else self._given)
                self._prepare()
                try:
                    await self._launch(program, user)
                    break
                except PortTaken:  # between choosing it and Mosquitto's binding to it
                    if self._settled or attempt == 2:
                        raise
        except BaseException:
            if self.pid is not None:
                await self.kill()
            self._let_go()
            raise
        self._report_displaced(wanted)
        self._settled = True
        with self._writable():
            write_private(self.files.listeners, json.dumps(asdict(self._listeners)))

    async def stop(self) -> None:
        """Has it write its state and end; ends it by force if it takes longer than 30 seconds."""
        if self._process is not None:
            try:
                self._process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()
            except asyncio.CancelledError:
                self._process.send_signal(signal.SIGKILL)
                raise
        self._let_go()

    async def kill(self) -> None:
        """Ends it at once: what it held since it last wrote its state is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
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

    def end_sessions(self, usernames: Iterable[str]) -> None:
        """Ends devices' connections and drops their sessions, if it runs: see `Access.end_sessions`."""
        if (access := self.access()) is not None:
            with contextlib.suppress(ServerUnreachable):
                access.end_sessions(usernames)

    def access(self) -> Access | None:
        """How to reach it with the server's account; None while it does not run."""
        if not self.running():
            return None
        return Access(INTERNAL_HOST, self._known().internal_port, SERVER_ACCOUNT, self.server_password)

    # --- the parts

    @property
    def _config_file(self) -> Path:
        return self.files.configuration

    def _known(self) -> Listeners:
        """Where this directory's broker listens, as given or as written down when it last started."""
        if self._settled:
            return self._listeners
        try:
            return Listeners(**json.loads(self.files.listeners.read_text()))
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
            create_directory(self.directory)
            lock = self.files.lock.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            by = f" by {Holder(int(holder), command_line(int(holder)))}" if holder.isdigit() else ""
            raise SetupError(
                f"the data directory {self.directory} is in use{by}: end it, or use another --data"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _let_go(self) -> None:
        if self._lock is not None:
            if self.pid is None:
                self._pid_file.remove()
            self._lock.close()
            self._lock = None

    def _user(self) -> SystemUser | None:
        try:
            return broker_user(self._user_name)
        except CannotSwitchUser as reason:
            log.warning("Mosquitto runs as %s: %s", own_name(), reason)
            return None

    def _wanted(self) -> Listeners:
        """The ports to take where they are free: those of last time, or else the preferred ones."""
        if self.files.listeners.exists():
            return self._known()
        return self._preferred

    def _report_displaced(self, wanted: Listeners) -> None:
        """Logs which ports differ from the preferred ones, and which programs have those."""
        if self._settled:
            return
        for what, port, instead, given in (
            ("devices", wanted.port, self.port, self._given.port),
            ("browsers", wanted.websocket_port, self.websocket_port, self._given.websocket_port),
        ):
            if port and not given and port != instead:
                self.displaced[port] = holder(port) or "another program"
                log.warning(
                    "port %d is in use by %s: %s connect to port %d instead",
                    port, self.displaced[port], what, instead,
                )  # fmt: skip

    def _upgrade(self) -> None:
        """Brings a directory that imqtt 0.1 has written to the present form.

        Its devices are renamed from `user/device` to `user@device`. What the broker kept belongs to sessions
        and topics that no longer exist, so it is removed. It was never the only copy of a message that had
        been accepted.
        """
        with self._writable():
            if self.files.outdated():
                self.files.move_outdated()
        outdated = self.passwords.outdated()
        if not outdated:
            return
        kept = sorted(set(outdated.values()) & set(self.passwords.usernames()))
        with self._writable():
            self.files.state.unlink(missing_ok=True)
        renamed = self.passwords.migrate()
        log.warning(
            "%s is migrated: usernames are USER@DEVICE now, no longer USER/DEVICE, and topics "
            "imqtt/USER@DEVICE/up/… and …/down. Passwords and messages stay as they are; what the broker had "
            "queued is removed, so clients send again what was not accepted. Renamed: %s",
            self.directory, ", ".join(renamed),
        )  # fmt: skip
        if kept:
            log.warning(
                "these were in the password file already and keep their password: %s", ", ".join(kept)
            )

    def _prepare(self) -> None:
        """Writes the configuration, and the server's account if the password file does not have it."""
        source = configuration()
        spoken = self._listeners
        with self._writable():
            create_directory(self.files.home)
            write_private(self.files.acl, (source / "acl").read_text())
            text = configure(
                (source / "mosquitto.conf").read_text(),
                options={
                    "user": own_name(),  # for a broker that root cannot start as another user
                    "pid_file": None,  # this process writes it
                    "log_dest": "stderr",
                    "password_file": self.files.passwords.name,
                    "acl_file": self.files.acl.name,
                    "persistence_location": self.files.state.parent.name,
                },
                listeners={
                    PUBLIC: f"{spoken.port} {spoken.host}",
                    WEBSOCKET: f"{spoken.websocket_port} {spoken.host}",
                    INTERNAL: f"{spoken.internal_port} {INTERNAL_HOST}",
                },
            )
            write_private(self._config_file, limit_connections(text, raise_file_limit()))
        if not self.passwords.holds(SERVER_ACCOUNT, self.server_password):
            self.passwords.add(SERVER_ACCOUNT, self.server_password)

    async def _launch(self, program: str, user: SystemUser | None) -> None:
        with self._writable():
            self.files.make_private(user)
            start = self.log_start = self._output.begin()
            self._process = self._spawn(program, user)
        deadline = time.monotonic() + START_SECONDS
        pause = 0.005
        while not await self._answers():
            status = self._process.status
            if status is not None:
                said = self._output.last_words(start) or f"exit status {status}"
                error: type[SetupError] = SetupError
                if os.strerror(errno.EADDRINUSE) in said:
                    error = PortTaken
                    said += self._holders()
                raise error(f"Mosquitto ended at its start: {said}; its log is {self.log}")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"Mosquitto does not answer after {START_SECONDS:.0f} s; its log is {self.log}"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _holders(self) -> str:
        """Which programs have this broker's ports, to be added to an error; empty if unknown."""
        ports = (self.port, self.websocket_port, self.internal_port)
        held = [f"port {port} by {who}" for port in ports if (who := holder(port))]
        return f" ({', '.join(held)})" if held else ""

    def _spawn(self, program: str, user: SystemUser | None) -> Process:
        with self._pid_file.claimed() as (descriptor, write):
            try:
                process = Process(
                    [program, "-c", self._config_file.name],
                    directory=self.files.home,
                    output=self._output.write,
                    # Settings of the server may be secrets, and the broker may be another user's.
                    environment={
                        name: it for name, it in os.environ.items() if not name.startswith("IMQTT_")
                    },
                    user=user,
                    inherit=[descriptor],
                )
            except (OSError, subprocess.SubprocessError) as error:
                whom = "" if user is None else f" as user {user.name}"
                raise SetupError(f"cannot run {program}{whom}: {error}") from error
            write(process.pid)
        return process

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
