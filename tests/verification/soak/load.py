"""`python -m tests.verification.soak.load`: all devices of a soak in one process, with a plan on stdin.

They send at the plan's rate, or as fast as their windows allow, until told to stop. Orders and reports are
lines of JSON, as in `tests.verification.chaos.console`.
"""

import asyncio
import logging
import sys
from pathlib import Path
from random import Random

import msgspec
import uvloop

from imqtt.protocol import Format
from tests.verification.chaos.console import LONGEST_LINE, Done, Order
from tests.verification.checker.history import History
from tests.verification.soak.device import SoakDevice

USERS = 30
LAPTOPS = 10  # users with a second device
DISTANCES = (1, 2, 5)  # each user talks with those at these distances in a ring of users
DETOURS = 8  # one device in this many publishes everything to partition 0
PACE_SECONDS = 0.004  # between checks of what is due
BURST_SECONDS = 0.1  # how much of the rate is caught up after a time without room
PORTION = 4  # messages that one device sends at once
TICK_SECONDS = 0.25
_ROOM = 1 << 20


class LoadPlan(msgspec.Struct, frozen=True):
    """`ports`: of the proxies to the broker, used in turn. `rate`: messages per second of all devices."""

    history: str
    ports: tuple[int, ...]
    passwords: dict[str, str]
    rate: float
    window: int
    seed: int


class Tally(msgspec.Struct, frozen=True, tag_field="report", tag="tally"):
    """The progress of all devices. `slowest`: the earliest of all devices' `newest`.

    `slowest_device`: its device. `stuck`: devices that do not read and to which the broker sends nothing
    more. `resent`: messages that were sent again.
    """

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    resent: int = 0
    slowest: float = 0.0
    slowest_device: str = ""
    stuck: tuple[str, ...] = ()


class LoadOrder(Order, frozen=True):
    """`do`: stop reading or resume reading (of a `device`), or stop."""

    device: str = ""


class BufferedHistory(History):
    """A history that is written in large pieces, for a process that is never killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=_ROOM)  # type: ignore[assignment]


def user(number: int) -> str:
    return f"user{number % USERS:02}"


def devices() -> list[str]:
    """Their names, as `user@device`."""
    return [f"{user(number)}@phone" for number in range(USERS)] + [
        f"{user(number)}@laptop" for number in range(LAPTOPS)
    ]


def conversations(name: str) -> tuple[str, ...]:
    """The conversations of a user."""
    number = int(name.removeprefix("user"))
    peers = [user(number + sign * distance) for distance in DISTANCES for sign in (1, -1)]
    return (*(f"d:{min(name, peer)}:{max(name, peer)}" for peer in peers), f"u:{name}")


class Load:
    """All devices, and the pace of their messages."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._history = BufferedHistory(Path(plan.history))
        self._may_send = True
        rng = Random(f"{plan.seed} load")
        self.devices = {
            name: SoakDevice(
                name,
                plan.passwords[name],
                plan.ports[number % len(plan.ports)],
                conversations(name.partition("@")[0]),
                history=self._history,
                rng=Random(rng.random()),
                window=plan.window,
                format=Format.PROTOBUF if number % 2 else Format.JSON,
                detour=number % DETOURS == 0,
            )
            for number, name in enumerate(devices())
        }

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Runs until told to stop and all messages are answered, or until stdin is closed."""
        running = [asyncio.create_task(device.run(), name=device.name) for device in self.devices.values()]
        working = [asyncio.create_task(loop(), name=loop.__name__) for loop in (self._pace, self._tick)]
        executing = asyncio.create_task(self._execute_orders(reader), name="execute_orders")
        tasks = [*running, *working, executing]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for device in self.devices.values():
            await device.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._history.close()
        for task in done:
            task.result()
        _report(self.tally())
        _report(Done("stop"))

    def tally(self) -> Tally:
        devices = self.devices.values()
        slowest = min(devices, key=lambda device: device.newest)
        return Tally(
            sum(device.sent for device in devices),
            sum(device.accepted for device in devices),
            sum(device.refused for device in devices),
            sum(device.resent for device in devices),
            slowest.newest,
            slowest.name,
            tuple(device.name for device in devices if device.stuck),
        )

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        rate = self._plan.rate
        everyone = list(self.devices.values())
        turn = 0
        due = 0.0
        last = loop.time()
        while self._may_send:
            await asyncio.sleep(PACE_SECONDS)
            at = loop.time()
            due = min(due + (at - last) * rate, BURST_SECONDS * rate)
            last = at
            idle = 0
            while self._may_send and due >= 1 and idle < len(everyone):
                device = everyone[turn % len(everyone)]
                turn += 1
                count = min(device.room, PORTION, int(due))
                idle = 0 if count else idle + 1
                if count:
                    device.send(count)
                    due -= count
        await asyncio.Event().wait()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for device in self.devices.values():
                device.tick()
            _report(self.tally())

    async def _execute_orders(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            order = msgspec.json.decode(line, type=LoadOrder)
            if order.do == "stop":
                self._may_send = False
                while any(device.open for device in self.devices.values()):
                    await asyncio.sleep(TICK_SECONDS)
                return
            device = self.devices[order.device]
            if order.do == "stop reading":
                device.stop_reading()
            else:
                device.resume_reading()


def _report(report: Tally | Done) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


async def main() -> None:
    reader = asyncio.StreamReader(LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    plan = msgspec.json.decode(await reader.readline(), type=LoadPlan)
    await Load(plan).run(reader)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    uvloop.run(main())
