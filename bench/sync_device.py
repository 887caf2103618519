"""A device that fetches all events of its user, several times: raw pages in JSON or protobuf, or the SDK.

Reads a plan (JSON) from stdin and prints a line of JSON. The raw device does as topics.md says with as little
work as possible, so that the server is measured and not the device: of each page it reads only where its
slices end.
"""

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop

from bench.processes import cpu_seconds
from bench.traffic import Broken
from imqtt.broker import Link, LinkSettings, Packet, connect
from imqtt.client import Client
from imqtt.core.partitions import home_of, partition_of
from imqtt.errors import ImqttError
from imqtt.model import Cursor, Device, Hello, Id, Sync
from imqtt.protocol import Format, encode_command
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.topics import down, up

WAIT_SECONDS = 60.0  # for one answer of the server, or for the SDK to catch up

clock = time.perf_counter


class Slice(NamedTuple):
    """What the device needs to know of a slice: its number of events, and the position of the last one."""

    conversation: str
    events: int
    seq: int
    id: int


class Page(NamedTuple):
    slices: list[Slice]
    more: bool
    heads: list[str]


class _Event(msgspec.Struct, gc=False):
    seq: int
    id: str


class _Slice(msgspec.Struct, gc=False):
    conversation: str
    events: list[_Event] = []


class _Head(msgspec.Struct, gc=False):
    conversation: str


class _Frame(msgspec.Struct, gc=False):
    type: str
    slices: list[_Slice] = []
    heads: list[_Head] = []
    more: bool = False


class _Frames(msgspec.Struct, gc=False):
    frames: list[_Frame]


_decode = msgspec.json.Decoder(_Frames).decode


def json_pages(payload: bytes) -> Iterator[Page]:
    for frame in _decode(payload).frames:
        if frame.type == "page":
            slices = [
                Slice(part.conversation, len(part.events), part.events[-1].seq, int(part.events[-1].id))
                for part in frame.slices
            ]
            yield Page(slices, frame.more, [head.conversation for head in frame.heads])


def protobuf_pages(payload: bytes) -> Iterator[Page]:
    for frame in pb.Frames.FromString(payload).frames:
        if frame.HasField("page"):
            page = frame.page
            slices = [
                Slice(part.conversation, len(part.events), part.events[-1].seq, part.events[-1].id)
                for part in page.slices
            ]
            yield Page(slices, page.more, [head.conversation for head in page.heads])


class RawDevice:
    """One `sync` at a time, with the cursors as they are then."""

    def __init__(self, link: Link, device: Device, format: Format, partitions: int) -> None:
        self._link = link
        self._format = format
        self._topic = up(device, partition_of(home_of(device.user), partitions))
        self._pages: Callable[[bytes], Iterator[Page]] = (
            json_pages if format is Format.JSON else protobuf_pages
        )

    async def hello(self) -> list[str]:
        """The user's conversations."""
        return (await self._ask(Hello("nonce"))).heads

    async def fetch(self, conversations: list[str]) -> int:
        """Fetches everything; returns the number of events."""
        cursors = {name: Cursor(name) for name in conversations}
        count, more = 0, True
        while more:
            page = await self._ask(Sync(tuple(cursors.values())))
            for name, events, seq, number in page.slices:
                if cursors[name].seq + events != seq:
                    raise Broken(f"{events} events after {cursors[name]} end at {seq}")
                cursors[name] = Cursor(name, seq, Id(number))
                count += events
            more = page.more
        return count

    async def _ask(self, command: Hello | Sync) -> Page:
        self._link.publish([Packet(self._topic, encode_command(command, self._format))])
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found: list[Page] = []
                for received in await self._link.receive(100):
                    found += self._pages(received.payload)
                    self._link.ack(received)
                if found:
                    return found[0]


class Used:
    """Seconds that pass, and CPU seconds of server, broker and this process, while it is entered."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self._pids = pids
        self.total: dict[str, float] = {}

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, *_: object) -> None:
        for name, value in self._now().items():
            self.total[name] = self.total.get(name, 0.0) + value - self._before[name]

    def _now(self) -> dict[str, float]:
        used = {part: sum(map(cpu_seconds, pids)) for part, pids in self._pids.items()}
        return used | {"device": time.process_time(), "seconds": clock()}


async def raw(plan: dict[str, Any], format: Format, used: Used) -> int:
    """The number of events that were fetched in the measured rounds."""
    device = Device(plan["user"], plan["device"])
    link = await connect(
        LinkSettings(
            plan["host"], plan["port"], str(device), username=str(device),
            password=plan["passwords"][str(device)], clean_start=True,
        )
    )  # fmt: skip
    await link.subscribe(down(device))
    reader = RawDevice(link, device, format, plan["partitions"])
    conversations = await reader.hello()
    events = await reader.fetch(conversations)  # the first time fills caches
    for _ in range(plan["rounds"]):
        with used:
            events = await reader.fetch(conversations)
        if events != plan["events"]:
            raise Broken(f"{events} events instead of {plan['events']}")
    await link.close()
    return events * int(plan["rounds"])


async def sdk(plan: dict[str, Any], used: Used) -> int:
    """The same through the SDK, each time with a new store."""
    for number in range(-1, plan["rounds"]):  # the first time imports modules and fills caches
        store = Path(plan["directory"]) / f"device{number}.db"
        device = Device(plan["user"], plan["device"])
        client = Client(
            user=device.user, device=device.device, password=plan["passwords"][str(device)],
            brokers=f"{plan['host']}:{plan['port']}", store=store, start="beginning", wait=WAIT_SECONDS,
        )  # fmt: skip
        with used if number >= 0 else Used({}):
            await client.__aenter__()
            async with asyncio.timeout(WAIT_SECONDS):
                await client.caught_up()
        await client.close()
        with closing(sqlite3.connect(store)) as connection:
            (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
        if events != plan["events"]:
            raise Broken(f"the SDK has {events} events instead of {plan['events']}")
    return int(plan["events"]) * int(plan["rounds"])


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of CPU per event, and events per second."""
    used = Used(plan["pids"])
    way = plan["way"]
    events = await (sdk(plan, used) if way == "sdk" else raw(plan, Format(way), used))
    seconds = used.total.pop("seconds")
    cpu = {f"{part}_cpu_us": round(value / events * 1e6, 2) for part, value in used.total.items()}
    return {"way": way, "per_second": round(events / seconds, 1), **cpu}


def main() -> None:
    plan = json.loads(sys.stdin.read())
    try:
        print(json.dumps(uvloop.run(run(plan))))
    except (Broken, OSError, ImqttError) as error:
        sys.exit(f"the device gave up: {error}")


if __name__ == "__main__":
    main()
