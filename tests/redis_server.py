"""Redis servers: one shared by a test run, and others that a test may stop, pause and kill.

The shared one is at `IMQTT_TEST_REDIS`, else a container if Docker answers, else a local process.
"""

import asyncio
import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

from imqtt.mosquitto.process import end_with_parent
from imqtt.state.redis.connection import TRIP_SECONDS
from imqtt.state.redis.state import RedisState
from tests.ports import free_port
from tests.services import WITHIN

ADDRESS = "IMQTT_TEST_REDIS"
RATE, BURST = 10, 20  # tokens per second, and burst


async def open_state(url: str, cluster: str = "c") -> RedisState:
    """A state with timeouts within which Redis answers even on a busy machine."""
    return await RedisState.open(url, cluster=cluster, rate=RATE, burst=BURST, trip_seconds=WITHIN)


def program() -> str | None:
    """Debian installs it on the PATH of ordinary users; others in directories of root's PATH."""
    return shutil.which(
        "redis-server", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin:/usr/local/bin"
    )


def missing(why: str) -> None:
    """Skips the test, or fails on CI."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


class RedisServer:
    """A local `redis-server` of a test. It stores nothing on disk and keeps its port over restarts.

    `options` are added to its command line.
    """

    def __init__(self, directory: Path, *options: str, password: str = "") -> None:
        self.port = free_port()
        self.password = password
        self._directory = directory
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address without the password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Returns when it answers."""
        self.launch()
        while not self.answers():
            await asyncio.sleep(0.01)

    def launch(self) -> None:
        path = program()
        if path is None:
            missing("redis-server is not installed")
        assert path is not None
        assert self._process is None
        self._directory.mkdir(parents=True, exist_ok=True)
        command = [
            path, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory),
            "--save", "", "--appendonly", "no", "--logfile", "redis.log", *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it takes no lock
        )  # fmt: skip
        self._deadline = time.monotonic() + WITHIN

    def answers(self) -> bool:
        """Whether it accepts commands. Fails with its log if it has ended."""
        assert self._process is not None
        if self._process.poll() is not None or time.monotonic() > self._deadline:
            log = self._directory / "redis.log"
            raise AssertionError(f"redis-server does not start: {log.read_text() if log.exists() else ''}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        return False

    async def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self, *states: RedisState) -> None:
        """Connections stay open without answers. These states soon treat it as unreachable."""
        self._signal(signal.SIGSTOP)
        for state in states:
            state._link.trip_seconds = TRIP_SECONDS

    def resume(self, *states: RedisState) -> None:
        for state in states:
            state._link.trip_seconds = WITHIN
        self._signal(signal.SIGCONT)

    def command(self, *words: str | int) -> bytes:
        """Sends one command over its own connection and returns the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), WITHIN) as connection:
            commands = [["AUTH", self.password]] if self.password else []
            commands.append([str(word) for word in words])
            for command in commands:
                parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in command)
                connection.sendall(f"*{len(command)}\r\n{parts}".encode())
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    def reads(self) -> int:
        """The number of reads from its connections, including this one."""
        info = self.command("INFO", "stats").decode()
        return int(info.split("total_reads_processed:")[1].split("\r\n")[0])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end(signal.SIGKILL)


@functools.cache
def shared_redis() -> str:
    """The address of a Redis that runs until the tests end. Each test uses its own cluster id."""
    return os.environ.get(ADDRESS) or _in_docker() or _local()


def _in_docker() -> str | None:
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        return None
    try:
        client = docker.from_env(timeout=5)
        client.ping()
    except DockerException:
        return None
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer("redis:7")
    container.start()
    atexit.register(container.stop)
    return f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"


def _local() -> str:
    directory = Path(tempfile.mkdtemp(prefix="imqtt-redis-"))
    server = RedisServer(directory)
    server.launch()

    def end() -> None:
        server._end(signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(end)
    while not server.answers():
        time.sleep(0.01)
    return server.url
