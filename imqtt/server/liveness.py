"""Signs from the broker that workers are gone, which come before their heartbeats expire in the state."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from imqtt.state.base import Worker


@dataclass(slots=True)
class _Suspicion:
    """Suspicion that a worker is gone. `beats`: its heartbeats at that time; None: not looked up yet."""

    since: float
    beats: int | None = None


class Liveness:
    """Written by peer discovery, which hears of lost connections, and read by the assignment."""

    def __init__(self) -> None:
        self.away = False  # whether this worker cannot reach its state: the live workers are unknown
        self.changed = asyncio.Event()  # set when a worker is suspected
        self._suspects: dict[str, _Suspicion] = {}

    def suspect(self, worker: str) -> None:
        """The broker has lost a worker's connection: it is considered dead until its next heartbeat."""
        self._suspects[worker] = _Suspicion(asyncio.get_running_loop().time())
        self.changed.set()

    def trust(self, worker: str) -> None:
        self._suspects.pop(worker, None)

    def is_gone(self, worker: Worker) -> bool:
        """Whether a worker that the state still lists is considered dead."""
        suspicion = self._suspects.get(worker.id)
        if suspicion is None:
            return False
        if suspicion.beats is not None and worker.beats > suspicion.beats:
            self.trust(worker.id)  # only its connection was lost
            return False
        suspicion.beats = worker.beats
        return True

    def keep(self, listed: Collection[str], seconds: float) -> None:
        """Drops suspicions older than this, except of workers that the state still lists."""
        now = asyncio.get_running_loop().time()
        self._suspects = {
            worker: suspicion
            for worker, suspicion in self._suspects.items()
            if worker in listed or now - suspicion.since < seconds
        }

    def gone(self, seconds: float) -> set[str]:
        """The workers that have been suspected for longer than this."""
        now = asyncio.get_running_loop().time()
        return {worker for worker, suspicion in self._suspects.items() if now - suspicion.since > seconds}
