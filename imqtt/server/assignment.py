"""Which partitions this worker holds: the ones assigned to it by a hash that every live worker computes.

No correctness depends on it: the broker decides between two workers that take a session, and the store
between two that append to one log. A wrong assignment only causes duplicate work.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from imqtt.core.live_workers import LiveWorkers
from imqtt.core.partitions import assign
from imqtt.server.liveness import Liveness
from imqtt.server.partition import Partition
from imqtt.server.peer_discovery import PeerDiscovery
from imqtt.server.pipeline import Pipeline
from imqtt.server.problems import Problems
from imqtt.state.base import Holding, State, StateAway, Worker

log = logging.getLogger(__name__)

BEATS = 10  # heartbeats within the time after which a silent worker is considered dead
STABLE_BEATS = 2  # heartbeats for which a view of the live workers must be stable before it is acted on
HANDOVER_SECONDS = 15.0  # after which a partition is taken from a live worker that does not release it
STUCK_SECONDS = 10.0  # without a successful write or session, a worker is unfit, unless all are
UNFIT_SECONDS = 300.0  # for which a worker that was refused a session stays unfit
DRAIN_SECONDS = 10.0  # for unfinished work when the process ends


@dataclass(eq=False, repr=False)
class Assignment:
    """Sends this worker's heartbeats, and takes and releases partitions as workers come and go.

    `ttl`: seconds without a heartbeat before a worker is considered dead. If the state is not shared, there
    are no other workers, and this one holds every partition at once.
    """

    me: Worker
    state: State
    pipeline: Pipeline
    partitions: Sequence[Partition]
    discovery: PeerDiscovery
    liveness: Liveness
    problems: Problems
    ttl: float
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._beat_seconds = self.ttl / BEATS
        self._live = LiveWorkers(STABLE_BEATS * self._beat_seconds if self.state.shared else 0.0)
        self._holding: dict[int, asyncio.Task[None]] = {}
        self._ready: dict[int, asyncio.Event] = {}
        self._starting = True  # until this worker has held a partition
        self._unfit_until = 0.0  # by the event loop's clock
        self._awaited: dict[int, float] = {}  # partitions that another worker must release: since when
        self._beats = asyncio.Condition()
        self._known = 0  # heartbeats that were begun
        self._answered = 0  # the number of the last heartbeat whose answer was acted on, or that failed
        self._owners: tuple[frozenset[str], list[str]] = (frozenset(), [])  # of the last assignment
        self._seen_at = asyncio.get_running_loop().time()  # of this worker's last heartbeat
        self._leaving = self._left = False

    @property
    def worker(self) -> Worker:
        """This worker, as its heartbeats describe it now."""
        return msgspec.structs.replace(
            self.me,
            beats=self._known,
            holdings=self.holdings(),
            leaving=self._leaving,
            stuck=self.problems.store.seconds > STUCK_SECONDS or self._is_refused(),
            trouble=self._trouble(),
        )

    def holdings(self) -> tuple[Holding, ...]:
        loop_now, now = asyncio.get_running_loop().time(), self.clock()
        holdings: list[Holding] = []
        for partition in self.partitions:
            if partition.held_since is None:
                continue
            unfinished, oldest = self.pipeline.unfinished(partition.number)
            since = now - int((loop_now - partition.held_since) * 1_000)
            holdings.append(Holding(partition.number, since, unfinished, int(oldest * 1_000), partition.cuts))
        return tuple(holdings)

    async def confirmed(self) -> None:
        """Waits until a fresh assignment is carried out, or the state turns out to be unreachable."""
        asked = self._known
        self.liveness.changed.set()
        async with self._beats:
            await self._beats.wait_for(lambda: self._answered > asked)

    async def outranked(self) -> bool:
        """Whether a worker that this one does not see in its state keeps the sessions that both take."""
        other = await self.discovery.outranked(self._live.acted or ())
        if other is None:
            self.problems.stranger.end()
        else:
            self.problems.stranger.start(
                f"worker {other.worker} ({other.host}, pid {other.pid}) serves the same store and is not in "
                "this worker's Redis: is it the same one? That worker keeps the partitions that both want"
            )
        return other is not None

    async def run(self, ready: asyncio.Event) -> None:
        """Runs until cancelled. Sets `ready` when this worker holds its partitions that others do not."""
        try:
            while True:
                await self._beat()
                for task in self._holding.values():
                    if task.done():
                        task.result()  # raises its error
                held = all(self._ready[number].is_set() for number in self._holding)
                if held and self._live.acted is not None:
                    ready.set()
                if any(partition.held_since is not None for partition in self.partitions):
                    self._starting = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._beat_seconds):
                        await self.liveness.changed.wait()
                self.liveness.changed.clear()
        finally:
            for task in self._holding.values():
                task.cancel()
            await asyncio.gather(*self._holding.values(), return_exceptions=True)

    async def leave(self) -> None:
        """Finishes the work begun and releases every partition; the others take them as they are released."""
        self._leaving = True
        self.liveness.changed.set()
        for number in self._holding:
            self.partitions[number].stop()
        if self._holding:
            await asyncio.wait(self._holding.values(), timeout=DRAIN_SECONDS)
        self._left = True
        await self.state.leave(self.me.id)

    async def _beat(self) -> None:
        if self._left:
            return
        self._known += 1
        number = self._known
        try:
            alive = await self.state.beat(self.worker, int(self.ttl * 1_000))
        except StateAway as error:
            log.debug("the live workers are unknown: %s", error)
            self.liveness.away = True
            self._live.see_nothing()
            if self._live.acted is not None:
                # Workers whose connections ended and did not come back are gone.
                self._live.acted -= self.liveness.gone(STABLE_BEATS * self._beat_seconds)
            self._follow(())
        else:
            self.liveness.away = False
            now = asyncio.get_running_loop().time()
            if now - self._seen_at > self.ttl:
                # The others hold this worker's partitions, and release them once they trust its heartbeats.
                self._live.see_nothing()
            self._seen_at = now
            self.liveness.keep({worker.id for worker in alive}, self.ttl)
            alive = [worker for worker in alive if not self.liveness.is_gone(worker)]
            staying = [worker for worker in alive if not worker.leaving]
            # A worker that alone cannot store anything leaves that to others. If none can, nothing moves.
            able = [worker for worker in staying if not worker.stuck] or staying
            before = self._live.acted
            if not self._live.see(now, frozenset(worker.id for worker in able)):
                return
            if before is None or before - (self._live.acted or frozenset()):
                # A worker that is gone may have registered devices without invalidating the others' lists: no
                # cached list may be read once its partitions are taken over.
                await self.state.distrust_devices()
            self._follow([worker for worker in alive if worker.id != self.me.id])
        async with self._beats:
            self._answered = number
            self._beats.notify_all()

    def _follow(self, others: Sequence[Worker]) -> None:
        """Takes the partitions assigned to this worker, and releases the others."""
        acted = self._live.acted
        if acted is None or self._leaving:
            return
        held_by_others = {holding.partition for worker in others for holding in worker.holdings}
        now = asyncio.get_running_loop().time()
        if acted != self._owners[0]:
            self._owners = (acted, assign(len(self.partitions), acted))
        for number, owner in enumerate(self._owners[1]):
            if owner != self.me.id:
                self._awaited.pop(number, None)
                if number in self._holding:
                    log.debug("partition %d goes to another worker", number)
                    self.partitions[number].stop()
            elif number in self._holding:
                cut_off = self._ready[number].is_set() and self.partitions[number].held_since is None
                if cut_off and number in held_by_others:
                    self.partitions[number].stop()  # taken while this worker was away; release it first
            else:
                since = self._awaited.setdefault(number, now)
                if number not in held_by_others or now - since > HANDOVER_SECONDS:
                    del self._awaited[number]
                    self._hold(number)

    def _hold(self, number: int) -> None:
        ready = self._ready[number] = asyncio.Event()
        run = self.partitions[number].run(ready, self, starting=self._starting)
        task = asyncio.create_task(run, name=f"partition-{number}")
        self._holding[number] = task
        task.add_done_callback(lambda _: self._let_go(number))

    def _let_go(self, number: int) -> None:
        task = self._holding[number]
        if task.cancelled() or task.exception() is None:
            del self._holding[number]
        self.liveness.changed.set()  # other workers wait for the release

    def _is_refused(self) -> bool:
        """Whether the broker has refused this worker a session for long, now or lately; others may get it."""
        now = asyncio.get_running_loop().time()
        links = [partition.connection for partition in self.partitions]
        if any(link.refusal and now - link.refused_at > STUCK_SECONDS for link in links):
            self._unfit_until = now + UNFIT_SECONDS
        return now < self._unfit_until

    def _trouble(self) -> str:
        contested = [str(partition.number) for partition in self.partitions if partition.contested]
        known = self.problems
        if not contested:
            known.stranger.end()
            known.contested.end_all()
        first = (known.access, known.cluster, known.stranger, known.store, known.storing)
        problems = [problem.text for problem in first]
        problems += [self.state.trouble, known.broker.text, known.clock.text, known.files.text]
        if contested:
            numbers = ", ".join(contested)
            problems.append(f"the sessions of partitions {numbers} are being taken from this worker")
        if refused := {one.number: why for one in self.partitions if (why := one.connection.refusal)}:
            numbers, refusal = ", ".join(map(str, refused)), next(iter(refused.values()))
            problems.append(f"the broker refuses the sessions of partitions {numbers}: {refusal}")
        return "; ".join(filter(None, problems))
