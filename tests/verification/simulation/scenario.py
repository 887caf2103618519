"""The scenario of one seed: its users and devices, their messages, and the injected faults."""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imqtt.client import Format
from imqtt.core.partitions import home_of
from tests.verification.checker.check import Verdict, check
from tests.verification.simulation.devices import PlainDevice, Sending, conversations_of
from tests.verification.simulation.faults import FAULTS, Faults
from tests.verification.simulation.loop import Loop, simulated
from tests.verification.simulation.release import DEBIAN, RELEASES, Release
from tests.verification.simulation.world import Worker, World

USERS = ("alice", "bob", "carol")
SETTLE_SECONDS = 120.0  # less than the SDK's shortest wait between two syncs: nobody is helped by one
CALM_SECONDS = 10.0  # where nothing was done to anybody, marks have arrived, too
FRESH_SECONDS = 60.0
CALM_CHECKS = 4  # in a row, a quarter of a second apart


@dataclass(frozen=True, slots=True)
class Shape:
    """What a world is made of. `faults`: their names, in the order in which they are begun."""

    workers: int
    partitions: int
    prefix: bool  # the store commits a prefix of what it cannot take whole (MongoDB), or nothing (SQLite)
    max_batch: int
    sdk: int
    plain: int
    messages: int  # of each device
    seconds: float  # for so long they are sent, and faults begin
    faults: tuple[str, ...]
    resends: float = 0.7  # the share of plain devices that send again what is not answered
    without: tuple[str, ...] = ()  # rules of the store that are switched off, for a planted mistake
    release: Release = DEBIAN  # of Mosquitto, as which the broker behaves


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    shape: Shape
    verdict: Verdict
    fired: dict[str, int]
    seconds: float  # of the world's time
    callbacks: int
    broken: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.verdict.unseen and not self.broken

    def problems(self) -> list[str]:
        return [
            f"{finding.kind}: {finding.conversation}: {finding.what}" for finding in self.verdict.findings
        ] + self.broken


class Scenario:
    """One world's course."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world = world
        self.shape = shape
        self.loop = world.loop
        self.conversations = [f"d:{one}:{two}" for one, two in itertools.combinations(USERS, 2)]
        self.conversations += [home_of(USERS[0])]
        self._faults = Faults(world)

    async def run(self) -> None:
        """From the first process to the last device that syncs from nothing."""
        world, shape = self.world, self.shape
        self._people()
        world.workers = [Worker(world, number) for number in range(shape.workers)]
        for worker in world.workers:
            worker.start()
        for device in [*world.sdk_devices, *world.plain_devices]:
            late = self.loop.random.random()
            self.loop.call_later(max(0.0, late - 0.5) * shape.seconds, device.start)
        async with asyncio.TaskGroup() as tasks:
            for name in shape.faults:
                begin = self.loop.random.random() * shape.seconds
                tasks.create_task(self._faults.strike(name, begin))
            tasks.create_task(self._faults.keep_copies(shape.faults, shape.seconds))
        await self._heal()
        if world.epoch:  # that an idle log was restored is noticed by a sync alone
            for device in world.sdk_devices:
                device.speak(conversations_of(device.user, self.conversations))
        if shape.faults:
            await self._rest(self._settled, SETTLE_SECONDS)
        else:
            await self._rest(self._settled_with_marks, CALM_SECONDS)
        await self._look()

    async def _rest(self, settled: Callable[[], bool], patience: float) -> None:
        deadline = self.loop.time() + patience
        calm = 0
        while calm < CALM_CHECKS and self.loop.time() < deadline:  # what nobody waits for may be on its way
            calm = calm + 1 if settled() else 0
            await asyncio.sleep(0.25)
        if calm < CALM_CHECKS:
            self.world.broken.append(f"not everything has come to rest within {patience:g} s")

    def _people(self) -> None:
        draw, world, shape = self.loop.random, self.world, self.shape
        names = [f"{user}@{device}" for device in ("phone", "tablet") for user in USERS]
        for number in range(shape.sdk + shape.plain):
            name = names[number] if number < shape.sdk else f"{USERS[number % 3]}@plain{number}"
            mine = conversations_of(name.split("@")[0], self.conversations)
            sending = Sending(self.loop, mine, shape.messages, shape.seconds)
            if number < shape.sdk:
                format = draw.choice((Format.JSON, Format.PROTOBUF))
                world.sdk_devices.append(world.sdk_device(name, sending, format))
            else:
                world.plain_devices.append(
                    PlainDevice(
                        self.loop, name, sending, world.write, world.connect,
                        partitions=shape.partitions, resends=draw.random() < shape.resends,
                    )
                )  # fmt: skip

    async def _heal(self) -> None:
        world = self.world
        for worker in world.workers:
            worker.clock_offset = 0
            if not worker.alive:
                worker.start()

    def _settled(self) -> bool:
        """Whether every message is answered, and every device has shown all of it to its program."""
        world = self.world
        if world.broker.unfinished or not all(
            device.settled for device in [*world.sdk_devices, *world.plain_devices]
        ):
            return False
        heads = world.tables.heads(self.conversations)
        return all(
            device.has(conversation, heads[conversation])
            for device in world.sdk_devices
            for conversation in conversations_of(device.user, list(heads))
        )

    def _settled_with_marks(self) -> bool:
        """Whether the store and all devices of a user also have the same marks of that user."""
        stored = {
            (conversation, user): (delivered, read)
            for conversation, (_, marks) in self.world.tables.dump().items()
            for user, delivered, read in marks
        }
        return self._settled() and all(
            tuple(marks) == stored.get((conversation, device.user), (0, 0))
            for device in self.world.sdk_devices
            for conversation, *marks in device.own_marks()
        )

    async def _look(self) -> None:
        """Everything that the checker is to know: what devices hold, and what the store does."""
        world = self.world
        heads = list(world.tables.dump())
        for device in world.sdk_devices:
            assert device.party is not None
            holding = device.party.spawn(device.hold(conversations_of(device.user, heads)))
            await asyncio.wait([holding], timeout=FRESH_SECONDS)
            if device.failure is not None or not holding.done():
                world.broken.append(f"{device.name} does not say what it holds: {device.failure!r}")
            else:
                holding.result()
        fresh = []
        for user in USERS:
            device = world.sdk_device(f"{user}@fresh", Sending(self.loop, [], 0, 0), Format.PROTOBUF)
            party = self.loop.party(device.name)
            fresh.append(party.spawn(device.sync_from_nothing(conversations_of(user, heads))))
        done, waiting = await asyncio.wait(fresh, timeout=FRESH_SECONDS)
        world.broken += [f"a device with nothing does not catch up: {task.get_name()}" for task in waiting]
        for task in done:
            task.result()
        world.record_truth()


def play(seed: int, *, shape: Shape | None = None, trace: bool = False) -> Outcome:
    """Lives through one seed's world, and judges its history."""
    with simulated(seed) as loop:
        return _live(loop, seed, shape or draw_shape(seed), trace=trace)


