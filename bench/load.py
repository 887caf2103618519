"""The load generator: one process with all devices, each with its own connection.

Reads a plan (JSON) from stdin and prints one line of JSON per phase. A message is done when its sender has
the answer and the other device has the message.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from bench.processes import cpu_seconds, resident_bytes
from bench.traffic import Broken, Traffic, traffic
from imqtt.broker import Link, LinkSettings, Packet, connect
from imqtt.protocol.topics import down

GRACE_SECONDS = 30.0  # for messages in flight at the end of a phase
SETTLE_SECONDS = 120.0  # a user with 50,000 conversations has as many peers to be told of
IDLE = 0.05  # of a core
LONE_GAP_SECONDS = 0.002
TICK_SECONDS = 0.001  # of the schedule: messages are sent half of it late on average
FAILURE = 0x80  # reason codes from here on are failures

clock = time.perf_counter


@dataclass(slots=True)
class Measured:
    """The measured part of one phase. Latencies in milliseconds, CPU in microseconds per message."""

    phase: str
    seconds: float
    messages: int  # done
    per_second: float
    offered: float  # messages per second; 0: limited only by the windows
    window: int
    p50_ms: float  # from sending (or the scheduled time) to the other device
    p99_ms: float
    max_ms: float
    accepted_p50_ms: float  # from sending to the answer
    accepted_p99_ms: float
    cpu_us: dict[str, float] = field(default_factory=dict)


class Load:
    """All devices, their links, and the messages in flight."""

    def __init__(self, traffic: Traffic, plan: dict[str, Any]) -> None:
        self._traffic = traffic
        self._pids: dict[str, list[int]] = plan["pids"]  # by part, which may have several processes
        self._plan = plan
        self._links: list[Link] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._devices = len(traffic.devices)
        self._sent = [0] * self._devices  # messages sent by each device
        # When each was sent, and whether one of its two packets has arrived.
        self._in_flight: dict[int, tuple[float, bool]] = {}
        self._window = 0  # unanswered messages per device; 0: sending is scheduled
        self._delivered: list[float] = []  # latencies
        self._accepted: list[float] = []
        self._done = 0
        self._since = 0.0  # latencies of earlier messages are not counted
        self._idle = asyncio.Event()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- the devices

    async def connect(self) -> None:
        """Connects, subscribes and sends `Hello`; returns when every device is welcomed."""
        for device in self._traffic.devices:
            username = str(device)
            link = await connect(
                LinkSettings(
                    self._plan["host"], self._plan["port"], username, username=username,
                    password=self._plan["passwords"][username], clean_start=True,
                )
            )  # fmt: skip
            await link.subscribe(down(device))
            self._links.append(link)
        self._tasks = [asyncio.create_task(self._listen(number)) for number in range(self._devices)]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        for number, link in enumerate(self._links):
            hello = self._traffic.hello(number)
            if hello is not None:
                await link.publish([Packet(*hello)])
        async with asyncio.timeout(GRACE_SECONDS):
            while not self._traffic.ready():
                await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Waits until the server has done what the connections have caused."""
        async with asyncio.timeout(SETTLE_SECONDS):
            busy = True
            while busy:
                before = self._cpu()["server"]
                await asyncio.sleep(1)
                busy = self._cpu()["server"] - before > IDLE

    async def close(self) -> None:
        """Closes all links."""
        for task in self._tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        for link in self._links:
            await link.close()

    async def _listen(self, device: int) -> None:
        link = self._links[device]
        while True:
            batch = await link.receive(1_000)
            now = clock()
            free = 0
            for received in batch:
                arrived = self._traffic.receive(device, received.payload)
                for number in arrived.accepted:
                    self._accepted.append(self._arrive(number, now))
                    free += 1
                for number in arrived.delivered:
                    self._delivered.append(self._arrive(number, now))
                link.ack(received)
            if free and self._window:
                self._send(device, free, now)
            if not self._in_flight:
                self._idle.set()

    def _arrive(self, number: int, now: float) -> float:
        """The latency of one of the message's two packets, the answer and the delivery; -1 if not counted."""
        sent, other_arrived = self._in_flight[number]
        if other_arrived:
            del self._in_flight[number]
            self._done += 1
        else:
            self._in_flight[number] = sent, True
        return (now - sent) * 1e3 if sent >= self._since else -1.0

    def _send(self, device: int, count: int, when: float) -> None:
        first = self._sent[device]
        self._sent[device] = first + count
        messages = []
        for index in range(first, first + count):
            number = index * self._devices + device
            self._in_flight[number] = when, False
            messages.append(Packet(self._traffic.topic(number), self._traffic.message(number)))
        self._links[device].publish(messages).add_done_callback(self._published)
        self._idle.clear()

    def _published(self, codes: asyncio.Future[list[int]]) -> None:
        if max(codes.result()) >= FAILURE and not self.failure.done():
            self.failure.set_exception(Broken(f"the broker refused a message: {codes.result()}"))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self.failure.done():
            self.failure.set_exception(task.exception() or Broken("a device stopped listening"))

    # --- the phases

    async def saturate(self, name: str, *, window: int, warmup: float, seconds: float) -> Measured:
        """Each device keeps `window` messages unanswered."""
        self._window = window
        now = clock()
        for device in range(self._devices):
            self._send(device, window, now)
        await asyncio.sleep(warmup)
        cpu_before = self._begin()
        await asyncio.sleep(seconds)
        measured = self._measure(name, cpu_before, window=window)
        await self._drain()
        return measured

    async def pace(self, name: str, *, rate: float, warmup: float, seconds: float) -> Measured:
        """Sends on schedule, regardless of the answers.

        Latency counts from the scheduled time, so a stall is charged to every message that it delays.
        """
        start = clock()
        cpu_before = None
        sent = 0
        while (now := clock()) < start + warmup + seconds:
            if cpu_before is None and now >= start + warmup:
                cpu_before = self._begin()
            due = int((now - start) * rate) + 1
            for index in range(sent, due):
                self._send(index % self._devices, 1, start + index / rate)
            sent = due
            await asyncio.sleep(TICK_SECONDS)  # a shorter sleep would use CPU that is measured
        assert cpu_before is not None
        measured = self._measure(name, cpu_before, offered=rate)
        await self._drain()
        return self._latencies(measured)  # includes the slowest messages

    async def lone(self, name: str, *, count: int) -> Measured:
        """One message at a time in an otherwise idle system."""
        cpu_before = self._begin()
        for index in range(count):
            self._send(index % self._devices, 1, clock())
            await self._drain()
            await asyncio.sleep(LONE_GAP_SECONDS)
        return self._latencies(self._measure(name, cpu_before))

    async def count(
        self, name: str, *, messages: int, window: int, steps: int, step: Callable[[dict[str, int]], None]
    ) -> Measured:
        """Sends `messages`, and reports the memory of the processes at each step."""
        cpu_before = self._begin()
        self._window = window
        for device in range(self._devices):
            self._send(device, window, clock())
        for number in range(steps + 1):
            while self._done < number * messages // steps:
                await asyncio.sleep(0.01)
            self._accepted.clear()
            self._delivered.clear()
            step(
                {"messages": self._done}
                | {part: sum(map(resident_bytes, pids)) for part, pids in self._pids.items()}
            )
        measured = self._measure(name, cpu_before, window=window)
        await self._drain()
        return measured

    async def _drain(self) -> None:
        self._window = 0
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                if self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            raise Broken(f"{len(self._in_flight)} messages never arrived") from None

    def _begin(self) -> dict[str, float]:
        self._accepted.clear()
        self._delivered.clear()
        self._done = 0
        self._since = clock()
        return self._cpu()

    def _cpu(self) -> dict[str, float]:
        used = {part: sum(map(cpu_seconds, pids)) for part, pids in self._pids.items()}
        return used | {"load": time.process_time()}

    def _measure(
        self, name: str, cpu_before: dict[str, float], *, window: int = 0, offered: float = 0.0
    ) -> Measured:
        seconds = clock() - self._since
        done = max(self._done, 1)
        used = self._cpu()
        cpu = {part: round((used[part] - cpu_before[part]) / done * 1e6, 1) for part in used}
        measured = Measured(
            name, round(seconds, 2), self._done, round(self._done / seconds, 1), round(offered, 1), window,
            0.0, 0.0, 0.0, 0.0, 0.0, cpu,
        )  # fmt: skip
        return self._latencies(measured)

    def _latencies(self, measured: Measured) -> Measured:
        delivered = sorted(latency for latency in self._delivered if latency >= 0)
        accepted = sorted(latency for latency in self._accepted if latency >= 0)
        measured.p50_ms, measured.p99_ms = _percentile(delivered, 0.5), _percentile(delivered, 0.99)
        measured.max_ms = _percentile(delivered, 1.0)
        measured.accepted_p50_ms = _percentile(accepted, 0.5)
        measured.accepted_p99_ms = _percentile(accepted, 0.99)
        return measured


