"""The simulated world: one broker, one store, one state, and workers and devices as processes.

Server and SDK are unchanged. Their interfaces to the outside are replaced: the server's link, the SDK's
connection and database, the store and the state.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

from imqtt.config import ServerConfig
from imqtt.errors import ImqttError
from imqtt.protocol import Format
from imqtt.server.app import Server
from imqtt.stores.base import Identity
from tests.verification.checker.history import Fault, Line, Restored, Stored
from tests.verification.simulation.broker import Broker
from tests.verification.simulation.database import Disk
from tests.verification.simulation.devices import MessagePlan, PlainDevice, SdkDevice
from tests.verification.simulation.link import connector_to
from tests.verification.simulation.loop import EPOCH, Loop, Process
from tests.verification.simulation.mqtt import SimMqtt
from tests.verification.simulation.release import DEBIAN, Release
from tests.verification.simulation.state import SharedState, SimState
from tests.verification.simulation.store import SimStore, Tables

WORKER_TTL = 10  # seconds: a fifth of the usual heartbeats, which take much of a world's time
RESTART_SECONDS = 1.0  # until a worker that exited is restarted, as by a service manager


class Worker:
    """A server process, which may be killed and restarted."""

    def __init__(self, world: "World", number: int) -> None:
        self.name = f"worker-{number}"
        self.clock_offset = 0  # milliseconds
        self.process: Process | None = None
        self.server: Server | None = None
        self.store: SimStore | None = None
        self._world = world
        self._stop: asyncio.Event | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def clock(self) -> int:
        return int((EPOCH + self._world.loop.time()) * 1_000) + self.clock_offset

    def start(self) -> None:
        if self._world.is_restoring:
            return
        self.process = self._world.loop.new_process(self.name)
        self.process.spawn(self._run(), self.name)

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            assert self.process is not None
            self._world.kill(self.process)
        self.server = None

    async def leave(self) -> None:
        """SIGTERM: finish the present work and exit."""
        if self.alive and self._stop is not None:
            assert self.process is not None
            self.process.call_soon(self._stop.set)
            await self._world.until(lambda: not self.alive, 60.0)

    async def _run(self) -> None:
        world = self._world
        self._stop = asyncio.Event()
        while not self._stop.is_set():
            store = self.store = SimStore(world.tables, world.loop.random)
            config = ServerConfig(worker_ttl=WORKER_TTL, max_batch=world.max_batch)
            state = SimState(world.state, world.loop.random)
            try:
                async with Server(config, store, state, self.clock) as server:
                    self.server = server
                    waits = [asyncio.create_task(self._stop.wait()), asyncio.create_task(server.wait())]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    if waits[1].done():
                        waits[1].result()
            except ImqttError as error:
                world.note(f"{self.name} ended: {error}")
                await asyncio.sleep(RESTART_SECONDS)
            except Exception as error:
                world.errors.append(f"{self.name}: {error!r}")
                raise
            finally:
                self.server = None
        assert self.process is not None
        self._world.kill(self.process)


class World:
    """`lines` is the history, `trace` the events in words, if requested."""

    def __init__(
        self,
        loop: Loop,
        *,
        partitions: int,
        prefix: bool,
        max_batch: int,
        release: Release = DEBIAN,
        trace: bool = False,
    ) -> None:
        self.loop = loop
        self.max_batch = max_batch
        self.lines: list[Line] = []
        self.trace: list[str] | None = [] if trace else None
        self.errors: list[str] = []  # failures that no fault explains
        self.fired: dict[str, int] = {}
        self.broker = Broker(loop, release=release)
        self.tables = Tables(loop, Identity(partitions, "5eed" * 4), ordered_prefix=prefix)
        self.state = SharedState(rate=1_000, burst=4_000)
        self.disk = Disk(loop)
        if trace:
            self.tables.noted = self.note
        self.workers: list[Worker] = []
        self.sdk_devices: list[SdkDevice] = []
        self.plain_devices: list[PlainDevice] = []
        self.connect = connector_to(self.broker)
        self.epoch = 0
        self.is_restoring = False  # the store is being restored, so no server may run

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Connects servers to the simulated broker."""
        with mock.patch("imqtt.server.app.connect", self.connect):
            yield

    def sdk_device(self, name: str, plan: MessagePlan, format: Format) -> SdkDevice:
        """A device on this world's disk and broker."""
        transport = partial(SimMqtt.open, self.broker)
        return SdkDevice(self.loop, name, plan, self.write, format, self.disk, transport)

    # --- records

    def write(self, line: Line) -> None:
        self.lines.append(line)
        if self.trace is not None and not isinstance(line, Stored):
            shown = {
                name: value
                for name in line.__struct_fields__
                if (value := getattr(line, name)) not in ("", ())
            }
            process = shown.pop("process")
            shown.pop("at")
            words = " ".join(f"{name}={_short(value)}" for name, value in shown.items())
            self.note(f"{process:14} {type(line).__name__.lower():8} {words}")

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():9.4f}  {text}")

    def record_fault(
        self, kind: str, target: str, *, phase: str = "fired", loses_state: bool = False
    ) -> None:
        """A fault has had an effect."""
        if phase == "fired":
            self.fired[kind] = self.fired.get(kind, 0) + 1
        self.write(Fault("world", self.loop.time(), kind, target, phase, "", loses_state))

    # --- processes

    def kill(self, process: Process) -> None:
        """Kills the process; its kernel closes the connections."""
        self.loop.kill(process)
        self.broker.close_connections_of(process)

    async def until(self, condition: Callable[[], bool], within: float, pause: float = 0.2) -> bool:
        """Waits in virtual time; False if the condition does not hold in time."""
        deadline = self.loop.time() + within
        while not condition():
            if self.loop.time() > deadline:
                return False
            await asyncio.sleep(pause)
        return True

    # --- the store

    def record_store(self) -> None:
        """Records the store's contents at the end of an epoch."""
        now = self.loop.time()
        for conversation, (rows, marks) in self.tables.dump().items():
            self.write(Stored("store", now, self.epoch, conversation, rows, marks))

    def restore(self, backup: "Tables.Copy") -> None:
        """Restores a backup. Every worker must be down."""
        self.record_store()
        self.tables.restore(backup)
        heads = {conversation: len(rows) for conversation, (rows, _) in self.tables.dump().items()}
        self.write(Restored("world", self.loop.time(), self.epoch, heads))
        self.epoch += 1


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) < 60 else text[:57] + "..."
