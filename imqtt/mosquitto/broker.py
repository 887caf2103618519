"""A Mosquitto process with its own directory and the configuration of `deploy/mosquitto`."""

import asyncio
import contextlib
import errno
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
from typing import Self

from imqtt.errors import SetupError
from imqtt.mosquitto.control import Access
from imqtt.mosquitto.directory_lock import DirectoryLock
from imqtt.mosquitto.file_access import create_directory, write_private
from imqtt.mosquitto.file_limits import limit_connections, raise_file_limit
from imqtt.mosquitto.files import BrokerFiles
from imqtt.mosquitto.installation import configuration, configure, executable
from imqtt.mosquitto.listeners import INTERNAL_HOST, Listeners, PortTaken, choose, holder
from imqtt.mosquitto.log_file import LogFile
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.migration import migrate
from imqtt.mosquitto.passwords import SERVER_ACCOUNT, Passwords
from imqtt.mosquitto.pid_file import PidFile
from imqtt.mosquitto.process import Process
from imqtt.mosquitto.system_user import SystemUser, broker_user, own_name

log = logging.getLogger(__name__)

__all__ = ["INTERNAL_HOST", "Mosquitto", "configuration", "executable"]

START_SECONDS = 20.0  # Mosquitto may have to read a large mosquitto.db
STOP_SECONDS = 30.0  # or to write one
# The ports in deploy/mosquitto/mosquitto.conf.
PUBLIC, WEBSOCKET, INTERNAL = "1883", "8083", "1884"


