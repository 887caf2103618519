"""`python -m tests.verification.soak.load`: all devices of a soak in one process, with a plan on stdin.

They send as many messages a second as the plan says, or as many as their windows let through, until they are
told to stop. What the process is told and says are lines of JSON, as in `tests.verification.chaos.console`.
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
LAPTOPS = 10  # so many of the users have a second device
FAR = (1, 2, 5)  # in a ring of users, each talks with those who are so far away
DETOURS = 8  # one device in so many leaves the way to the right partition to the server
PACE_SECONDS = 0.004  # between two looks at what is due
BURST_SECONDS = 0.1  # what was not sent for want of room is made up for no further back
PORTION = 4  # messages of one device that leave together
TICK_SECONDS = 0.25
_ROOM = 1 << 20


class LoadPlan(msgspec.Struct, frozen=True):
    """`ports`: of the ways to the broker, in turn. `rate`: messages a second of all devices together."""

    history: str
    ports: tuple[int, ...]
    passwords: dict[str, str]
    rate: float
    window: int
    seed: int


class Tally(msgspec.Struct, frozen=True, tag_field="said", tag="tally"):
    """How far they are. `slowest`: of each device's newest accepted message, when it was begun; the least.

    `stuck`: devices that are deaf, and to which the broker sends nothing more. `again`: messages that were
    sent again.
    """

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    again: int = 0
    slowest: float = 0.0
    waits: str = ""
    stuck: tuple[str, ...] = ()


class Told(Order, frozen=True):
    """`do`: deafen or hear, a `device`; stop."""

    device: str = ""


class Buffered(History):
    """A history that is written in large pieces: its process is not one that is killed."""

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
    """Those of a user."""
    number = int(name.removeprefix("user"))
    peers = [user(number + sign * far) for far in FAR for sign in (1, -1)]
    return (*(f"d:{min(name, peer)}:{max(name, peer)}" for peer in peers), f"u:{name}")


class Load:
    """All devices, and the pace at which they send."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._history = Buffered(Path(plan.history))
        self._going = True
        chance = Random(f"{plan.seed} load")
        self.devices = {
            name: SoakDevice(
                name,
                plan.passwords[name],
                plan.ports[number % len(plan.ports)],
                conversations(name.partition("@")[0]),
                history=self._history,
                chance=Random(chance.random()),
                window=plan.window,
                format=Format.PROTOBUF if number % 2 else Format.JSON,
                detour=number % DETOURS == 0,
            )
            for number, name in enumerate(devices())
        }

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until it is told to stop and has everything answered, or nobody is there any more."""
        running = [asyncio.create_task(device.run(), name=device.name) for device in self.devices.values()]
        working = [asyncio.create_task(loop(), name=loop.__name__) for loop in (self._pace, self._tick)]
        obeying = asyncio.create_task(self._obey(reader), name="obey")
        tasks = [*running, *working, obeying]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for device in self.devices.values():
            await device.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._history.close()
        for task in done:
            task.result()
        _say(self.tally())
        _say(Done("stop"))

    def tally(self) -> Tally:
        them = self.devices.values()
        slowest = min(them, key=lambda device: device.newest)
        return Tally(
            sum(device.sent for device in them),
            sum(device.accepted for device in them),
            sum(device.refused for device in them),
            sum(device.again for device in them),
            slowest.newest,
            slowest.name,
            tuple(device.name for device in them if device.stuck),
        )

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        rate = self._plan.rate
        everyone = list(self.devices.values())
        turn = 0
        due = 0.0
        last = loop.time()
        while self._going:
            await asyncio.sleep(PACE_SECONDS)
            at = loop.time()
            due = min(due + (at - last) * rate, BURST_SECONDS * rate)
            last = at
            idle = 0
            while self._going and due >= 1 and idle < len(everyone):
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
            _say(self.tally())

    async def _obey(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            told = msgspec.json.decode(line, type=Told)
            if told.do == "stop":
                self._going = False
                while any(device.open for device in self.devices.values()):
                    await asyncio.sleep(TICK_SECONDS)
                return
            device = self.devices[told.device]
            if told.do == "deafen":
                device.deafen()
            else:
                device.hear()


def _say(said: Tally | Done) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
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
