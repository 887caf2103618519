"""Processes that are killed, paused, or come and go."""

import asyncio
import os
from collections.abc import Collection
from typing import ClassVar

from imqtt.core.partitions import assign
from tests.overseer import Overseer
from tests.verification.chaos.faults import (
    Failed,
    Fault,
    NotFired,
    Shape,
    is_paused,
    process,
    processes,
    shows,
    unpaused,
)
from tests.verification.chaos.parts import PARTITIONS, Stack

TRIES = 3  # one in eighty workers that join has drawn no partition
LEAVE_SECONDS = 60.0  # for a worker to finish what it began


class OfProcess(Fault):
    """What is done to one process, which need not be well for it."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return processes(kind, shape)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return set()


class Kill(OfProcess):
    """SIGKILL. Healed by starting it again."""

    forgets: ClassVar[Collection[str]] = ("kill broker",)

    async def fire(self) -> str:
        part = process(self.stack, self.target)
        pid = part.pid
        if pid is None:
            raise NotFired(f"{self.target} does not run")
        await part.kill()
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return f"process {pid}"
        raise NotFired(f"process {pid} is still there")

    async def heal(self) -> str:
        part = process(self.stack, self.target)
        await part.start()
        return f"process {part.pid}"


class Pause(OfProcess):
    """SIGSTOP: its connections stay, and it says nothing. Healed by SIGCONT."""

    async def fire(self) -> str:
        part = process(self.stack, self.target)
        pid = part.pid
        if pid is None:
            raise NotFired(f"{self.target} does not run")
        part.pause()
        await shows(lambda: is_paused(pid), f"process {pid} being stopped")
        return f"process {pid}"

    async def heal(self) -> str:
        await unpaused(process(self.stack, self.target))
        return ""


class Sleep(Pause):
    """A worker that is paused until others have taken what was its own, and then wakes."""

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
        overseer = Overseer(stack.store, stack.redis.url)

        async def holds(any_: bool) -> bool:
            return (pid in (await overseer.owners()).values()) is any_

        await shows(lambda: holds(True), f"{self.target} holding a partition")
        await super().fire()
        await shows(lambda: holds(False), f"others holding what was {self.target}'s")
        return f"process {pid}, until others held what was its own"


class Leave(Fault):
    """SIGTERM: a worker finishes what it began, and its exit status is 0. Healed by starting it again."""

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
        await left(self.stack, self.target)
        return "exit status 0"

    async def heal(self) -> str:
        await self.stack.workers[self.target].start()
        return f"process {self.stack.workers[self.target].pid}"


class Join(Fault):
    """One more worker comes, and takes its share. Healed by its leaving."""

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
        overseer = Overseer(stack.store, stack.redis.url)

        async def share() -> list[int]:
            return [number for number, pid in (await overseer.owners()).items() if pid == worker.pid]

        async def has_its_share() -> bool:
            seen = await overseer.workers()
            owners = assign(PARTITIONS, [member.id for member in seen])
            own = [member.id for member in seen if member.pid == worker.pid]
            return bool(own) and len(await share()) == owners.count(own[0])

        for _ in range(TRIES):
            await worker.start()
            await shows(has_its_share, f"{self.target} holding what is its own")
            if held := await share():
                return f"process {worker.pid} holds partitions {held}"
            await left(stack, self.target)
        raise NotFired("no partition was ever its own")

    async def heal(self) -> str:
        await left(self.stack, self.target)
        return "exit status 0"


async def left(stack: Stack, target: str) -> None:
    """Ends a worker in good order. Raises `Failed` if it does not end so."""
    worker = stack.workers[target]
    if worker.pid is None:
        raise NotFired(f"{target} does not run")
    try:
        async with asyncio.timeout(LEAVE_SECONDS):
            status = await worker.stop()
    except TimeoutError:
        raise Failed(f"{target} did not end within {LEAVE_SECONDS:g} s of SIGTERM") from None
    if status != 0:
        raise Failed(f"{target} ended with status {status} on SIGTERM")
