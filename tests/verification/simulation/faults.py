"""The faults of a simulated world. Each is recorded when it has had its effect."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from imqtt.broker.errors import LinkError
from imqtt.broker.link import LinkSettings
from tests.verification.simulation.broker import MAX_QUEUED, State
from tests.verification.simulation.devices import PASSWORD
from tests.verification.simulation.loop import Process
from tests.verification.simulation.rows import Backup
from tests.verification.simulation.world import WORKER_TTL, Worker, World

RANDOM_POINT_CALLBACKS = 400  # a random point is within this many callbacks of the process
RANDOM_POINT_SECONDS = 2.0  # or after this time, if the process is idle
COPIES = 4


class Faults:
    """Injects faults into one world and repairs them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._backups: list[Backup] = [world.tables.copy()]
        self._snapshots: list[State] = []

    async def inject(self, name: str, after: float) -> None:
        """Injects a fault and repairs it; does nothing if the chosen target is down."""
        await asyncio.sleep(after)
        await FAULTS[name](self)

    async def keep_copies(self, faults: Collection[str], within: float) -> None:
        """Takes backups of the store and snapshots of the broker, for faults that restore them."""
        for _ in range(COPIES):
            await asyncio.sleep(within / COPIES)
            if "store restored" in faults:
                self._backups.append(self._world.tables.copy())
            if "broker restored" in faults:
                self._snapshots.append(self._world.broker.snapshot())

    def _a_worker(self) -> Worker:
        return self._loop.random.choice(self._world.workers)

    def _random_seconds(self, least: float, most: float) -> float:
        return least + (most - least) * self._loop.random.random()

    async def _at_random_point(self, process: Process) -> None:
        """Waits until a process is at a random point of its work."""
        reached = asyncio.Event()
        process.call_after(int(self._loop.random.random() * RANDOM_POINT_CALLBACKS), reached.set)
        with suppress(TimeoutError):
            async with asyncio.timeout(RANDOM_POINT_SECONDS):
                await reached.wait()

    async def _worker_killed(self) -> None:
        worker = self._a_worker()
        if not worker.alive or worker.process is None:
            return
        await self._at_random_point(worker.process)
        worker.kill()
        self._world.record_fault("worker killed", worker.name)
        await asyncio.sleep(self._random_seconds(0.1, 4.0))
        if not worker.alive:
            worker.start()
        self._world.record_fault("worker killed", worker.name, phase="repaired")

    async def _publisher_stalled(self) -> None:
        """A worker's packets to devices are held up, and then the worker is killed."""
        worker = self._a_worker()
        if not worker.alive or worker.process is None:
            return
        links = self._world.broker.connections(worker.process)
        for link in links:
            if link.client_id.startswith("imqtt-server-events-"):
                link.stall(10.0)
                await asyncio.sleep(self._random_seconds(0.05, 1.5))
                worker.kill()
                self._world.record_fault("publisher stalled", worker.name)
                await asyncio.sleep(self._random_seconds(0.1, 2.0))
                if not worker.alive:
                    worker.start()

    async def _worker_paused(self) -> None:
        worker = self._a_worker()
        if worker.process is None or not worker.alive:
            return
        process = worker.process
        self._loop.pause(process)
        self._world.record_fault("worker paused", worker.name)
        await asyncio.sleep(self._random_seconds(0.05, 1.6 * WORKER_TTL))
        self._loop.resume(process)
        self._world.record_fault("worker paused", worker.name, phase="repaired")

    async def _worker_left(self) -> None:
        worker = self._a_worker()
        if not worker.alive or worker.server is None:
            return
        self._world.record_fault("worker left", worker.name)
        await worker.leave()
        await asyncio.sleep(self._random_seconds(0.1, 3.0))
        if not worker.alive:
            worker.start()
        self._world.record_fault("worker left", worker.name, phase="repaired")

    async def _worker_joined(self) -> None:
        worker = Worker(self._world, len(self._world.workers))
        self._world.workers.append(worker)
        worker.start()
        self._world.record_fault("worker joined", worker.name)

    async def _clock_stepped(self) -> None:
        worker = self._a_worker()
        worker.clock_offset = int(self._random_seconds(-50_000, 50_000))
        far = worker.clock_offset > 35_000
        if far or (worker.clock_offset < 0 and self._loop.random.random() < 0.3):
            worker.clock_offset *= 100  # beyond `clock_tolerance`
        self._world.record_fault("clock stepped", f"{worker.name} by {worker.clock_offset} ms")
        await asyncio.sleep(self._random_seconds(0.5, 5.0))
        worker.clock_offset = 0

    async def _device_killed(self) -> None:
        device = self._loop.random.choice([*self._world.sdk_devices, *self._world.plain_devices])
        process = device.process
        if process is None or not process.alive:
            return
        await self._at_random_point(process)
        self._world.kill(process)
        self._world.record_fault("device killed", device.name)
        await asyncio.sleep(self._random_seconds(0.01, 2.0))
        if not process.alive and device.process is process:
            device.start()

    async def _device_paused(self) -> None:
        device = self._loop.random.choice([*self._world.sdk_devices, *self._world.plain_devices])
        process = device.process
        if process is None or not process.alive:
            return
        self._loop.pause(process)
        self._world.record_fault("device paused", device.name)
        await asyncio.sleep(self._random_seconds(0.05, 20.0))
        self._loop.resume(process)

    async def _device_disk_full(self) -> None:
        """The device's process ends because of the full disk and is restarted when there is space."""
        device = self._loop.random.choice(self._world.sdk_devices)
        file = self._world.disk.file(device.path)
        file.failing = self._random_seconds(0.1, 0.9)
        await asyncio.sleep(self._random_seconds(0.05, 3.0))
        file.failing = 0.0
        await asyncio.sleep(self._random_seconds(0.0, 2.0))
        # A client that met the full disk may still be closing, which takes longer while it is paused.
        patience = 10.0
        while patience > 0 and not device.disk_failed:
            await asyncio.sleep(0.2)
            patience -= 0.0 if device.process is not None and device.process.paused else 0.2
        if device.disk_failed and device.process is not None:
            self._world.record_fault("device disk full", device.name)
            self._world.kill(device.process)
            device.start()

    async def _broker_back(self, kind: str, state: State | None) -> None:
        if not self._world.broker.running:
            return
        self._world.broker.kill()
        self._world.record_fault(kind, "broker", loses_state=True)
        await asyncio.sleep(self._random_seconds(0.05, 3.0))
        self._world.broker.start(state)
        self._world.record_fault(kind, "broker", phase="repaired")

    async def _broker_wiped(self) -> None:
        await self._broker_back("broker wiped", None)

    async def _broker_restored(self) -> None:
        if self._snapshots:
            await self._broker_back("broker restored", self._loop.random.choice(self._snapshots))

    async def _broker_paused(self) -> None:
        self._loop.pause(self._world.broker.process)
        self._world.record_fault("broker paused", "broker")
        await asyncio.sleep(self._random_seconds(0.05, 3.0))
        self._loop.resume(self._world.broker.process)

    async def _connection_cut(self) -> None:
        """Both ends notice, or only one, or neither before its keep-alive expires."""
        links = self._world.broker.connections()
        if not links:
            return
        link = self._loop.random.choice(links)
        noticed = self._loop.random.choice(
            ((True, True), (True, True), (True, False), (False, True), (False, False))
        )
        link.cut(client=noticed[0], broker=noticed[1])
        self._world.record_fault("connection cut", f"{link}, noticed by {noticed}")

    async def _connection_stalled(self) -> None:
        links = self._world.broker.connections()
        if not links:
            return
        link = self._loop.random.choice(links)
        link.stall(self._random_seconds(0.1, 30.0))
        self._world.record_fault("connection stalled", str(link))

    async def _store_doubtful(self) -> None:
        """Some writes end without an answer: complete, partial, not done, or done later."""
        self._world.tables.unknown = self._random_seconds(0.05, 0.6)
        await asyncio.sleep(self._random_seconds(0.5, 4.0))
        self._world.tables.unknown = 0.0
        if self._world.tables.doubted:
            self._world.record_fault("store doubtful", f"{self._world.tables.doubted} writes")

    async def _store_away(self) -> None:
        self._world.tables.away = True
        self._world.record_fault("store away", "store")
        await asyncio.sleep(self._random_seconds(0.1, 4.0))
        self._world.tables.away = False
        self._world.record_fault("store away", "store", phase="repaired")

    async def _store_slow(self) -> None:
        self._world.tables.slow = self._random_seconds(0.1, 0.5)
        self._world.record_fault("store slow", "store")
        await asyncio.sleep(self._random_seconds(0.5, 6.0))
        self._world.tables.slow = 0.0

    async def _state_mistaken(self) -> None:
        """It returns keys that it never stored, as a Bloom filter may."""
        self._world.state.mistaken = 0.3
        self._world.record_fault("state mistaken", "state")
        await asyncio.sleep(self._random_seconds(0.5, 6.0))
        self._world.state.mistaken = 0.0

    async def _store_full(self) -> None:
        self._world.tables.full = True
        self._world.record_fault("store full", "store")
        await asyncio.sleep(self._random_seconds(0.1, 2.0))
        self._world.tables.full = False
        self._world.record_fault("store full", "store", phase="repaired")

    async def _store_restored(self) -> None:
        """As an operator does it: stop every server, restore the backup, start the servers."""
        if self._world.is_restoring:
            return
        self._world.is_restoring = True
        for worker in self._world.workers:
            worker.kill()
        await asyncio.sleep(0.2)
        chosen = self._loop.random.randrange(len(self._backups))
        del self._backups[chosen + 1 :]  # of the log that this restore replaces
        self._world.restore(self._backups[chosen])
        self._world.record_fault("store restored", "store")
        self._world.is_restoring = False
        for worker in self._world.workers:
            worker.start()

    async def _state_flushed(self) -> None:
        for _ in range(3):
            self._world.state.flush()
            self._world.record_fault("state flushed", "state")
            await asyncio.sleep(self._random_seconds(0.05, 1.0))

    async def _state_away(self) -> None:
        self._world.state.away = True
        self._world.record_fault("state away", "state")
        await asyncio.sleep(self._random_seconds(0.1, 6.0))
        self._world.state.away = False
        self._world.record_fault("state away", "state", phase="repaired")

    async def _rival(self) -> None:
        """Another client takes a partition's session, holds it for a while and acks nothing."""
        number = self._loop.random.randrange(self._world.tables.identity.partitions)
        clean = self._loop.random.random() < 0.5
        settings = LinkSettings(
            "broker", 1884, f"imqtt-server-{number}", username="imqtt-server", password=PASSWORD,
            clean_start=clean, session_expiry=0 if clean else 7 * 86_400,
        )  # fmt: skip
        process = self._loop.new_process("rival")
        with suppress(OSError, LinkError, TimeoutError):
            link = await process.spawn(self._world.connect(settings))
            self._world.record_fault("rival", settings.client_id, loses_state=clean)
            await asyncio.sleep(self._random_seconds(0.01, 2.0))
            await process.spawn(link.close())

    async def _queue_limited(self) -> None:
        """With a worker down, so that messages are queued."""
        broker, worker = self._world.broker, self._a_worker()
        dropped, broker.max_queued = broker.dropped, 1
        worker.kill()
        await asyncio.sleep(self._random_seconds(0.5, 4.0))
        if not worker.alive:
            worker.start()
        await asyncio.sleep(self._random_seconds(0.0, 1.0))
        broker.max_queued = MAX_QUEUED
        if broker.dropped > dropped:
            self._world.record_fault("queue limited", f"{broker.dropped - dropped} dropped", loses_state=True)

    async def _old_replayed(self) -> None:
        for device in self._world.plain_devices:
            if count := device.replay(3):
                self._world.record_fault("old replayed", f"{device.name}: {count}")


Injection = Callable[[Faults], Awaitable[None]]

FAULTS: dict[str, Injection] = {
    "worker killed": Faults._worker_killed,
    "publisher stalled": Faults._publisher_stalled,
    "worker paused": Faults._worker_paused,
    "worker left": Faults._worker_left,
    "worker joined": Faults._worker_joined,
    "clock stepped": Faults._clock_stepped,
    "device killed": Faults._device_killed,
    "device paused": Faults._device_paused,
    "device disk full": Faults._device_disk_full,
    "broker wiped": Faults._broker_wiped,
    "broker restored": Faults._broker_restored,
    "broker paused": Faults._broker_paused,
    "connection cut": Faults._connection_cut,
    "connection stalled": Faults._connection_stalled,
    "store doubtful": Faults._store_doubtful,
    "store away": Faults._store_away,
    "store slow": Faults._store_slow,
    "store full": Faults._store_full,
    "store restored": Faults._store_restored,
    "state flushed": Faults._state_flushed,
    "state away": Faults._state_away,
    "state mistaken": Faults._state_mistaken,
    "rival": Faults._rival,
    "queue limited": Faults._queue_limited,
    "old replayed": Faults._old_replayed,
}
