"""Faults that kill, pause, stop or add processes."""

import asyncio
import os
from collections.abc import Collection
from typing import ClassVar

from imqtt.core.partitions import assign
from tests.cluster import Cluster
from tests.verification.chaos.faults import (
    Failed,
    Fault,
    NotFired,
    Shape,
    is_paused,
    process,
    processes,
    unpaused,
    wait_for_effect,
)
from tests.verification.chaos.stack import PARTITIONS, Stack

TRIES = 3  # one in eighty joining workers is assigned no partition
LEAVE_SECONDS = 60.0  # until a worker has finished its work


class ProcessFault(Fault):
    """A fault of one process, which works even if the process is unwell."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return processes(kind, shape)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return set()


class Kill(ProcessFault):
    """SIGKILL. Repaired by starting the process again."""

    loses_state: ClassVar[Collection[str]] = ("kill broker",)

    async def fire(self) -> str:
        part = process(self.stack, self.target)
        pid = part.pid
        if pid is None:
            raise NotFired(f"{self.target} is not running")
        await part.kill()
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return f"process {pid}"
        raise NotFired(f"process {pid} still exists")

    async def repair(self) -> str:
        part = process(self.stack, self.target)
        await part.start()
        return f"process {part.pid}"


class Pause(ProcessFault):
    """SIGSTOP: connections stay open and silent. Repaired by SIGCONT."""

    async def fire(self) -> str:
        part = process(self.stack, self.target)
        pid = part.pid
        if pid is None:
            raise NotFired(f"{self.target} is not running")
        part.pause()
        await wait_for_effect(lambda: is_paused(pid), f"process {pid} being stopped")
        return f"process {pid}"

    async def repair(self) -> str:
        await unpaused(process(self.stack, self.target))
        return ""


class PauseUntilTakeover(Pause):
    """A worker that is paused until others have taken over its partitions, and then resumed."""

    hold: ClassVar[float] = 2.0

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return shape.workers if len(shape.workers) > 1 else ()

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        other = "worker-2" if target == "worker-1" else "worker-1"
        return {"broker", "store", "redis", "seen", "shares", other, f"{other}>"}

    async def fire(self) -> str:
        stack = self.stack
        pid = stack.workers[self.target].pid
        assert stack.redis is not None
        cluster = Cluster(stack.store, stack.redis.url)

        async def holds(any_: bool) -> bool:
            return (pid in (await cluster.owners()).values()) is any_

        await wait_for_effect(lambda: holds(True), f"{self.target} holding a partition")
        await super().fire()
        await wait_for_effect(lambda: holds(False), f"others holding the partitions of {self.target}")
        return f"process {pid}, until others held its partitions"


class WorkerLeave(Fault):
    """SIGTERM: a worker finishes its work and exits with status 0. Repaired by starting it again."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return shape.workers

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target, "shares"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {"broker", "store", "redis"}

    async def fire(self) -> str:
        await stop_worker(self.stack, self.target)
        return "exit status 0"

    async def repair(self) -> str:
        await self.stack.workers[self.target].start()
        return f"process {self.stack.workers[self.target].pid}"


class WorkerJoin(Fault):
    """Another worker starts and takes its share of partitions. Repaired by stopping it."""

    hold: ClassVar[float] = 2.0

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return (f"worker-{len(shape.workers) + 1}",) if len(shape.workers) > 1 else ()

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"shares"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {"broker", "store", "redis", "seen", "clock"}

    async def fire(self) -> str:
        stack = self.stack
        worker = stack.workers.get(self.target) or await stack.add_worker(self.target)
        worker.clock.step(0)
        assert stack.redis is not None
        cluster = Cluster(stack.store, stack.redis.url)

        async def share() -> list[int]:
            return [number for number, pid in (await cluster.owners()).items() if pid == worker.pid]

        async def has_its_share() -> bool:
            seen = await cluster.workers()
            owners = assign(PARTITIONS, [member.id for member in seen])
            own = [member.id for member in seen if member.pid == worker.pid]
            return bool(own) and len(await share()) == owners.count(own[0])

        for _ in range(TRIES):
            await worker.start()
            await wait_for_effect(has_its_share, f"{self.target} holding its partitions")
            if held := await share():
                return f"process {worker.pid} holds partitions {held}"
            await stop_worker(stack, self.target)
        raise NotFired("it was never assigned a partition")

    async def repair(self) -> str:
        await stop_worker(self.stack, self.target)
        return "exit status 0"


async def stop_worker(stack: Stack, target: str) -> None:
    """Stops a worker with SIGTERM. Raises `Failed` unless it exits in time with status 0."""
    worker = stack.workers[target]
    if worker.pid is None:
        raise NotFired(f"{target} is not running")
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            status = await worker.stop()
    except TimeoutError:
        raise Failed(f"{target} did not end within {LEAVE_SECONDS:g} s of SIGTERM") from None
    if status != 0:
        raise Failed(f"{target} ended with status {status} on SIGTERM")
