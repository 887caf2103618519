"""The interface of faults: a fault fires, proves its effect, and is repaired.

    fault = KINDS[kind](stack, kind, target, rng)
    seen = await fire(fault)           raises NotFired; `seen` describes the observed effect
    await fault.repair()

A kind is named by its effect and its target: `kill worker`, `slow worker-store`.
"""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from typing import ClassVar, Protocol

import msgspec

from tests.services import eventually
from tests.verification.chaos.stack import Stack

EFFECT_SECONDS = 30.0  # until the effect of a fault must be seen
RANKS = {
    "broker": 1,
    "redis": 1,
    "store": 1,
    "worker": 2,
    "join worker": 3,
    "backup": 2,
    "device": 3,
    "full device disk": 3,
}
# Names in `breaks` and `needs` that stand for all workers, all devices and all connections of workers.
WORKERS, DEVICES, WORKER_CONNECTIONS = "workers", "devices", "workers>"


class NotFired(Exception):
    """The fault had no effect. A run in which this happens is invalid."""


class Failed(Exception):
    """Something happened that must never happen."""


class Process(Protocol):
    """A part that may be killed and paused."""

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> None: ...

    async def kill(self) -> object: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Shape(msgspec.Struct, frozen=True):
    """The parts of a run that faults may target. `sessions`: the partitions of the conversations in use.

    `disks`: disks can be mounted for the SQLite store and for the first device.
    """

    stack: str
    workers: tuple[str, ...]
    devices: tuple[str, ...]
    plain: tuple[str, ...]
    sessions: tuple[int, ...]
    disks: bool = False


class Fault:
    """One fault on one target. `loses_state`: kinds after which a broker may have lost messages that it
    acked.

    `hold`: the shortest time in seconds for which the fault is useful.
    """

    loses_state: ClassVar[Collection[str]] = ()
    hold: ClassVar[float] = 0.0

    def __init__(self, stack: Stack, kind: str, target: str, rng: Random) -> None:
        self.stack = stack
        self.kind = kind
        self.target = target
        self.rng = rng

    @property
    def rank(self) -> int:
        """Faults of a lower rank are repaired first, because parts of a higher rank need them."""
        return RANKS.get(self.kind) or RANKS.get(self.kind.rsplit(maxsplit=1)[-1], 0)

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        """Possible targets; empty if this stack has none."""
        raise NotImplementedError

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        """Parts that fail or misbehave during the fault: no other fault may affect them."""
        raise NotImplementedError

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        """Parts that must work for the effect to be visible."""
        raise NotImplementedError

    async def fire(self) -> str:
        """Injects the fault and describes its observed effect. Raises `NotFired`, or `Failed` for an
        error.
        """
        raise NotImplementedError

    async def repair(self) -> str:
        """Ends the fault and describes anything worth recording."""
        raise NotImplementedError


async def fire(fault: Fault) -> str:
    """Calls `fault.fire`; an effect that is not seen in time raises `NotFired`."""
    try:
        return await fault.fire()
    except AssertionError as error:
        raise NotFired(str(error)) from error


async def wait_for_effect(condition: object, what: str) -> None:
    await eventually(condition, within=EFFECT_SECONDS, what=what)  # type: ignore[arg-type]


def process(stack: Stack, target: str) -> Process:
    """The part with this name."""
    parts: Mapping[str, Process | None] = {
        "broker": stack.broker, "redis": stack.redis, "store": stack.mongo,
        **stack.workers, **stack.devices,
    }  # fmt: skip
    part = parts[target]
    assert part is not None
    return part


def processes(kind: str, shape: Shape) -> Collection[str]:
    """The names of all parts of the kind's target: `worker`, `broker`, `redis`, `store` or `device`."""
    sort = kind.rsplit(maxsplit=1)[-1]
    if sort in ("redis", "store") and shape.stack != "scale":
        return ()  # SQLite and the state in memory run in the worker's process
    return {"worker": shape.workers, "device": shape.devices}.get(sort, (sort,))


def is_paused(pid: int) -> bool:
    """Whether the kernel reports the process as stopped."""
    status = Path(f"/proc/{pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"


async def unpaused(part: Process) -> None:
    """Resumes a part and waits until its process runs."""
    pid = part.pid
    part.resume()
    assert pid is not None
    await eventually(lambda: not is_paused(pid), within=EFFECT_SECONDS, what=f"process {pid} running again")


async def gather(*waits: object) -> None:
    """Waits for all, then raises the first error."""
    done = await asyncio.gather(*waits, return_exceptions=True)  # type: ignore[call-overload]
    for result in done:
        if isinstance(result, BaseException):
            raise result
