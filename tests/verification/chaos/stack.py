"""The two stacks of real parts, connected through proxies that inject network faults.

    sqlite    Mosquitto, one worker on SQLite with its state in the process
    scale     Mosquitto, MongoDB (or a server of its protocol), Redis, and several workers

Every worker has its own proxies to the broker, the store and the state, and every device has one to the
broker, named `worker-1>broker`, `worker-1>store`, `worker-1>redis`, `alice@phone>broker`.
"""

import asyncio
import os
import re
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import msgspec

from imqtt.errors import SetupError
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.installation import configure
from tests.cli.commands import imqtt_process
from tests.mongodb import MongoServer
from tests.ports import listeners
from tests.redis_server import RedisServer
from tests.services import ServerProcess, eventually
from tests.verification.chaos.devices import DeviceProcess, Plan
from tests.verification.chaos.disk import Disk
from tests.verification.chaos.proxy import Proxy
from tests.verification.chaos.worker import Clock
from tests.verification.checker.history import History

STACKS = ("sqlite", "scale")
WORKERS = {"sqlite": 1, "scale": 3}
PARTITIONS = 16  # the default of a new store
START_SECONDS = 90.0  # on a busy machine, with all parts starting at once
READS_WAITING = 200  # few, so that a burst of reads exceeds it


