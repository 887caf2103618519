"""The simulated world: one broker, one store, one state, and workers and devices as parties.

Server and SDK are the real ones, whole. What they reach the outside through is replaced: the server's link,
the SDK's connection and its database, store and state.
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
from tests.verification.simulation.devices import PlainDevice, SdkDevice, Sending
from tests.verification.simulation.link import connecting
from tests.verification.simulation.loop import EPOCH, Loop, Party
from tests.verification.simulation.mqtt import SimMqtt
from tests.verification.simulation.release import DEBIAN, Release
from tests.verification.simulation.state import SharedState, SimState
from tests.verification.simulation.store import SimStore, Tables

WORKER_TTL = 10  # seconds: a fifth of the beats of a real one, which cost much of a world's time
RESTART_SECONDS = 1.0  # until a worker that ended by itself is started again, as a service manager does


class Worker:
    """A server process, which may be killed and started again."""

    def __init__(self, world: "World", number: int) -> None:
        self.name = f"worker-{number}"
        self.clock_offset = 0  # milliseconds
        self.party: Party | None = None
        self.server: Server | None = None
        self.store: SimStore | None = None
        self._world = world
        self._stop: asyncio.Event | None = None

    @property
    def alive(self) -> bool:
        return self.party is not None and self.party.alive

    def clock(self) -> int:
        return int((EPOCH + self._world.loop.time()) * 1_000) + self.clock_offset

    def start(self) -> None:
        if self._world.closed:
            return
        self.party = self._world.loop.party(self.name)
        self.party.spawn(self._run(), self.name)

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            assert self.party is not None
            self._world.kill(self.party)
        self.server = None

    async def leave(self) -> None:
        """SIGTERM: finishes what was begun, and ends."""
        if self.alive and self._stop is not None:
            assert self.party is not None
            self.party.call_soon(self._stop.set)
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
                world.broken.append(f"{self.name}: {error!r}")
                raise
            finally:
                self.server = None
        assert self.party is not None
        self._world.kill(self.party)


class World:
    """All of it. `lines` is the history, `trace` what happened in words, if it is wanted."""

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
        self.broken: list[str] = []  # what no fault explains
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
        self.connect = connecting(self.broker)
        self.epoch = 0
        self.closed = False  # no server is to run: the store is being restored

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The server finds the simulated broker."""
        with mock.patch("imqtt.server.app.connect", self.connect):
            yield

    def sdk_device(self, name: str, sending: Sending, format: Format) -> SdkDevice:
        """A device on this world's disk and broker."""
        transport = partial(SimMqtt.open, self.broker)
        return SdkDevice(self.loop, name, sending, self.write, format, self.disk, transport)

    # --- what is told of it

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

    def fault(self, kind: str, target: str, *, phase: str = "fired", loses_state: bool = False) -> None:
        """Something was really done to somebody."""
        if phase == "fired":
            self.fired[kind] = self.fired.get(kind, 0) + 1
        self.write(Fault("world", self.loop.time(), kind, target, phase, "", loses_state))

    # --- parties

    def kill(self, party: Party) -> None:
        """The process is gone, and the kernel closes its connections."""
        self.loop.crash(party)
        self.broker.lose(party)

    async def until(self, condition: Callable[[], bool], within: float, pause: float = 0.2) -> bool:
        """Waits, in the world's time; False if it does not come to hold."""
        deadline = self.loop.time() + within
        while not condition():
            if self.loop.time() > deadline:
                return False
            await asyncio.sleep(pause)
        return True

    # --- the store

    def record_truth(self) -> None:
        """Writes down what the store holds, as the end of an epoch."""
        now = self.loop.time()
        for conversation, (rows, marks) in self.tables.dump().items():
            self.write(Stored("store", now, self.epoch, conversation, rows, marks))

    def restore(self, backup: "Tables.Copy") -> None:
        """What was stored since the backup is gone. Every worker has to be down."""
        self.record_truth()
        self.tables.restore(backup)
        heads = {conversation: len(rows) for conversation, (rows, _) in self.tables.dump().items()}
        self.write(Restored("world", self.loop.time(), self.epoch, heads))
        self.epoch += 1


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) < 60 else text[:57] + "..."
