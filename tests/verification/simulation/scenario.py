"""The scenario of one seed: its users and devices, their messages, and the injected faults."""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imqtt.client import Format
from imqtt.core.partitions import home_of
from tests.verification.checker.check import Verdict, check
from tests.verification.simulation.devices import MessagePlan, PlainDevice, conversations_of
from tests.verification.simulation.faults import FAULTS, Faults
from tests.verification.simulation.loop import Loop, simulated
from tests.verification.simulation.release import DEBIAN, RELEASES, Release
from tests.verification.simulation.world import Worker, World

USERS = ("alice", "bob", "carol")
SETTLE_SECONDS = 120.0  # less than the SDK's shortest interval of syncs, so that no sync hides a fault
QUIET_SECONDS = 10.0  # without faults, marks must have arrived as well
FRESH_SECONDS = 60.0
QUIET_CHECKS = 4  # in a row, a quarter of a second apart


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of a world. `faults`: their names, in the order of injection."""

    workers: int
    partitions: int
    prefix: bool  # of a failing append, the store commits a prefix (MongoDB) or nothing (SQLite)
    max_batch: int
    sdk: int
    plain: int
    messages: int  # per device
    seconds: float  # duration of sending and of the start of faults
    faults: tuple[str, ...]
    resends: float = 0.7  # share of plain devices that resend unanswered messages
    without: tuple[str, ...] = ()  # rules of the store to switch off, for a planted mistake
    release: Release = DEBIAN  # of Mosquitto, which the broker simulates


@dataclass(slots=True)
class Outcome:
    """The result of one seed."""

    seed: int
    shape: Shape
    verdict: Verdict
    fired: dict[str, int]
    seconds: float  # of virtual time
    callbacks: int
    errors: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.verdict.unseen and not self.errors

    def problems(self) -> list[str]:
        return [
            f"{finding.kind}: {finding.conversation}: {finding.what}" for finding in self.verdict.findings
        ] + self.errors


class Scenario:
    """The course of one world."""

    def __init__(self, world: World, shape: Shape) -> None:
        self.world = world
        self.shape = shape
        self.loop = world.loop
        self.conversations = [f"d:{one}:{two}" for one, two in itertools.combinations(USERS, 2)]
        self.conversations += [home_of(USERS[0])]
        self._faults = Faults(world)

    async def run(self) -> None:
        """Runs from the start of the first process to the sync of the last fresh device."""
        world, shape = self.world, self.shape
        self._create_devices()
        world.workers = [Worker(world, number) for number in range(shape.workers)]
        for worker in world.workers:
            worker.start()
        for device in [*world.sdk_devices, *world.plain_devices]:
            late = self.loop.random.random()
            self.loop.call_later(max(0.0, late - 0.5) * shape.seconds, device.start)
        async with asyncio.TaskGroup() as tasks:
            for name in shape.faults:
                begin = self.loop.random.random() * shape.seconds
                tasks.create_task(self._faults.inject(name, begin))
            tasks.create_task(self._faults.keep_copies(shape.faults, shape.seconds))
        await self._restore_workers()
        if world.epoch:  # only a sync detects the restore of an idle log
            for device in world.sdk_devices:
                device.send_more(conversations_of(device.user, self.conversations))
        if shape.faults:
            await self._settle(self._settled, SETTLE_SECONDS)
        else:
            await self._settle(self._settled_with_marks, QUIET_SECONDS)
        await self._record_contents()

    async def _settle(self, settled: Callable[[], bool], patience: float) -> None:
        deadline = self.loop.time() + patience
        quiet_checks = 0
        while quiet_checks < QUIET_CHECKS and self.loop.time() < deadline:  # traffic may still be in flight
            quiet_checks = quiet_checks + 1 if settled() else 0
            await asyncio.sleep(0.25)
        if quiet_checks < QUIET_CHECKS:
            self.world.errors.append(f"the world did not settle within {patience:g} s")

    def _create_devices(self) -> None:
        draw, world, shape = self.loop.random, self.world, self.shape
        names = [f"{user}@{device}" for device in ("phone", "tablet") for user in USERS]
        for number in range(shape.sdk + shape.plain):
            name = names[number] if number < shape.sdk else f"{USERS[number % 3]}@plain{number}"
            mine = conversations_of(name.split("@")[0], self.conversations)
            plan = MessagePlan(self.loop, mine, shape.messages, shape.seconds)
            if number < shape.sdk:
                format = draw.choice((Format.JSON, Format.PROTOBUF))
                world.sdk_devices.append(world.sdk_device(name, plan, format))
            else:
                world.plain_devices.append(
                    PlainDevice(
                        self.loop, name, plan, world.write, world.connect,
                        partitions=shape.partitions, resends=draw.random() < shape.resends,
                    )
                )  # fmt: skip

    async def _restore_workers(self) -> None:
        world = self.world
        for worker in world.workers:
            worker.clock_offset = 0
            if not worker.alive:
                worker.start()

    def _settled(self) -> bool:
        """Whether every message is answered and every device has shown all events to its program."""
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
        """Whether, in addition, the store and all devices of a user have the same marks of that user."""
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

    async def _record_contents(self) -> None:
        """Records what devices hold and what the store contains, for the checker."""
        world = self.world
        heads = list(world.tables.dump())
        for device in world.sdk_devices:
            assert device.process is not None
            holding = device.process.spawn(device.record_held(conversations_of(device.user, heads)))
            await asyncio.wait([holding], timeout=FRESH_SECONDS)
            if device.failure is not None or not holding.done():
                world.errors.append(f"{device.name} does not record what it holds: {device.failure!r}")
            else:
                holding.result()
        fresh = []
        for user in USERS:
            device = world.sdk_device(f"{user}@fresh", MessagePlan(self.loop, [], 0, 0), Format.PROTOBUF)
            process = self.loop.new_process(device.name)
            fresh.append(process.spawn(device.sync_fresh_device(conversations_of(user, heads))))
        done, waiting = await asyncio.wait(fresh, timeout=FRESH_SECONDS)
        world.errors += [f"a fresh device does not catch up: {task.get_name()}" for task in waiting]
        for task in done:
            task.result()
        world.record_store()


def run_seed(seed: int, *, shape: Shape | None = None, trace: bool = False) -> Outcome:
    """Runs one seed's world and checks its history."""
    with simulated(seed) as loop:
        return _run_world(loop, seed, shape or draw_shape(seed), trace=trace)


def _run_world(loop: Loop, seed: int, shape: Shape, *, trace: bool) -> Outcome:
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
    with world.patched():
        try:
            loop.run_until_complete(Scenario(world, shape).run())
        except Exception as error:  # noqa: BLE001 - any error is a finding of this seed
            world.errors.append(f"the world failed: {error!r}")
    errors = world.errors + [f"{fault.get('message')}: {fault.get('exception')!r}" for fault in loop.errors]
    verdict = check(world.lines)
    return Outcome(seed, shape, verdict, world.fired, loop.time(), loop.callbacks, errors, world.trace or [])


def draw_shape(seed: int, among: Sequence[str] = ()) -> Shape:
    """Each seed has a few kinds of faults instead of some of every kind: rare combinations become likely.

    Groce et al., "Swarm Testing", ISSTA 2012. `among`: only these kinds.
    """
    draw = random.Random(seed)
    busy = draw.random() < 0.1  # one world in ten has more messages and faults
    kinds = list(among) or draw.sample(sorted(FAULTS), draw.randint(1, 4))
    faults = [draw.choice(kinds) for _ in range(draw.randint(4, 10) if busy else draw.randint(0, 5))]
    # Mostly without a restore: the messages that it removes hide other losses.
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
