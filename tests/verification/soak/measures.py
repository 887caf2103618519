"""Memory and disk use of a soak's parts, and the limits of their growth.

Figures are measured every ten seconds and at marks: at shares of the messages, `at rest` (the load has ended)
and `all read` (some users have read everything). They are compared with those at a fifth of the messages; of
a million, that is enough to fill every cache.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.processes import resident_bytes
from tests.verification.checker.history import now
from tests.verification.soak.stack import SoakStack

KB, MB = 1_000, 1_000_000
EARLY, HALF, ALL, REST, READ = "20 %", "50 %", "100 %", "at rest", "all read"
MARKS = {"10 %": 0.1, EARLY: 0.2, HALF: 0.5, ALL: 1.0}

SHARE, ROOM = 0.25, 20 * MB  # permitted growth of memory from early on to rest
# A worker's caches of pages and seen ids take this many bytes per message until they are full, which is after
# a fifth of a million messages.
FILLING, FILLED = 350, 200_000
# SQLite empties a reader's cache when another connection writes. The caches of the eight readers, 4 MiB each,
# fill only once nobody writes.
CACHES_OF_READERS = 40 * MB
# Growth above this many bytes per message is not a cache, after enough messages: a worker's memory varies by
# some 3 MB as pages come and go.
LEAK, ENOUGH = 30.0, 500_000
FEW = 3  # permitted growth of descriptors and threads
POOLED = 160  # descriptors of a worker on MongoDB: its client keeps up to 100 connections
WAL_KEPT = 64 * 1024 * 1024  # the store truncates a longer WAL to this; it usually has half of it
STORED = 400  # bytes of the store's file per message of some 80 bytes, with indexes; measured: 230
LOGGED, LOGGED_FIRST = 50 * KB, 200 * KB  # bytes of log per fault, and at the start; measured: 4 kB
SESSIONS = 1 * MB  # of the broker's file with nothing queued
REDIS = 200 * MB  # a filter of 8 MiB for each of several periods, one more after each step of a clock

Figures = Mapping[str, int]


class Measure(msgspec.Struct, frozen=True):
    """All figures at one time, in bytes or counts. `at`: seconds. `mark`: which one, or ""."""

    at: float
    accepted: int
    figures: dict[str, int]
    mark: str = ""


class Limit(msgspec.Struct, frozen=True):
    """`most`: upper bound of the figure at rest, or of its maximum if `always`; None: not judged.

    `more`: added to the bound when everything has been read. `slope`: bytes per message since early on.
    """

    rule: str
    most: int | None = None
    always: bool = False
    more: int = 0
    slope: float | None = None


class Judged(msgspec.Struct, frozen=True):
    """One figure of the run, compared with its limit."""

    name: str
    first: int
    early: int
    half: int
    rest: int
    read: int
    highest: int
    slope: float
    limit: Limit

    @property
    def ok(self) -> bool:
        limit = self.limit
        if limit.most is None:
            return True
        if limit.always and self.highest > limit.most:
            return False
        return (
            self.rest <= limit.most
            and self.read <= limit.most + limit.more
            and (limit.slope is None or self.slope <= limit.slope)
        )


async def measure(stack: SoakStack) -> dict[str, int]:
    """All figures now. A part that is not running has none."""
    figures: dict[str, int] = {}
    for name in stack.initial_workers:
        pid = stack.workers[name].pid
        with contextlib.suppress(OSError, TypeError):
            process = Path(f"/proc/{pid}")
            figures[f"{name} memory"] = resident_bytes(pid)  # type: ignore[arg-type]
            figures[f"{name} open files"] = len(list((process / "fd").iterdir()))
            figures[f"{name} threads"] = len(list((process / "task").iterdir()))
        figures[f"{name} log"] = _size(stack.workers[name].log)
    pids = {"broker": stack.broker.pid, "load": None if stack.load is None else stack.load.pid}
    if stack.redis is not None and stack.mongo is not None:
        pids |= {"redis": stack.redis.pid, "store": _pid_of(stack)}
        figures |= await asyncio.to_thread(_redis, stack)
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            if pid is not None:
                figures[f"{name} memory"] = resident_bytes(pid)
    file, log = stack.store_files
    figures["store file"] = await asyncio.to_thread(_size, file)
    if stack.mongo is None:
        figures["store WAL"] = _size(log)
    figures["mosquitto.db"] = _size(stack.broker.state)
    figures["broker log"] = _size(stack.broker.log) + _size(stack.broker.log.with_suffix(".log.1"))
    return figures


def judge(measures: Sequence[Measure], *, faults: int) -> list[Judged]:
    """Compares every figure with its limit, which depends on the number of faults."""
    names = dict.fromkeys(name for measure in measures for name in measure.figures)
    return [_judged(name, measures, faults) for name in names]


def slope(measures: Sequence[Measure], name: str) -> float:
    """A figure's growth in bytes per message from early on to rest, by least squares; 0 of too few points."""
    since = next((measure.at for measure in measures if measure.mark == EARLY), None)
    points = [
        (measure.accepted, measure.figures[name])
        for measure in measures
        if since is not None and measure.at >= since and measure.mark != READ and name in measure.figures
    ]
    if len(points) < 3:
        return 0.0
    x = sum(a for a, _ in points) / len(points)
    y = sum(b for _, b in points) / len(points)
    spread = sum((a - x) ** 2 for a, _ in points)
    return sum((a - x) * (b - y) for a, b in points) / spread if spread else 0.0


