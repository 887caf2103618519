"""What a fault is: it fires, which it has to prove, and it is healed.

    fault = FAULTS[kind](stack, kind, target, chance)
    seen = await fire(fault)           raises NotFired; `seen` says what was seen to happen
    await fault.heal()

A kind is named by what is done to what: `kill worker`, `slow worker-store`.
"""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from typing import ClassVar, Protocol

import msgspec

from tests.services import eventually
from tests.verification.chaos.parts import Stack

SHOWS_SECONDS = 30.0  # for what a fault does to show
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
# In what a fault breaks or needs: all of them, and all ways from them.
WORKERS, DEVICES, WORKERS_WAYS = "workers", "devices", "workers>"


class NotFired(Exception):
    """It did not happen. A run in which it should have is invalid."""


class Failed(Exception):
    """Something did happen that must not."""


class Process(Protocol):
    """A part that may be killed and paused."""

    @property
    def pid(self) -> int | None: ...

    async def start(self) -> None: ...

    async def kill(self) -> object: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Shape(msgspec.Struct, frozen=True):
    """What there is to be hit. `sessions`: the partitions of the conversations that are talked in.

    `disks`: disks can be mounted, on which the SQLite store is, and that of the first device.
    """

    stack: str
    workers: tuple[str, ...]
    devices: tuple[str, ...]
    plain: tuple[str, ...]
    sessions: tuple[int, ...]
    disks: bool = False


class Fault:
    """One fault on one target. `forgets`: a broker may lose by it what it has taken.

    `hold`: it is of no use unless it lasts so many seconds.
    """

    forgets: ClassVar[Collection[str]] = ()  # of its kinds, those that do
    hold: ClassVar[float] = 0.0

    def __init__(self, stack: Stack, kind: str, target: str, chance: Random) -> None:
        self.stack = stack
        self.kind = kind
        self.target = target
        self.chance = chance

    @property
    def rank(self) -> int:
        """Of several faults, those of a lower rank are healed first: parts of a higher one need them."""
        return RANKS.get(self.kind) or RANKS.get(self.kind.rsplit(maxsplit=1)[-1], 0)

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        """What it may be done to; nothing, if there is no such thing on this stack."""
        raise NotImplementedError

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        """What does not work meanwhile, or not as it should: no other fault may be at that."""
        raise NotImplementedError

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        """What has to work for it to show that it has fired."""
        raise NotImplementedError

    async def fire(self) -> str:
        """Does it, and returns what was seen of it. Raises `NotFired`, and `Failed` where all is not well."""
        raise NotImplementedError

    async def heal(self) -> str:
        """Ends it; what is to be said of it, beside that."""
        raise NotImplementedError


async def fire(fault: Fault) -> str:
    """As `fault.fire`, and what does not show within its time has not fired."""
    try:
        return await fault.fire()
    except AssertionError as error:
        raise NotFired(str(error)) from error


async def shows(condition: object, what: str) -> None:
    await eventually(condition, within=SHOWS_SECONDS, what=what)  # type: ignore[arg-type]


def process(stack: Stack, target: str) -> Process:
    """The part of this name."""
    parts: Mapping[str, Process | None] = {
        "broker": stack.broker, "redis": stack.redis, "store": stack.mongo,
        **stack.workers, **stack.devices,
    }  # fmt: skip
    part = parts[target]
    assert part is not None
    return part


def processes(kind: str, shape: Shape) -> Collection[str]:
    """The names of the parts of this sort: `worker`, `broker`, `redis`, `store` or `device`."""
    sort = kind.rsplit(maxsplit=1)[-1]
    if sort in ("redis", "store") and shape.stack != "scale":
        return ()  # of SQLite and of the state in memory, the process is the worker's
    return {"worker": shape.workers, "device": shape.devices}.get(sort, (sort,))


def is_paused(pid: int) -> bool:
    """Whether the system says that the process is stopped."""
    status = Path(f"/proc/{pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"


async def unpaused(part: Process) -> None:
    """Goes on, and is seen to."""
    pid = part.pid
    part.resume()
    assert pid is not None
    await eventually(lambda: not is_paused(pid), within=SHOWS_SECONDS, what=f"process {pid} going on")


async def gather(*waits: object) -> None:
    """All of them, to their ends; then raises what one has raised."""
    done = await asyncio.gather(*waits, return_exceptions=True)  # type: ignore[call-overload]
    for result in done:
        if isinstance(result, BaseException):
            raise result