def _percentile(ordered: list[float], part: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not ordered:
        return float("nan")
    return round(ordered[min(int(part * len(ordered)), len(ordered) - 1)], 3)


async def run(plan: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Connects and runs the plan's phases. Raises `Broken` or the error that ended a link."""
    packets = traffic(plan)
    load = Load(packets, plan)
    await load.connect()
    if plan.get("settle"):
        await load.settle()
    saturated = 0.0
    for phase in plan["phases"]:
        options = dict(phase)
        kind = options.pop("kind")
        if kind == "pace":
            part = options.pop("part", None)
            options["rate"] = options["rate"] if part is None else part * saturated
        if kind == "count":
            options["step"] = report
        working = asyncio.create_task(getattr(load, kind)(**options), name=kind)
        await asyncio.wait((working, load.failure), return_when=asyncio.FIRST_COMPLETED)
        if load.failure.done():
            load.failure.result()
        measured: Measured = await working
        if kind == "saturate":
            saturated = measured.per_second
        report(asdict(measured))
    packets.finish()
    await load.close()


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    plan = json.loads(sys.stdin.read())
    try:
        uvloop.run(run(plan, _print))
    except (Broken, OSError) as error:
        sys.exit(f"the load generator gave up: {error}")


if __name__ == "__main__":
    main()
