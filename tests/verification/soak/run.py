"""One soak: load and faults, measurements, and the check of its histories."""

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
from tests.verification.chaos.process_faults import stop_worker
from tests.verification.chaos.report import Recovery
from tests.verification.chaos.store_reader import read_store
from tests.verification.checker import history
from tests.verification.checker.check import check
from tests.verification.checker.history import History, Line, now
from tests.verification.soak.faults import SOAK_KINDS, faults
from tests.verification.soak.fresh_reader import read_all
from tests.verification.soak.load import LoadPlan, conversations, devices
from tests.verification.soak.measures import READ, REST, Watch, judge
from tests.verification.soak.report import Fresh, SoakOutcome
from tests.verification.soak.stack import LoadEnded, LoadProcess, SoakStack

log = logging.getLogger("soak")

WINDOW = 16  # maximum of unanswered messages per device
# The tests' substitute for MongoDB scans whole logs where MongoDB uses an index: the heads of one user take
# half a second at 300 events per log. With a larger window, forty devices that reconnect at once would keep
# it busy beyond the server's timeouts, and never recover.
SMALL_WINDOW = 1
PROXIES = 4  # to the broker, shared by all devices
SAMPLE = 8  # users whose conversations are read completely at the end
PARTITIONS = 16
BACKUP_EVERY = 10  # faults between copies of the broker's state
HOLD = (0.5, 3.0)  # shortest and longest duration of a fault in seconds
RECOVERY_SECONDS = 90.0
SETTLE_SECONDS = 120.0
RUN_ERRORS = (AssertionError, Failed, NotFired, LoadEnded, ImqttError, OSError, TimeoutError)


