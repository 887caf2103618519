"""MongoDB for tests: one shared server for tests that only need a database, and servers that a test may stop.

The shared server is the one at `IMQTT_TEST_MONGODB` (an address without a database; for a replica set, list
all nodes), else a container if a Docker daemon answers, else a process: `mongod` if installed, or SecantusDB,
which implements MongoDB's protocol.
"""

import asyncio
import atexit
import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from imqtt.mosquitto.process import end_with_parent
from tests.ports import free_port
from tests.services import WITHIN

REPLICA_SET = "rs0"
_ADDRESS = "IMQTT_TEST_MONGODB"
_WAITS = ("connectTimeoutMS", "serverSelectionTimeoutMS", "socketTimeoutMS", "waitQueueTimeoutMS")


def database_url() -> str:
    """The address of a new, empty database on the shared server. It is dropped when the tests end."""
    name = f"imqtt_test_{secrets.token_hex(6)}"
    address, _, options = _server().partition("?")
    url = f"{address.rstrip('/')}/{name}?{options}"
    if _ADDRESS in os.environ:  # containers and processes end together with their data
        atexit.register(_drop, url, name)
    return patient(url)


def patient(url: str, seconds: float = WITHIN) -> str:
    """One of this module's addresses with timeouts of `seconds`, within which even a busy server answers."""
    waits = "&".join([f"{name}={seconds * 1_000:.0f}" for name in _WAITS])
    return f"{url}{'' if url.endswith('?') else '&'}{waits}"


async def faulty_server() -> "MongoServer":
    """A running server whose commands can be made to fail, with a new, empty database.

    All tests of this process share it, one at a time: each may stop, pause and kill it.
    """
    server = _faulty()
    server.database = f"imqtt_test_{secrets.token_hex(6)}"
    server.resume()
    await server.start()
    with MongoClient[dict[str, object]](server.url) as client:
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    return server


@functools.cache
def _faulty() -> "MongoServer":
    directory = _directory()
    option = "--enable-test-commands" if is_secantus() else "--setParameter=enableTestCommands=1"
    server = MongoServer(directory, option)
    atexit.register(server.end, signal.SIGKILL)
    return server


@functools.cache
def _server() -> str:
    return os.environ.get(_ADDRESS) or _container() or _process()


def _drop(url: str, name: str) -> None:
    with MongoClient[dict[str, object]](url) as client:
        client.drop_database(name)


def _container() -> str | None:
    import docker
    from docker.errors import DockerException
    from testcontainers.core.container import DockerContainer

    try:
        docker.from_env(timeout=3).ping()
    except DockerException:
        return None
    container = DockerContainer("mongo:7").with_exposed_ports(27017)
    container.with_command(f"--replSet {REPLICA_SET} --bind_ip_all").start()
    atexit.register(container.stop)
    url = _direct(container.get_container_host_ip(), int(container.get_exposed_port(27017)))
    _wait_until_writable(url, "127.0.0.1:27017")
    return url


def _process() -> str:
    server = MongoServer(_directory())
    server.launch()
    atexit.register(server.end, signal.SIGKILL)
    server.wait_until_writable()
    return _direct("127.0.0.1", server.port)


def _directory() -> Path:
    """Removed when the tests end, after its servers."""
    directory = Path(tempfile.mkdtemp(prefix="imqtt-mongodb-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def is_secantus() -> bool:
    """Whether SecantusDB is used because `mongod` is missing."""
    return shutil.which("mongod") is None


class MongoServer:
    """A server process that can be stopped, paused and restarted on the same port and data.

    `mongod`, or else SecantusDB. `options` are added to its command line; `url` is the address of `database`.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.database = "imqtt"
        self.is_secantus = is_secantus()
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of a database."""
        address, _, options = _direct("127.0.0.1", self.port).partition("?")
        return f"{address}{self.database}?{options}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Returns when it accepts writes; at once if it is running."""
        if self.running:
            return
        self.launch()
        await asyncio.to_thread(self.wait_until_writable)

    async def stop(self) -> None:
        """SIGTERM."""
        await asyncio.to_thread(self.end, signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self.end, signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open without answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    # --- without an event loop

    def launch(self) -> None:
        """Starts the process."""
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        if self.is_secantus:
            program = Path(sysconfig.get_path("scripts")) / "secantusd-py"
            command = [sys.executable, str(program), "--storage-path", str(data), "--sync-on-commit"]
        else:
            command = ["mongod", "--dbpath", str(data), "--bind_ip", "127.0.0.1", "--replSet", REPLICA_SET]
        with (self._directory / "mongodb.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *self._options], stdout=log, stderr=log,
                preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it takes no lock
            )  # fmt: skip

    def wait_until_writable(self) -> None:
        try:
            _wait_until_writable(
                _direct("127.0.0.1", self.port), "" if self.is_secantus else f"127.0.0.1:{self.port}"
            )
        except AssertionError as error:
            self.end(signal.SIGKILL)
            log = (self._directory / "mongodb.log").read_text(errors="replace")
            raise AssertionError(f"{error}: {log[-2_000:]}") from None

    def end(self, number: signal.Signals) -> None:
        """Sends the signal and waits for the end; a paused process is resumed first."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _direct(host: str, port: int) -> str:
    # A direct connection: the replica set of a container announces an address that is unreachable from
    # outside.
    return f"mongodb://{host}:{port}/?directConnection=true"


def _wait_until_writable(url: str, member: str) -> None:
    """Initiates a replica set of `member`, if given, and waits until it is primary."""
    deadline = time.monotonic() + WITHIN
    with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=500) as client:
        while True:
            with contextlib.suppress(PyMongoError):
                hello = client.admin.command("hello")
                if hello["isWritablePrimary"]:
                    return
                if member and "setName" not in hello:
                    members = [{"_id": 0, "host": member}]
                    client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            if time.monotonic() > deadline:
                raise AssertionError(f"MongoDB at {url} accepts no writes after {WITHIN:g} s")
            time.sleep(0.05)
