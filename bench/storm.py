"""2,000 registered devices connect at once and say hello.

Once they are devices that hold nothing, of users without conversations: the cost of a connection by itself.
Then they return, as after a broker's restart: each has three conversations, sends its cursors, is told which
peers are online, and its peers are told of it.
"""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench import report
from bench.messages import DEVICE, fill, members_of
from bench.services import PARTITIONS, Options, load, through_server
from imqtt.model import Device

DEVICES = 2_000
PEERS = 3
EVENTS = 5  # of each conversation

Cursors = dict[str, list[tuple[str, int, int]]]
"""By username: conversation, seq and id."""


async def measure(options: Options) -> dict[str, Any]:
    """Seconds to the last `Welcome`, and CPU per device. Medians of several storms of each kind."""
    count = 200 if options.quick else DEVICES
    cursors: dict[str, Cursors] = {kind: {} for kind in ("empty", "returning")}
    for number in range(count):
        cursors["empty"][str(Device(f"empty{number:04}", DEVICE))] = []
        cursors["returning"][str(Device(_user(number), DEVICE))] = []
    accounts = [Device(*name.split("@")) for kind in cursors.values() for name in kind]
    with TemporaryDirectory(prefix="imqtt-bench-", dir=options.directory) as name:
        store = Path(name) / "imqtt.db"
        arrivals = _conversations(count) * EVENTS
        heads = await fill(store, arrivals, accounts, partitions=PARTITIONS, size=options.size)
        for conversation, head in heads.items():
            for user in members_of(conversation):
                cursors["returning"][str(Device(user, DEVICE))].append((conversation, head.seq, head.id))
        found: dict[str, Any] = {"devices": count}
        async with through_server(options, accounts, store=store) as plan:
            for kind, held in cursors.items():
                storms = {"storms": 1 if options.quick else 3, "cursors": held}
                rows = [row async for row in load(plan | storms, "bench.storm_devices")]
                report.print_storms(rows, f"{count:,} {kind} devices connect and say hello")
                found[kind] = {key: median([row[key] for row in rows]) for key in rows[0]}
    return found


def _user(number: int) -> str:
    return f"user{number:04}"


def _conversations(count: int) -> list[str]:
    """Each user has one with the users whose number differs in one of the lowest bits."""
    pairs = [(number, number ^ 1 << bit) for number in range(count) for bit in range(PEERS)]
    return [f"d:{_user(low)}:{_user(high)}" for low, high in pairs if low < high]
