"""Cost per message as a deployment grows: conversations, registered devices, stored events, partitions.

Each point differs from the first one in a single number. Every message goes to another conversation than the
one before, so caches miss as they would with as many users.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.direct import PACED_RATE
from bench.growth_store import generate
from bench.services import Options, load, through_server
from bench.traffic import AcrossConversations

# Devices with `window` unanswered messages each, as in the other measurements. Fewer have as many together.
IN_FLIGHT_DEVICES = 40
# Messages before the measurement, so that each of 10,000 conversations has had one, as in a server that has
# run for a while. Of a million conversations, most get their first one while it is measured.
WARM = 10_000
UNLIMITED = {"DEVICE_RATE": "1000000", "DEVICE_BURST": "10000000"}  # for the two devices of one conversation


@dataclass(frozen=True, slots=True)
class Point:
    """A store's size. `devices`: of users that do not take part."""

    conversations: int = 10_000
    devices: int = 100
    events: int = 1_000_000
    partitions: int = 16

    @property
    def store(self) -> str:
        return f"{self.conversations}-{self.devices}-{self.events}-{self.partitions}.db"


BASE = Point()
POINTS = (
    BASE,
    replace(BASE, conversations=1),
    replace(BASE, conversations=1_000_000),
    replace(BASE, devices=100_000),
    replace(BASE, events=10_000_000),
    replace(BASE, partitions=1),
    replace(BASE, partitions=1_024),
)
SMALL = Point(conversations=100, devices=10, events=1_000)
QUICK = (SMALL, replace(SMALL, conversations=1), replace(SMALL, partitions=64))


async def measure(options: Options) -> dict[str, dict[str, float]]:
    """The points by name: saturated, and at 2,000 messages a second."""
    found: dict[str, dict[str, float]] = {}
    points = QUICK if options.quick else POINTS
    for point in points:
        found[_name(point, points[0])] = await _measure(point, options)
    report.print_growth(found)
    return found


async def _measure(point: Point, options: Options) -> dict[str, float]:
    plan = {"through": "conversations", "size": options.size, **asdict(point)}
    accounts = AcrossConversations(point.partitions, options.size, point.conversations, point.events).devices
    window = options.window * IN_FLIGHT_DEVICES // len(accounts)
    warm = min(point.conversations, WARM)
    phases = [
        {"kind": "count", "name": "warm", "messages": warm, "window": window, "steps": 1},
        {"kind": "saturate", "name": "saturated", "window": window, **options.steady},
        {"kind": "pace", "name": "paced", "rate": PACED_RATE, **options.steady},
    ]
    async with (
        _store(point, options) as store,
        through_server(
            options, accounts, store=store, partitions=point.partitions, settings=UNLIMITED
        ) as served,
    ):
        lines = [line async for line in load(served | plan | {"phases": phases, "settle": True})]
    _, saturated, paced = [line for line in lines if "phase" in line]
    return {
        **asdict(point),
        "stored_per_second": saturated["per_second"],
        "server_cpu_us": saturated["cpu_us"]["server"],
        "broker_cpu_us": saturated["cpu_us"]["broker"],
        "p50_ms": saturated["p50_ms"],
        "p99_ms": saturated["p99_ms"],
        "paced_server_cpu_us": paced["cpu_us"]["server"],
        "paced_broker_cpu_us": paced["cpu_us"]["broker"],
        "paced_p50_ms": paced["p50_ms"],
        "paced_p99_ms": paced["p99_ms"],
    }


@contextlib.asynccontextmanager
async def _store(point: Point, options: Options) -> AsyncIterator[Path]:
    """A copy of the generated store, which itself stays as it is for later runs if a directory is given."""
    with TemporaryDirectory(prefix="imqtt-bench-", dir=options.directory) as name:
        generated = (options.directory or Path(name)) / f"growth-{point.store}"
        start = time.monotonic()
        await generate(generated, **asdict(point))
        copy = Path(name) / "imqtt.db"
        if options.directory is None:
            generated.rename(copy)
        else:
            await _copy(generated, copy)
        report.print_store(asdict(point), copy.stat().st_size, time.monotonic() - start)
        yield copy


async def _copy(source: Path, target: Path) -> None:
    """Shares the blocks where the file system can."""
    process = await asyncio.create_subprocess_exec("cp", "--reflink=auto", source, target)
    if await process.wait() != 0:
        raise OSError(f"{source} cannot be copied")


def _name(point: Point, base: Point) -> str:
    """What distinguishes the point from the first one."""
    for name, value in asdict(point).items():
        if value != getattr(base, name):
            return f"{value:,} {name if value > 1 else name.removesuffix('s')}"
    return "base"
