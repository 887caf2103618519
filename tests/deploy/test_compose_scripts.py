"""The scripts that deploy/compose.yaml starts its containers with, on this machine's own programs."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt.mosquitto.file_limits import public_connections
from imqtt.mosquitto.installation import executable
from imqtt.mosquitto.login import log_in
from tests.ports import free_port
from tests.services import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
HOST = "127.0.0.1"

needs_flock = pytest.mark.skipif(
    shutil.which("flock") is None, reason="flock is Linux's, as the containers are"
)


async def script(name: str, *arguments: object, **variables: object) -> str:
    """Runs a script to its end and returns its stdout."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", DEPLOY / "compose" / name, *map(str, arguments),
        env=os.environ | {"PATH": path} | {name: str(value) for name, value in variables.items()},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


class Container:
    """The files of a broker's container, with free ports in place of the fixed ones of `mosquitto-start`."""

    def __init__(self, directory: Path) -> None:
        self.data, self.work, self.secret = directory / "data", directory / "work", directory / "secret"
        self.data.mkdir()
        self.work.mkdir()
        self.secret.write_text("0123abcd\n")
        self.ports = {listener: free_port() for listener in (1883, 8083, 1884)}
        self.device = {"PASSWORDS": self.data / "passwords", "PID_FILE": self.data / "mosquitto.pid"}

    async def prepare(self) -> None:
        await script(
            "mosquitto-start", "true",
            SOURCE=DEPLOY / "mosquitto", DATA=self.data, WORK=self.work, SECRET=self.secret,
        )  # fmt: skip
        conf = self.work / "mosquitto.conf"
        text = conf.read_text().replace("\nuser mosquitto\n", "\nuser root\n")
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (
            re.findall(r"^max_connections (.*)$", text, re.MULTILINE) == [str(public_connections(files))] * 2
        )
        assert re.findall(r"^listener (.*)$", text, re.MULTILINE) == ["1883 0.0.0.0", "8083 0.0.0.0", "1884"]
        conf.write_text(re.sub(r"^listener (\d+).*$", self._here, text, flags=re.MULTILINE))
        health = self.work / "health" / "mosquitto_pub"
        health.write_text(health.read_text().replace("-p 1884", f"-p {self.ports[1884]}"))

    def _here(self, listener: re.Match[str]) -> str:
        return f"listener {self.ports[int(listener[1])]} {HOST}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            executable(), "-c", self.work / "mosquitto.conf", stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await eventually(lambda: self.accepts("imqtt-server", self.secret.read_text().strip()))
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()

    def accepts(self, username: str, password: str, listener: int = 1884) -> bool:
        try:
            return log_in(HOST, self.ports[listener], username, password)
        except ConnectionError:
            return False

    async def healthy(self) -> bool:
        """The health check of compose.yaml."""
        process = await asyncio.create_subprocess_exec(
            "mosquitto_pub", "-q", "1", "-t", "imqtt/health", "-n",
            env=os.environ | {"XDG_CONFIG_HOME": str(self.work / "health")},
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait() == 0


@pytest.fixture
async def container(tmp_path: Path) -> Container:
    container = Container(tmp_path)
    await container.prepare()
    return container


@needs_flock
async def test_the_broker_is_healthy_when_it_runs_and_accepts_the_servers_account(
    container: Container,
) -> None:
    assert not await container.healthy()
    async with container.running():
        assert await container.healthy()
        assert not container.accepts("imqtt-server", "guess")
    assert not await container.healthy()


@needs_flock
async def test_a_device_that_is_added_can_connect_and_one_that_is_revoked_cannot(
    container: Container,
) -> None:
    async with container.running():
        output = await script("device", "add", "alice@phone", "--json", **container.device)
        found = re.search(r'"password":"(\w+)"', output)
        assert found
        await eventually(lambda: container.accepts("alice@phone", found[1], 1883))
        assert "alice@phone" in await script("device", "list", **container.device)
        await script("device", "revoke", "alice@phone", **container.device)
        await eventually(lambda: not container.accepts("alice@phone", found[1], 1883))
        assert container.accepts("imqtt-server", "0123abcd")


async def test_devices_of_imqtt_0_1_are_renamed(container: Container) -> None:
    (container.data / "passwords").write_text("alice/phone:$7$101$salt$hash\n")
    assert "Renamed: alice@phone" in await script("device", "migrate", **container.device)
    assert "alice@phone" in await script("device", "list", **container.device)


@needs_flock
async def test_a_restart_keeps_the_devices_and_applies_a_new_secret(container: Container) -> None:
    await script("device", "add", "alice@phone", **container.device)
    (container.secret).write_text("4567cdef\n")
    await container.prepare()
    async with container.running():
        assert await container.healthy()
        assert not container.accepts("imqtt-server", "0123abcd")
    accounts = [line.partition(":")[0] for line in (container.data / "passwords").read_text().splitlines()]
    assert sorted(accounts) == ["alice@phone", "imqtt-server"]


@needs_flock
async def test_files_written_at_the_start_are_private_to_the_broker(container: Container) -> None:
    written = [
        path
        for directory in (container.data, container.work)
        for path in directory.rglob("*")
        if path.is_file()
    ]
    assert len(written) > 4
    assert [path.name for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="the tests have a Redis elsewhere")
async def test_redis_requires_its_password_which_is_not_in_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123abcd\n")
    port = free_port()
    paths = {"SOURCE": DEPLOY / "compose", "WORK": tmp_path, "SECRET": tmp_path / "secret"}
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", DEPLOY / "compose" / "redis-start", "--port", str(port), "--bind", HOST,
        env=os.environ | {name: str(path) for name, path in paths.items()}, cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:

        async def ask(password: str, *command: str) -> str:
            client = await asyncio.create_subprocess_exec(
                "redis-cli", "-h", HOST, "-p", str(port), *command,
                env=os.environ | {"REDISCLI_AUTH": password},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            return (await client.communicate())[0].decode()

        async def answers() -> bool:
            return "PONG" in await ask("0123abcd", "ping")

        await eventually(answers)
        assert "NOAUTH" in await ask("", "ping")
        assert "allkeys-lru" in await ask("0123abcd", "config", "get", "maxmemory-policy")
        assert "0123abcd" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.terminate()
        await process.wait()