class Mosquitto:
    """A broker that keeps its configuration, password file, log and persistent state in `directory`.

    A port of 0 means the directory's last port, else the one in `preferred`, else any free port. After the
    first start, the ports stay the same for this object and for the directory. A lock prevents two brokers in
    one directory.

    If root starts it, Mosquitto runs as `user`, by default an unprivileged user of this machine. It ends when
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
        """The size of the log when the broker was started last."""
        self._given = self._listeners = Listeners(host, port, websocket_port, internal_port)
        self._preferred = Listeners(host, *preferred, 0)
        self._user_name = user
        self._process: Process | None = None
        self._lock = DirectoryLock(self.files.lock)
        self._settled = False
        self.displaced: dict[int, str] = {}
        """Preferred ports on which other programs listen, and the names of these programs."""
        self.passwords = Passwords(self.files.passwords, self._pid_file.process, self._login)

    @property
    def host(self) -> str:
        return self._listeners.host

    @property
    def port(self) -> int:
        """The port for devices."""
        return self._listeners.port

    @property
    def websocket_port(self) -> int:
        return self._listeners.websocket_port

    @property
    def internal_port(self) -> int:
        """The port for the server, on loopback."""
        return self._listeners.internal_port

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        if self._process is None or self._process.status is not None:
            return None
        return self._process.pid

    @property
    def server_password(self) -> str:
        """The password of the account `imqtt-server`, drawn on first use of the directory."""
        path = self.files.server_password
        with self._writable():
            create_directory(self.directory)
            with contextlib.suppress(FileExistsError):
                draft = self.directory / f"server-password.{os.getpid()}"
                draft.touch(0o600)
                draft.write_text(secrets.token_urlsafe(32))
                try:
                    os.link(draft, path)  # atomic, and fails if another process was first
                finally:
                    draft.unlink()
            return path.read_text().strip()

    def running(self) -> bool:
        """Whether this directory's broker runs, no matter which process started it."""
        return self._pid_file.process() is not None

    async def start(self) -> None:
        """Returns when the broker accepts connections. Does nothing if it runs already.

        Raises `SetupError` if Mosquitto is not installed, the directory is in use or not writable, a port is
        in use, or Mosquitto exits.
        """
        if self.pid is not None:
            return
        program = executable()
        user = broker_user(self._user_name)
        with self._writable():
            create_directory(self.directory)
            self._lock.acquire()
        try:
            await self._pid_file.end(STOP_SECONDS)  # a broker whose `imqtt up` was killed
            with self._writable():
                migrate(self.files, self.passwords)
            wanted = self._known() if self.files.listeners.exists() else self._preferred
            for attempt in range(3):
                if not self._settled:
                    self._listeners = choose(self._given, wanted if attempt == 0 else self._given)
                self._prepare()
                try:
                    await self._launch(program, user)
                    break
                except PortTaken:  # since it was chosen
                    if self._settled or attempt == 2:
                        raise
        except BaseException:
            if self.pid is not None:
                await self.kill()
            self._release()
            raise
        self._report_displaced(wanted)
        self._settled = True
        with self._writable():
            write_private(self.files.listeners, json.dumps(asdict(self._listeners)))

    async def stop(self) -> None:
        """Lets the broker write its state and end; kills it after 30 seconds."""
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
        self._release()

    async def kill(self) -> None:
        """Kills the broker. Everything since it last wrote its state is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        self._release()

    def save(self) -> None:
        """Lets the broker write its state now, in addition to its own intervals."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    async def wait(self) -> int:
        """Waits for the end of the process. Returns its exit status, negative for a signal."""
        if self._process is None:
            raise RuntimeError("not started")
        return await self._process.wait()

    def end_sessions(self, usernames: Iterable[str]) -> None:
        """`Access.end_sessions`, if the broker runs and answers."""
        if (access := self.access()) is not None:
            access.try_end_sessions(usernames)

    def access(self) -> Access | None:
        """Access with the server's account; None while the broker does not run."""
        if not self.running():
            return None
        return Access(INTERNAL_HOST, self._known().internal_port, SERVER_ACCOUNT, self.server_password)

    # --- parts of `start`

    def _known(self) -> Listeners:
        """The listeners of this broker, or those of the last one in this directory."""
        if self._settled:
            return self._listeners
        try:
            return Listeners(**json.loads(self.files.listeners.read_text()))
        except (OSError, ValueError, TypeError):
            return self._listeners

    def _login(self, username: str, password: str) -> bool:
        # On the internal listener the client id need not be the username, so no device is disconnected.
        return log_in(INTERNAL_HOST, self._known().internal_port, username, password)

    def _release(self) -> None:
        """Gives up the directory, after the broker's end."""
        if self._lock.held and self.pid is None:
            self._pid_file.remove()
        self._lock.release()

    def _report_displaced(self, wanted: Listeners) -> None:
        """Logs which preferred ports are in use, and by which programs."""
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

    def _prepare(self) -> None:
        """Writes the configuration, and adds the server's account to the password file if it is missing."""
        source = configuration()
        listeners = self._listeners
        with self._writable():
            create_directory(self.files.home)
            write_private(self.files.acl, (source / "acl").read_text())
            text = configure(
                (source / "mosquitto.conf").read_text(),
                options={
                    "user": own_name(),  # if root cannot start it as another user
                    "pid_file": None,  # this process writes it
                    "log_dest": "stderr",
                    "password_file": self.files.passwords.name,
                    "acl_file": self.files.acl.name,
                    "persistence_location": self.files.state.parent.name,
                },
                listeners={
                    PUBLIC: f"{listeners.port} {listeners.host}",
                    WEBSOCKET: f"{listeners.websocket_port} {listeners.host}",
                    INTERNAL: f"{listeners.internal_port} {INTERNAL_HOST}",
                },
            )
            write_private(self.files.configuration, limit_connections(text, raise_file_limit()))
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
                reason = self._output.last_errors(start) or f"exit status {status}"
                error: type[SetupError] = SetupError
                if os.strerror(errno.EADDRINUSE) in reason:
                    error = PortTaken
                    ports = (self.port, self.websocket_port, self.internal_port)
                    held = [f"port {port} by {program}" for port in ports if (program := holder(port))]
                    reason += f" ({', '.join(held)})" if held else ""
                raise error(f"Mosquitto did not start: {reason}; its log is {self.log}")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"Mosquitto does not answer after {START_SECONDS:.0f} s; its log is {self.log}"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _spawn(self, program: str, user: SystemUser | None) -> Process:
        with self._pid_file.claimed() as (descriptor, write):
            try:
                process = Process(
                    [program, "-c", self.files.configuration.name],
                    directory=self.files.home,
                    output=self._output.write,
                    # The server's settings may be secrets, and the broker may run as another user.
                    environment={
                        name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")
                    },
                    user=user,
                    inherit=[descriptor],
                )
            except (OSError, subprocess.SubprocessError) as error:
                as_user = "" if user is None else f" as user {user.name}"
                raise SetupError(f"cannot run {program}{as_user}: {error}") from error
            write(process.pid)
        return process

    async def _answers(self) -> bool:
        """Whether it accepts the server's password; another broker on that port would not."""
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
