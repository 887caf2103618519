"""One soak: the load runs, fault after fault is fired and healed, everything is measured, and then judged."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec

from imqtt.core.partitions import partition_of
from imqtt.errors import ImqttError
from tests.services import eventually
from tests.verification.chaos.faults import Failed, Fault, NotFired, Shape, fire, gather
from tests.verification.chaos.killing import left
from tests.verification.chaos.report import Recovery
from tests.verification.chaos.truth import stored
from tests.verification.checker import history
from tests.verification.checker.check import check
from tests.verification.checker.history import History, Line, now
from tests.verification.soak.faults import SOAK_KINDS, faults
from tests.verification.soak.load import LoadPlan, conversations, devices
from tests.verification.soak.measures import READ, REST, Watch, judge
from tests.verification.soak.parts import LoadEnded, LoadProcess, SoakStack
from tests.verification.soak.reading import read_all
from tests.verification.soak.report import Fresh, Soaked

log = logging.getLogger("soak")

WINDOW = 16  # messages that a device has unanswered at most
# What stands in for MongoDB in tests looks through whole logs for what MongoDB finds by an index: heads of
# one user take it half a second at 300 events each. If forty devices come back at once, with more under way
# than that leaves room for, they keep it busy beyond the server's timeouts, and so for ever.
SMALL_WINDOW = 1
GROUPS = 4  # devices share so many ways to the broker
SAMPLE = 8  # users whose conversations are read from the first event on, at the end
PARTITIONS = 16
KEEP_EVERY = 10  # faults: how often what the broker has is copied, to be put back
HOLD = (0.5, 3.0)  # seconds for which a fault lasts, least and most
RECOVERY_SECONDS = 90.0
SETTLE_SECONDS = 120.0
TROUBLE = (AssertionError, Failed, NotFired, LoadEnded, ImqttError, OSError, TimeoutError)


class Soak(msgspec.Struct, frozen=True):
    """What is to be done. `messages`: at least so many; none is the last while a fault is on.

    `rate`: messages a second, of all devices together. `every`: seconds between faults. `least`: faults that
    are fired, however few messages there are. `kinds`: of the faults; none: all. `sample`: users who read
    everything at the end.
    """

    stack: str
    seed: int
    messages: int
    rate: float
    every: float = 10.0
    least: int = 1
    kinds: tuple[str, ...] = ()
    sample: int = SAMPLE
    workers: int = 0


async def soak(plan: Soak, directory: Path) -> Soaked:
    """Carries it out. All that is written on the way is in the directory."""
    histories = directory / "histories"
    histories.mkdir(parents=True, exist_ok=True)
    harness = History(histories / "harness.jsonl")
    try:
        async with SoakStack(plan.stack, directory, harness, plan.workers) as stack:
            run = Run(stack, plan, histories)
            await run.run()
    finally:
        harness.close()
    outcome = run.judge()
    (directory / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    return outcome


class Run:
    """A plan on a stack that runs."""

    def __init__(self, stack: SoakStack, plan: Soak, histories: Path) -> None:
        self._stack = stack
        self._plan = plan
        self._histories = histories
        self._chance = Random(f"{plan.seed} {plan.stack} soak")
        self._watch = Watch(stack, lambda: self._load.tally.accepted, plan.messages, plan.every)
        self._pids = {name: stack.workers[name].pid for name in stack.regulars}
        self._fired: list[str] = []
        self._not_fired: list[str] = []
        self._failures: list[str] = []
        self._recoveries: list[Recovery] = []
        self._fresh = Fresh([], 0, 0.0)
        self._seconds = 0.0
        self._load: LoadProcess

    async def run(self) -> None:
        await self._begin()
        watching = asyncio.create_task(self._watch.run(), name="watch")
        began = now()
        try:
            await self._fault_after_fault()
        except TROUBLE as error:
            self._fail("the run", error)
        try:
            await self._load.stop(SETTLE_SECONDS)
        except TROUBLE as error:
            self._fail("not everything was answered", error)
            await self._load.end()
        self._seconds = round(now() - began, 1)
        watching.cancel()
        await asyncio.wait([watching])
        if not watching.cancelled() and (failure := watching.exception()) is not None:
            self._fail("measuring", failure)
        await self._end()

    async def _begin(self) -> None:
        stack, plan = self._stack, self._plan
        ways = [
            await stack.add_way(f"devices-{number}>broker", stack.broker.port) for number in range(GROUPS)
        ]
        passwords = await asyncio.to_thread(stack.broker.passwords.add_all, devices())
        await stack.keep_broker()
        slow = stack.mongo is not None and stack.mongo.is_secantus
        self._load = await stack.start_load(
            LoadPlan(
                history=str(self._histories / "load.jsonl"),
                ports=tuple(way.port for way in ways),
                passwords=passwords,
                rate=plan.rate,
                window=SMALL_WINDOW if slow else WINDOW,
                seed=plan.seed,
            )
        )
        await self._watch.look("before")
        began = now()
        await eventually(
            lambda: self._load.tally.slowest > began, within=60, what="each device having been answered"
        )

    # --- faults

    async def _fault_after_fault(self) -> None:
        plan, load = self._plan, self._load
        due = now()
        for number, (kind, target) in enumerate(faults(_shape(self._stack), plan.kinds, self._chance)):
            due = max(due + plan.every, now() + 1.0)
            while now() < due:
                self._look()
                if load.tally.accepted >= plan.messages and number >= plan.least:
                    return
                await asyncio.sleep(0.1)
            if number % KEEP_EVERY == KEEP_EVERY - 1:
                await self._stack.keep_broker()
            await self._fault(SOAK_KINDS[kind](self._stack, kind, target, self._chance))

    async def _fault(self, fault: Fault) -> None:
        what = f"{fault.kind} ({fault.target})"
        try:
            seen = await fire(fault)
        except NotFired as error:
            self._not_fired.append(f"{what}: {error}")
            log.error("%s did not fire: %s", what, error)
            return
        self._fired.append(fault.kind)
        self._write(fault, "fired", seen)
        await asyncio.sleep(max(fault.hold, self._chance.uniform(*HOLD)))
        since = now()
        seen = await fault.heal()
        self._write(fault, "healed", seen)
        healed = now()

        def is_well() -> bool:
            self._look()
            return self._load.tally.slowest > healed

        try:
            await eventually(is_well, within=RECOVERY_SECONDS, what="recovery")
        except AssertionError:
            raise Failed(f"{what}: {self._load.tally.waits} is not answered") from None
        seconds = round(now() - since, 2)
        self._recoveries.append(Recovery([fault.kind], seconds))
        self._write(fault, "recovered", f"{seconds}")

    def _look(self) -> None:
        """Raises `Failed` for a process that has ended by itself."""
        if self._load.pid is None:
            raise self._load.its_end()
        self._look_at_workers()

    def _look_at_workers(self) -> None:
        for name, pid in self._pids.items():
            worker = self._stack.workers[name]
            if worker.pid != pid:
                raise Failed(f"{name} ended by itself: {worker.last_words}")

    def _write(self, fault: Fault, phase: str, detail: str) -> None:
        forgets = phase != "recovered" and fault.kind in fault.forgets
        line = history.Fault("harness", now(), fault.kind, fault.target, phase, detail, forgets=forgets)
        self._stack.history.write(line)
        accepted = f"{self._load.tally.accepted:,}"
        log.info("%9s accepted, %s %s (%s) %s", accepted, phase, fault.kind, fault.target, detail)

    # --- the end

    async def _end(self) -> None:
        """Whatever has gone wrong, the store is read: what it has is the truth."""
        stack = self._stack
        for what, step in (
            ("reading everything", self._rest),
            ("the workers' end", lambda: gather(*(left(stack, worker) for worker in stack.regulars))),
            ("reading the store", self._tell_truth),
        ):
            try:
                await step()
            except TROUBLE as error:
                self._fail(what, error)

    async def _rest(self) -> None:
        await self._stack.broker.save()
        await self._watch.look(REST)
        self._fresh = await self._read()
        self._look_at_workers()
        await self._watch.look(READ)

    async def _tell_truth(self) -> None:
        for line in await stored(self._stack.store, self._stack.epoch):
            self._stack.history.write(line)

    async def _read(self) -> Fresh:
        """Has devices of some users, who know nothing, read all that there is, and writes it down."""
        began = now()
        users = sorted({device.partition("@")[0] for device in devices()})
        sample = sorted(self._chance.sample(users, min(self._plan.sample, len(users))))
        broker, lines = self._stack.broker, self._stack.history
        counts = await asyncio.gather(*(read_all(broker, user, lines) for user in sample))
        log.info("fresh devices of %d users have read %d events", len(sample), sum(counts))
        return Fresh(sample, sum(counts), round(now() - began, 1))

    # --- the judgement

    def judge(self) -> Soaked:
        """Reads the histories, which takes its time; nothing runs any more."""
        began = time.monotonic()
        lines = Counted(history.merge(sorted(self._histories.glob("*.jsonl"))))
        verdict = check(lines)
        tally = self._load.tally
        if tally.refused:
            self._failures.append(f"{tally.refused} messages were refused for good")
        measures = self._watch.measures
        judged = judge(measures, faults=len(self._fired))
        return Soaked(
            stack=self._plan.stack,
            seed=self._plan.seed,
            directory=str(self._stack.directory),
            seconds=self._seconds,
            sent=verdict.sent,
            accepted=verdict.accepted,
            again=tally.again,
            stored=verdict.stored,
            fired=self._fired,
            not_fired=self._not_fired,
            recoveries=self._recoveries,
            findings=[
                (str(finding.kind), finding.conversation, finding.what) for finding in verdict.findings
            ],
            differing=len(verdict.differing),
            unheard=sorted(verdict.unseen & set(self._fresh.users)) if self._fresh.users else ["anybody"],
            lines=lines.count,
            fresh=self._fresh,
            check_seconds=round(time.monotonic() - began, 1),
            measures=measures,
            judged=judged,
            failures=self._failures,
        )

    def _fail(self, what: str, error: BaseException) -> None:
        said = f"{what}: {type(error).__name__} {error}"
        self._failures.append(said)
        log.error("%s", said)


class Counted(Iterator[Line]):
    """Lines, counted as they pass."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.count = 0
        self._lines = lines

    def __next__(self) -> Line:
        line = next(self._lines)
        self.count += 1
        return line


def _shape(stack: SoakStack) -> Shape:
    groups = tuple(f"devices-{number}" for number in range(GROUPS))
    talks = {conversation for name in devices() for conversation in conversations(name.partition("@")[0])}
    sessions = tuple(sorted({partition_of(conversation, PARTITIONS) for conversation in talks}))
    return Shape(stack.kind, stack.regulars, groups, (), sessions)