def _judged(name: str, measures: Sequence[Measure], faults: int) -> Judged:
    having = [measure.figures[name] for measure in measures if name in measure.figures]
    early = _at(EARLY, name, measures)
    return Judged(
        name,
        first=having[0],
        early=early,
        half=_at(HALF, name, measures),
        rest=_at(REST, name, measures),
        read=having[-1],
        highest=max(having),
        slope=round(slope(measures, name), 1),
        limit=_limit(name, having[0], early, measures, faults),
    )


def _at(mark: str, name: str, measures: Sequence[Measure]) -> int:
    """The figure at a mark, or the next one if the part was down; the last one without such a mark."""
    since = next((measure.at for measure in measures if measure.mark == mark), measures[-1].at)
    following = [
        measure.figures[name] for measure in measures if measure.at >= since and name in measure.figures
    ]
    return (
        following[0]
        if following
        else [measure.figures[name] for measure in measures if name in measure.figures][-1]
    )


def _limit(name: str, first: int, early: int, measures: Sequence[Measure], faults: int) -> Limit:
    part, _, what = name.partition(" ")
    accepted = measures[-1].accepted
    on_mongo = "redis data" in measures[0].figures
    if name == "load memory" or (on_mongo and name in ("store memory", "store file")):
        return Limit("not judged: the test's own process or MongoDB")
    if part == "redis":
        return Limit("filters of fixed size per period", REDIS, always=True)
    if what == "memory":
        is_worker = part != "broker"
        since = next((measure.accepted for measure in measures if measure.mark == EARLY), accepted)
        filling = FILLING * max(0, min(accepted, FILLED) - since) if is_worker else 0
        return Limit(
            f"at {EARLY} + {SHARE:.0%} + {ROOM // MB} MB" + (" + caches" if filling else ""),
            int(early * (1 + SHARE)) + ROOM + filling,
            more=CACHES_OF_READERS if is_worker else 0,
            slope=LEAK if is_worker and accepted - since >= ENOUGH else None,
        )
    if what == "open files" and on_mongo:
        return Limit("partitions and a pool of connections", POOLED, always=True)
    if what in ("open files", "threads"):
        return Limit(f"at {EARLY} + {FEW}", early + FEW)
    if name == "store file":
        return Limit(f"{STORED} bytes per message", first + accepted * STORED + MB)
    if name == "store WAL":
        return Limit("bounded at all times", WAL_KEPT, always=True)
    if name == "mosquitto.db":
        return Limit("nothing is queued at rest", first + SESSIONS)
    return Limit(f"{LOGGED // KB} kB per fault", LOGGED_FIRST + faults * LOGGED)


def _pid_of(stack: SoakStack) -> int | None:
    assert stack.mongo is not None
    try:
        return stack.mongo.pid
    except AssertionError:  # killed just now
        return None


def _redis(stack: SoakStack) -> dict[str, int]:
    assert stack.redis is not None
    try:
        answer = stack.redis.command("INFO", "memory").decode()
    except OSError:  # killed or paused
        return {}
    used = [line.partition(":")[2] for line in answer.splitlines() if line.startswith("used_memory:")]
    return {"redis data": int(used[0])} if used else {}


def _size(path: Path) -> int:
    """Size of a file, or of all files in a directory; 0 if it does not exist."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            return sum(_size(child) for child in path.iterdir())
        return path.stat().st_size
    return 0


class Watch:
    """Measures a stack until cancelled. `accepted` returns the number of accepted messages."""

    def __init__(
        self, stack: SoakStack, accepted: Callable[[], int], messages: int, every: float = 10.0
    ) -> None:
        self.measures: list[Measure] = []
        self._stack = stack
        self._accepted = accepted
        self._messages = messages
        self._every = every
        self._began = now()

    async def run(self) -> None:
        """Until cancelled."""
        marks = dict(MARKS)
        due = 0.0
        while True:
            part = self._accepted() / self._messages
            passed = [mark for mark, share in marks.items() if part >= share]
            for mark in passed:
                del marks[mark]
                await self.look(mark)
            if not passed and now() >= due:
                await self.look()
                due = now() + self._every
            await asyncio.sleep(0.1)

    async def look(self, mark: str = "") -> Measure:
        accepted = self._accepted()
        found = Measure(round(now() - self._began, 1), accepted, await measure(self._stack), mark)
        self.measures.append(found)
        return found