def _live(loop: Loop, seed: int, shape: Shape, *, trace: bool) -> Outcome:
    world = World(
        loop,
        release=shape.release,
        partitions=shape.partitions,
        prefix=shape.prefix,
        max_batch=shape.max_batch,
        trace=trace,
    )
    for rule in shape.without:
        setattr(world.tables, rule, True)
    with world.in_place():
        try:
            loop.run_until_complete(Scenario(world, shape).run())
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed has found it
            world.broken.append(f"the world ended: {error!r}")
    broken = world.broken + [f"{fault.get('message')}: {fault.get('exception')!r}" for fault in loop.faults]
    verdict = check(world.lines)
    return Outcome(seed, shape, verdict, world.fired, loop.time(), loop.callbacks, broken, world.trace or [])


def draw_shape(seed: int, among: Sequence[str] = ()) -> Shape:
    """Each seed has a few kinds of faults, and not a little of every kind: rare meetings become likely.

    Groce et al., "Swarm Testing", ISSTA 2012. `among`: only these kinds.
    """
    draw = random.Random(seed)
    busy = draw.random() < 0.1  # in one world of ten there is more of everything
    kinds = list(among) or draw.sample(sorted(FAULTS), draw.randint(1, 4))
    faults = [draw.choice(kinds) for _ in range(draw.randint(4, 10) if busy else draw.randint(0, 5))]
    # As a rule without a restore: what it loses hides other losses.
    if not among and "store restored" in faults and draw.random() < 0.7:
        faults = [fault for fault in faults if fault != "store restored"]
    return Shape(
        workers=draw.choice((1, 2, 2, 3)),
        partitions=draw.choice((1, 2, 4)),
        prefix=draw.random() < 0.5,
        max_batch=draw.choice((3, 500)),
        sdk=draw.randint(1, 4),
        plain=draw.randint(0, 2),
        messages=draw.randint(8, 24) if busy else draw.randint(2, 8),
        seconds=draw.choice((1.0, 8.0, 8.0)),
        faults=tuple(faults),
        release=draw.choice(RELEASES),
    )