class Broker(Mosquitto):
    """A broker whose limits may be lowered and whose state may be saved and restored.

    `options` replace those of its configuration from the next start.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, **listeners())
        self.options: dict[str, str] = {}

    @property
    def state(self) -> Path:
        """The file of its sessions and their queues."""
        return self.files.state

    @property
    def log_size(self) -> int:
        """The present end of its log, for `has_logged`."""
        return self.log.stat().st_size

    def has_logged(self, text: str, since: int) -> bool:
        """Whether it has logged this after byte `since`."""
        with self.log.open("rb") as log:
            log.seek(since)
            return text.encode() in log.read()

    def last_port(self, client: str) -> int:
        """The port of this client's latest connection; 0 if it never connected."""
        ports = re.findall(rf"connected from [\d.]+:(\d+) as {re.escape(client)} ", self.log.read_text())
        return int(ports[-1]) if ports else 0

    def has_logged_takeover(self, client: str, since: int) -> bool:
        """Whether it has logged after byte `since` that a new connection ended one of this client's.

        Since 2.1 it also logs a takeover of connections that had already ended.
        """
        log = self.log.read_bytes()
        before, after = log[:since].decode(), log[since:].decode()
        if f"Client {client} already connected, closing old connection" in after:
            return True
        match = re.search(rf"(Client {re.escape(client)} \[\S+\] disconnected: )session taken over", after)
        return match is not None and match[1] not in before

    async def save(self) -> int:
        """Makes it save its state now. Returns the size in bytes."""
        assert self.pid is not None
        before = self.state.stat().st_mtime_ns if self.state.exists() else 0
        os.kill(self.pid, signal.SIGUSR1)
        await eventually(
            lambda: self.state.exists() and self.state.stat().st_mtime_ns != before,
            within=30, what="the broker's saved state",
        )  # fmt: skip
        return self.state.stat().st_size

    async def start(self) -> None:
        """A killed broker may leave its ports busy for a moment."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                await super().start()
            except SetupError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    def pause(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGCONT)

    def _prepare(self) -> None:
        super()._prepare()
        if self.options:
            text = configure(self.files.configuration.read_text(), options=self.options, listeners={})
            self.files.configuration.write_text(text)


class Worker:
    """One `imqtt serve`. If `should_run` is set and no process runs, it has exited on its own."""

    def __init__(self, name: str, stack: "Stack") -> None:
        self.name = name
        self.should_run = False
        self.directory = stack.directory / name
        self.directory.mkdir(exist_ok=True)
        self.clock = Clock(self.directory / "clock")
        self._stack = stack
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    async def start(self) -> None:
        """Returns when it is ready."""
        stack = self._stack
        settings: dict[str, object] = {
            "broker_port": stack.proxies[f"{self.name}>broker"].port,
            "store": stack.store_url_for(self.name),
            "reads_waiting": READS_WAITING,
        }
        if stack.redis is not None:
            settings["state"] = f"redis://127.0.0.1:{stack.proxies[f'{self.name}>redis'].port}/0"
        command = ("tests.verification.chaos.worker", str(self.directory / "clock"))
        self._process = ServerProcess(stack.broker, self.directory, command=command, **settings)
        await self._process.start(within=START_SECONDS)
        self.should_run = True

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.should_run = False
        return 0 if self._process is None else await self._process.stop()

    async def kill(self) -> None:
        self.should_run = False
        if self._process is not None:
            await self._process.kill()

    def pause(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGCONT)

    @property
    def last_log_line(self) -> str:
        return " ".join(self.log.read_text(errors="replace").splitlines()[-1:])


class Stack:
    """`async with Stack("scale", directory, history)`: all parts run; no device is connected yet.

    `epoch`: the number of restores of the store; `history` receives their lines. `initial_workers`: the
    workers of a healthy stack.
    """

    def __init__(self, kind: str, directory: Path, history: History, workers: int = 0) -> None:
        self.kind = kind
        self.directory = directory
        self.history = history
        self.epoch = 0
        self.devices: dict[str, DeviceProcess] = {}
        self.broker = Broker(directory / "broker")
        self.proxies: dict[str, Proxy] = {}
        self.workers: dict[str, Worker] = {}
        self.mongo = MongoServer(directory / "mongodb") if kind == "scale" else None
        self.redis = RedisServer(directory / "redis") if kind == "scale" else None
        self.disk = Disk(directory / "disk") if kind == "sqlite" else None
        self.device_disk = Disk(directory / "device-disk")  # holds the store of the first device
        self.backup: Path | None = None
        self.broker_copy: Path | None = None
        self._database = "imqtt"
        self.initial_workers = tuple(f"worker-{number + 1}" for number in range(workers or WORKERS[kind]))
        self._copies = 0
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            for disk in (self.disk, self.device_disk):
                if disk is not None:
                    exits.enter_context(disk)
            await exits.enter_async_context(self.broker)
            for part in (self.mongo, self.redis):
                if part is not None:
                    await exits.enter_async_context(part)
            for name in self.initial_workers:
                await self.add_worker(name, exits)
            for worker in self.workers.values():
                await worker.start()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.broker.pid is not None:
            self.broker.resume()  # a stopped process does not handle SIGTERM
        await self._exits.aclose()

    async def add_worker(self, name: str, exits: AsyncExitStack | None = None) -> Worker:
        """A worker with its proxies, not started."""
        exits = exits or self._exits
        onward = {"broker": self.broker.internal_port}
        if self.mongo is not None and self.redis is not None:
            onward |= {"store": self.mongo.port, "redis": self.redis.port}
        for part, port in onward.items():
            await self.add_proxy(f"{name}>{part}", port, exits)
        worker = self.workers[name] = Worker(name, self)
        exits.push_async_callback(worker.kill)
        return worker

    async def add_device(self, plan: Plan) -> DeviceProcess:
        """A device with its proxy to the broker, not started. Sets the password and broker of its plan."""
        proxy = await self.add_proxy(f"{plan.process}>broker", self.broker.port)
        password = await asyncio.to_thread(self.broker.passwords.add, plan.process)
        brokers = (f"127.0.0.1:{proxy.port}",)
        device = DeviceProcess(msgspec.structs.replace(plan, password=password, brokers=brokers))
        self.devices[plan.process] = device
        self._exits.push_async_callback(device.kill)
        return device

    async def add_proxy(self, name: str, port: int, exits: AsyncExitStack | None = None) -> Proxy:
        proxy = await (exits or self._exits).enter_async_context(Proxy(port, name))
        self.proxies[name] = proxy
        return proxy

    # --- the store

    @property
    def store(self) -> str:
        """The store's address, not through a proxy."""
        if self.mongo is not None:
            return self._mongo_url(self.mongo.port)
        return f"sqlite:///{self._sqlite}"

    @property
    def _sqlite(self) -> Path:
        assert self.disk is not None
        return self.disk.directory / "imqtt.db"

    def store_url_for(self, worker: str) -> str:
        """The store's address for a worker."""
        return self.store if self.mongo is None else self._mongo_url(self.proxies[f"{worker}>store"].port)

    def _mongo_url(self, port: int) -> str:
        return f"mongodb://127.0.0.1:{port}/{self._database}?directConnection=true"

    @property
    def backup_url(self) -> str:
        return f"sqlite:///{self.backup}"

    async def back_up(self) -> None:
        """Backs up the store while its servers run, and copies the broker's state."""
        self._copies += 1
        backup = self.directory / f"backup-{self._copies}.db"
        await self._copy(self.store, f"sqlite:///{backup}", "--live")
        self.backup = backup
        await self.broker.save()
        self.broker_copy = self.directory / f"mosquitto-{self._copies}.db"
        shutil.copyfile(self.broker.state, self.broker_copy)

    async def restore(self) -> None:
        """Restores the backup as docs/backup.md describes; no server may be running."""
        assert self.backup is not None
        if self.mongo is not None:
            self._copies += 1
            self._database = f"imqtt{self._copies}"
            await self._copy(f"sqlite:///{self.backup}", self.store)
            return
        for suffix in ("", "-wal", "-shm"):
            self._sqlite.with_name(self._sqlite.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self.backup, self._sqlite)

    async def _copy(self, source: str, target: str, *options: str) -> None:
        copied = await imqtt_process("store", "copy", source, target, "--quiet", *options, within=120)
        if copied.status:
            raise AssertionError(f"imqtt store copy {source} {target}: {copied.status}, {copied.err}")

    def internal(self) -> dict[str, object]:
        """Settings of a link to the internal listener, as a server uses them."""
        return {
            "host": INTERNAL_HOST, "port": self.broker.internal_port,
            "username": "imqtt-server", "password": self.broker.server_password,
        }  # fmt: skip
