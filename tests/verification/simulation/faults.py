"""The faults of a simulated world. Each reports when it has had its effect."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from imqtt.broker.errors import LinkError
from imqtt.broker.link import LinkSettings
from tests.verification.simulation.broker import MAX_QUEUED, State
from tests.verification.simulation.devices import PASSWORD
from tests.verification.simulation.loop import Party
from tests.verification.simulation.rows import Backup
from tests.verification.simulation.world import WORKER_TTL, Worker, World

FUSE_CALLBACKS = 400  # a kill strikes within so many callbacks of its victim's
FUSE_SECONDS = 2.0  # or after so long, if it has nothing to do
COPIES = 4


class Faults:
    """Strikes the parts of one world, and lets go of them again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._backups: list[Backup] = [world.tables.copy()]
        self._snapshots: list[State] = []

    async def strike(self, name: str, after: float) -> None:
        """Does it to somebody, and undoes it; whoever is not there to be struck is left alone."""
        await asyncio.sleep(after)
        await FAULTS[name](self)

    async def keep_copies(self, faults: Collection[str], within: float) -> None:
        """Backups of the store and saved states of the broker, for faults that bring old ones back."""
        for _ in range(COPIES):
            await asyncio.sleep(within / COPIES)
            if "store restored" in faults:
                self._backups.append(self._world.tables.copy())
            if "broker restored" in faults:
                self._snapshots.append(self._world.broker.snapshot())

    def _a_worker(self) -> Worker:
        return self._loop.random.choice(self._world.workers)

    def _some_time(self, least: float, most: float) -> float:
        return least + (most - least) * self._loop.random.random()

    async def _somewhere(self, party: Party) -> None:
        """Waits until a party is at some point of what it does."""
        blown = asyncio.Event()
        party.light(int(self._loop.random.random() * FUSE_CALLBACKS), blown.set)
        with suppress(TimeoutError):
            async with asyncio.timeout(FUSE_SECONDS):
                await blown.wait()

    async def _worker_killed(self) -> None:
        worker = self._a_worker()
        if not worker.alive or worker.party is None:
            return
        await self._somewhere(worker.party)
        worker.kill()
        self._world.fault("worker killed", worker.name)
        await asyncio.sleep(self._some_time(0.1, 4.0))
        if not worker.alive:
            worker.start()
        self._world.fault("worker killed", worker.name, phase="healed")

    async def _publisher_stalled(self) -> None:
        """What a worker publishes to devices does not leave it; and then it is killed."""
        worker = self._a_worker()
        if not worker.alive or worker.party is None:
            return
        links = self._world.broker.connections(worker.party)
        for link in links:
            if link.client_id.startswith("imqtt-server-events-"):
                link.stall(10.0)
                await asyncio.sleep(self._some_time(0.05, 1.5))
                worker.kill()
                self._world.fault("publisher stalled", worker.name)
                await asyncio.sleep(self._some_time(0.1, 2.0))
                if not worker.alive:
                    worker.start()

    async def _worker_paused(self) -> None:
        worker = self._a_worker()
        if worker.party is None or not worker.alive:
            return
        party = worker.party
        self._loop.pause(party)
        self._world.fault("worker paused", worker.name)
        await asyncio.sleep(self._some_time(0.05, 1.6 * WORKER_TTL))
        self._loop.resume(party)
        self._world.fault("worker paused", worker.name, phase="healed")

    async def _worker_left(self) -> None:
        worker = self._a_worker()
        if not worker.alive or worker.server is None:
            return
        self._world.fault("worker left", worker.name)
        await worker.leave()
        await asyncio.sleep(self._some_time(0.1, 3.0))
        if not worker.alive:
            worker.start()
        self._world.fault("worker left", worker.name, phase="healed")

    async def _worker_joined(self) -> None:
        worker = Worker(self._world, len(self._world.workers))
        self._world.workers.append(worker)
        worker.start()
        self._world.fault("worker joined", worker.name)

    async def _clock_stepped(self) -> None:
        worker = self._a_worker()
        worker.clock_offset = int(self._some_time(-50_000, 50_000))
        far = worker.clock_offset > 35_000
        if far or (worker.clock_offset < 0 and self._loop.random.random() < 0.3):
            worker.clock_offset *= 100  # beyond `clock_tolerance`
        self._world.fault("clock stepped", f"{worker.name} by {worker.clock_offset} ms")
        await asyncio.sleep(self._some_time(0.5, 5.0))
        worker.clock_offset = 0

    async def _device_killed(self) -> None:
        device = self._loop.random.choice([*self._world.sdk_devices, *self._world.plain_devices])
        party = device.party
        if party is None or not party.alive:
            return
        await self._somewhere(party)
        self._world.kill(party)
        self._world.fault("device killed", device.name)
        await asyncio.sleep(self._some_time(0.01, 2.0))
        if not party.alive and device.party is party:
            device.start()

    async def _device_paused(self) -> None:
        device = self._loop.random.choice([*self._world.sdk_devices, *self._world.plain_devices])
        party = device.party
        if party is None or not party.alive:
            return
        self._loop.pause(party)
        self._world.fault("device paused", device.name)
        await asyncio.sleep(self._some_time(0.05, 20.0))
        self._loop.resume(party)

    async def _device_disk_full(self) -> None:
        """Its process ends for that, and is started again when there is room."""
        device = self._loop.random.choice(self._world.sdk_devices)
        file = self._world.disk.file(device.path)
        file.failing = self._some_time(0.1, 0.9)
        await asyncio.sleep(self._some_time(0.05, 3.0))
        file.failing = 0.0
        await asyncio.sleep(self._some_time(0.0, 2.0))
        # A client that has met it may still be ending: it says goodbye first, once it is not paused any more.
        patience = 10.0
        while patience > 0 and not device.disk_failed:
            await asyncio.sleep(0.2)
            patience -= 0.0 if device.party is not None and device.party.paused else 0.2
        if device.disk_failed and device.party is not None:
            self._world.fault("device disk full", device.name)
            self._world.kill(device.party)
            device.start()

    async def _broker_back(self, kind: str, state: State | None) -> None:
        if not self._world.broker.running:
            return
        self._world.broker.crash()
        self._world.fault(kind, "broker", loses_state=True)
        await asyncio.sleep(self._some_time(0.05, 3.0))
        self._world.broker.start(state)
        self._world.fault(kind, "broker", phase="healed")

    async def _broker_wiped(self) -> None:
        await self._broker_back("broker wiped", None)

    async def _broker_restored(self) -> None:
        if self._snapshots:
            await self._broker_back("broker restored", self._loop.random.choice(self._snapshots))

    async def _broker_paused(self) -> None:
        self._loop.pause(self._world.broker.party)
        self._world.fault("broker paused", "broker")
        await asyncio.sleep(self._some_time(0.05, 3.0))
        self._loop.resume(self._world.broker.party)

    async def _connection_cut(self) -> None:
        """Both ends notice, or only one of them, or neither before its keep-alive has run out."""
        links = self._world.broker.connections()
        if not links:
            return
        link = self._loop.random.choice(links)
        told = self._loop.random.choice(
            ((True, True), (True, True), (True, False), (False, True), (False, False))
        )
        link.cut(client=told[0], broker=told[1])
        self._world.fault("connection cut", f"{link}, noticed by {told}")

    async def _connection_stalled(self) -> None:
        links = self._world.broker.connections()
        if not links:
            return
        link = self._loop.random.choice(links)
        link.stall(self._some_time(0.1, 30.0))
        self._world.fault("connection stalled", str(link))

    async def _store_doubtful(self) -> None:
        """Some writes end without an answer: done, half done, not done, or done a while later."""
        self._world.tables.unknown = self._some_time(0.05, 0.6)
        await asyncio.sleep(self._some_time(0.5, 4.0))
        self._world.tables.unknown = 0.0
        if self._world.tables.doubted:
            self._world.fault("store doubtful", f"{self._world.tables.doubted} writes")

    async def _store_away(self) -> None:
        self._world.tables.away = True
        self._world.fault("store away", "store")
        await asyncio.sleep(self._some_time(0.1, 4.0))
        self._world.tables.away = False
        self._world.fault("store away", "store", phase="healed")

    async def _store_slow(self) -> None:
        self._world.tables.slow = self._some_time(0.1, 0.5)
        self._world.fault("store slow", "store")
        await asyncio.sleep(self._some_time(0.5, 6.0))
        self._world.tables.slow = 0.0

    async def _state_mistaken(self) -> None:
        """It recalls what it has never heard of, as a Bloom filter may."""
        self._world.state.mistaken = 0.3
        self._world.fault("state mistaken", "state")
        await asyncio.sleep(self._some_time(0.5, 6.0))
        self._world.state.mistaken = 0.0

    async def _store_full(self) -> None:
        self._world.tables.full = True
        self._world.fault("store full", "store")
        await asyncio.sleep(self._some_time(0.1, 2.0))
        self._world.tables.full = False
        self._world.fault("store full", "store", phase="healed")

    async def _store_restored(self) -> None:
        """As an operator does it: every server down, the backup put back, the servers up."""
        if self._world.closed:
            return
        self._world.closed = True
        for worker in self._world.workers:
            worker.kill()
        await asyncio.sleep(0.2)
        chosen = self._loop.random.randrange(len(self._backups))
        del self._backups[chosen + 1 :]  # of a log that is no more
        self._world.restore(self._backups[chosen])
        self._world.fault("store restored", "store")
        self._world.closed = False
        for worker in self._world.workers:
            worker.start()

    async def _state_flushed(self) -> None:
        for _ in range(3):
            self._world.state.flush()
            self._world.fault("state flushed", "state")
            await asyncio.sleep(self._some_time(0.05, 1.0))

    async def _state_away(self) -> None:
        self._world.state.away = True
        self._world.fault("state away", "state")
        await asyncio.sleep(self._some_time(0.1, 6.0))
        self._world.state.away = False
        self._world.fault("state away", "state", phase="healed")

    async def _rival(self) -> None:
        """Somebody takes a partition's session, holds it a while, and acks nothing."""
        number = self._loop.random.randrange(self._world.tables.identity.partitions)
        clean = self._loop.random.random() < 0.5
        settings = LinkSettings(
            "broker", 1884, f"imqtt-server-{number}", username="imqtt-server", password=PASSWORD,
            clean_start=clean, session_expiry=0 if clean else 7 * 86_400,
        )  # fmt: skip
        party = self._loop.party("rival")
        with suppress(OSError, LinkError, TimeoutError):
            link = await party.spawn(self._world.connect(settings))
            self._world.fault("rival", settings.client_id, loses_state=clean)
            await asyncio.sleep(self._some_time(0.01, 2.0))
            await party.spawn(link.close())

    async def _queue_limited(self) -> None:
        """With a worker away, so that there is something to queue."""
        broker, worker = self._world.broker, self._a_worker()
        dropped, broker.max_queued = broker.dropped, 1
        worker.kill()
        await asyncio.sleep(self._some_time(0.5, 4.0))
        if not worker.alive:
            worker.start()
        await asyncio.sleep(self._some_time(0.0, 1.0))
        broker.max_queued = MAX_QUEUED
        if broker.dropped > dropped:
            self._world.fault("queue limited", f"{broker.dropped - dropped} dropped", loses_state=True)

    async def _old_replayed(self) -> None:
        for device in self._world.plain_devices:
            if count := device.replay(3):
                self._world.fault("old replayed", f"{device.name}: {count}")


Strike = Callable[[Faults], Awaitable[None]]

FAULTS: dict[str, Strike] = {
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