class Soak(msgspec.Struct, frozen=True):
    """The parameters of a soak. `messages`: the minimum; the soak ends when no fault is active.

    `rate`: messages per second of all devices together. `every`: seconds between faults. `least`: the minimum
    number of faults. `kinds`: of faults; empty: all. `sample`: number of users who read everything at the
    end.
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


async def soak(plan: Soak, directory: Path) -> SoakOutcome:
    """Executes the plan. All files are written to the directory."""
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
    """Executes a plan on a running stack."""

    def __init__(self, stack: SoakStack, plan: Soak, histories: Path) -> None:
        self._stack = stack
        self._plan = plan
        self._histories = histories
        self._rng = Random(f"{plan.seed} {plan.stack} soak")
        self._watch = Watch(stack, lambda: self._load.tally.accepted, plan.messages, plan.every)
        self._pids = {name: stack.workers[name].pid for name in stack.initial_workers}
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
            await self._inject_faults()
        except RUN_ERRORS as error:
            self._fail("the run", error)
        try:
            await self._load.stop(SETTLE_SECONDS)
        except RUN_ERRORS as error:
            self._fail("unanswered messages", error)
            await self._load.end()
        self._seconds = round(now() - began, 1)
        watching.cancel()
        await asyncio.wait([watching])
        if not watching.cancelled() and (failure := watching.exception()) is not None:
            self._fail("measuring", failure)
        await self._end()

    async def _begin(self) -> None:
        stack, plan = self._stack, self._plan
        proxies = [
            await stack.add_proxy(f"devices-{number}>broker", stack.broker.port) for number in range(PROXIES)
        ]
        passwords = await asyncio.to_thread(stack.broker.passwords.add_all, devices())
        await stack.back_up_broker()
        slow = stack.mongo is not None and stack.mongo.is_secantus
        self._load = await stack.start_load(
            LoadPlan(
                history=str(self._histories / "load.jsonl"),
                ports=tuple(proxy.port for proxy in proxies),
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

    async def _inject_faults(self) -> None:
        plan, load = self._plan, self._load
        due = now()
        for number, (kind, target) in enumerate(faults(_shape(self._stack), plan.kinds, self._rng)):
            due = max(due + plan.every, now() + 1.0)
            while now() < due:
                self._check_processes()
                if load.tally.accepted >= plan.messages and number >= plan.least:
                    return
                await asyncio.sleep(0.1)
            if number % BACKUP_EVERY == BACKUP_EVERY - 1:
                await self._stack.back_up_broker()
            await self._fault(SOAK_KINDS[kind](self._stack, kind, target, self._rng))

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
        await asyncio.sleep(max(fault.hold, self._rng.uniform(*HOLD)))
        since = now()
        seen = await fault.repair()
        self._write(fault, "repaired", seen)
        repaired = now()

        def is_well() -> bool:
            self._check_processes()
            return self._load.tally.slowest > repaired

        try:
            await eventually(is_well, within=RECOVERY_SECONDS, what="recovery")
        except AssertionError:
            raise Failed(f"{what}: {self._load.tally.slowest_device} is not answered") from None
        seconds = round(now() - since, 2)
        self._recoveries.append(Recovery([fault.kind], seconds))
        self._write(fault, "recovered", f"{seconds}")

    def _check_processes(self) -> None:
        """Raises `Failed` if a process has ended on its own."""
        if self._load.pid is None:
            raise self._load.end_error()
        self._check_workers()

    def _check_workers(self) -> None:
        for name, pid in self._pids.items():
            worker = self._stack.workers[name]
            if worker.pid != pid:
                raise Failed(f"{name} ended on its own: {worker.last_log_line}")

    def _write(self, fault: Fault, phase: str, detail: str) -> None:
        loses_state = phase != "recovered" and fault.kind in fault.loses_state
        line = history.Fault(
            "harness", now(), fault.kind, fault.target, phase, detail, loses_state=loses_state
        )
        self._stack.history.write(line)
        accepted = f"{self._load.tally.accepted:,}"
        log.info("%9s accepted, %s %s (%s) %s", accepted, phase, fault.kind, fault.target, detail)

    # --- the end

    async def _end(self) -> None:
        """Reads the store even after failures: its contents are the reference."""
        stack = self._stack
        for what, step in (
            ("reading everything", self._rest),
            (
                "stopping the workers",
                lambda: gather(*(stop_worker(stack, worker) for worker in stack.initial_workers)),
            ),
            ("reading the store", self._record_store),
        ):
            try:
                await step()
            except RUN_ERRORS as error:
                self._fail(what, error)

    async def _rest(self) -> None:
        await self._stack.broker.save()
        await self._watch.look(REST)
        self._fresh = await self._read()
        self._check_workers()
        await self._watch.look(READ)

    async def _record_store(self) -> None:
        for line in await read_store(self._stack.store, self._stack.epoch):
            self._stack.history.write(line)

    async def _read(self) -> Fresh:
        """Lets fresh devices of some users read everything, and records the events."""
        began = now()
        users = sorted({device.partition("@")[0] for device in devices()})
        sample = sorted(self._rng.sample(users, min(self._plan.sample, len(users))))
        broker, lines = self._stack.broker, self._stack.history
        counts = await asyncio.gather(*(read_all(broker, user, lines) for user in sample))
        log.info("fresh devices of %d users have read %d events", len(sample), sum(counts))
        return Fresh(sample, sum(counts), round(now() - began, 1))

    # --- the check

    def judge(self) -> SoakOutcome:
        """Checks the histories, which takes time. All processes have ended."""
        began = time.monotonic()
        lines = LineCounter(history.merge(sorted(self._histories.glob("*.jsonl"))))
        verdict = check(lines)
        tally = self._load.tally
        if tally.refused:
            self._failures.append(f"{tally.refused} messages were permanently rejected")
        measures = self._watch.measures
        judged = judge(measures, faults=len(self._fired))
        return SoakOutcome(
            stack=self._plan.stack,
            seed=self._plan.seed,
            directory=str(self._stack.directory),
            seconds=self._seconds,
            sent=verdict.sent,
            accepted=verdict.accepted,
            resent=tally.resent,
            stored=verdict.stored,
            fired=self._fired,
            not_fired=self._not_fired,
            recoveries=self._recoveries,
            findings=[
                (str(finding.kind), finding.conversation, finding.what) for finding in verdict.findings
            ],
            differing=len(verdict.differing),
            unread_users=sorted(verdict.unseen & set(self._fresh.users))
            if self._fresh.users
            else ["any user"],
            lines=lines.count,
            fresh=self._fresh,
            check_seconds=round(time.monotonic() - began, 1),
            measures=measures,
            judged=judged,
            failures=self._failures,
        )

    def _fail(self, what: str, error: BaseException) -> None:
        failure = f"{what}: {type(error).__name__} {error}"
        self._failures.append(failure)
        log.error("%s", failure)


class LineCounter(Iterator[Line]):
    """Counts the lines that pass."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.count = 0
        self._lines = lines

    def __next__(self) -> Line:
        line = next(self._lines)
        self.count += 1
        return line


def _shape(stack: SoakStack) -> Shape:
    groups = tuple(f"devices-{number}" for number in range(PROXIES))
    talks = {conversation for name in devices() for conversation in conversations(name.partition("@")[0])}
    sessions = tuple(sorted({partition_of(conversation, PARTITIONS) for conversation in talks}))
    return Shape(stack.kind, stack.initial_workers, groups, (), sessions)
