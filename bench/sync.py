"""A user's device that has nothing fetches 20,000 events: page by page, and through the SDK."""

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import report
from bench.messages import fill
from bench.services import PARTITIONS, Options, load, through_server
from imqtt.model import Device

USER = "reader"
WAYS = ("json", "protobuf", "sdk")  # each on a device of this name
EVENTS = 20_000
CONVERSATIONS = 20


async def measure(options: Options) -> dict[str, float]:
    """Events per second, and CPU per event of server, broker and device."""
    events = 2_000 if options.quick else EVENTS
    accounts = [Device(USER, way) for way in WAYS]
    found: dict[str, float] = {"events": events}
    rows = []
    with TemporaryDirectory(prefix="imqtt-bench-", dir=options.directory) as name:
        store = Path(name) / "imqtt.db"
        await fill(store, _arrivals(events), accounts, partitions=PARTITIONS, size=options.size)
        async with through_server(options, accounts, store=store) as plan:
            for way in WAYS:
                asked = {"user": USER, "device": way, "way": way, "events": events, "directory": name}
                rounds = 1 if options.quick else 3 if way == "sdk" else 6
                (row,) = [row async for row in load(plan | asked | {"rounds": rounds}, "bench.sync_device")]
                rows.append(row)
                found |= {f"{way}_{key}": value for key, value in row.items() if key != "way"}
    report.print_sync(rows, events)
    return found


def _arrivals(events: int) -> Iterator[str]:
    """The user's conversations, interleaved as they arrive; the nth has a share in proportion to 1/n."""
    names = [f"d:friend{number:02}:{USER}" for number in range(CONVERSATIONS)]
    weights = [1 / (number + 1) for number in range(CONVERSATIONS)]
    yield from random.Random(1).choices(names, weights, k=events)
