"""One run: real devices exchange messages under faults; then their histories are checked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

import msgspec

from imqtt.core.partitions import partition_of
from imqtt.errors import ImqttError
from tests.services import eventually
from tests.verification.chaos.devices import DeviceEnded, DeviceProcess, sync_fresh_device
from tests.verification.chaos.devices import Plan as DevicePlan
from tests.verification.chaos.fault_kinds import KINDS
from tests.verification.chaos.faults import Failed, Fault, NotFired, Shape, fire, gather
from tests.verification.chaos.plan import Plan, Planned, Round
from tests.verification.chaos.process_faults import stop_worker
from tests.verification.chaos.report import Outcome, Recovery, with_verdict
from tests.verification.chaos.stack import PARTITIONS, WORKERS, Stack
from tests.verification.chaos.store_reader import read_store
from tests.verification.checker import history
from tests.verification.checker.check import Verdict, check
from tests.verification.checker.history import History, now

log = logging.getLogger("chaos")

SDK = tuple(f"{user}@{name}" for user in ("alice", "bob", "carol") for name in ("phone", "laptop"))
PLAIN = ("alice@plain", "dave@plain")
# Messages per second of each device. For a page, SecantusDB reads all of the log that follows the cursor, and
# for a user's heads all logs: with four messages a second, each recovery took longer than the last.
RATES = {"sqlite": 4.0, "scale": 1.5}
MAX_UNANSWERED = 24  # unanswered: limits the backlog after a long outage to what a slow machine can process
WARMUP_MESSAGES = 10  # accepted of each device before the first fault
START_SECONDS = 120.0
RECOVERY_SECONDS = 240.0  # these end only a stuck run
SETTLE_SECONDS = 300.0
FINISH_SECONDS = 60.0
PATIENCE = 10.0  # seconds after which a message that is not resent counts as unanswered

# Errors that fail the run; its histories are still checked.
RUN_ERRORS = (AssertionError, Failed, NotFired, DeviceEnded, ImqttError, OSError, TimeoutError)


def shape(
    stack: str, *, disks: bool, sdk: Sequence[str] = SDK, plain: Sequence[str] = PLAIN, workers: int = 0
) -> Shape:
    """The parts of a run on this stack."""
    devices = (*sdk, *plain)
    return Shape(
        stack,
        tuple(f"worker-{number + 1}" for number in range(workers or WORKERS[stack])),
        devices,
        tuple(plain),
        tuple(
            sorted({partition_of(conversation, PARTITIONS) for conversation in conversations(users(devices))})
        ),
        disks,
    )


def users(devices: Sequence[str]) -> list[str]:
    return sorted({name.partition("@")[0] for name in devices})


def conversations(users: Sequence[str]) -> list[str]:
    """Direct conversations of all pairs, and each user's own."""
    return [*(f"d:{one}:{other}" for one, other in combinations(users, 2)), *(f"u:{user}" for user in users)]


async def run(plan: Plan, directory: Path) -> Outcome:
    """Executes the plan. All files are written to the directory."""
    histories = directory / "histories"
    histories.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    harness = History(histories / "harness.jsonl")
    try:
        async with Stack(plan.shape.stack, directory, harness, len(plan.shape.workers)) as stack:
            outcome = await Run(stack, plan).run()
    finally:
        harness.close()
    (directory / "outcome.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    return outcome


def check_histories(histories: Path) -> Verdict:
    """Checks all histories in the directory."""
    return check(history.merge(sorted(histories.glob("*.jsonl"))))


class Run:
    """Executes a plan on a running stack."""

    def __init__(self, stack: Stack, plan: Plan) -> None:
        self._stack = stack
        self._plan = plan
        self._histories = stack.directory / "histories"
        self._rng = Random(f"{plan.seed} fired")
        self._fired: list[str] = []
        self._not_fired: list[str] = []
        self._failures: list[str] = []
        self._recoveries: list[Recovery] = []

    async def run(self) -> Outcome:
        began = now()
        try:
            await self._begin()
            for number, round_ in enumerate(self._plan.rounds, 1):
                await self._round(number, round_)
                if self._failures:
                    break
        except RUN_ERRORS as error:
            self._fail("the run", error)
        verdict = await self._end()
        missing = sorted(self._plan.kinds - set(self._fired))
        return with_verdict(
            Outcome(
                stack=self._stack.kind,
                seed=self._plan.seed,
                rounds=len(self._plan.rounds),
                seconds=round(now() - began, 1),
                directory=str(self._stack.directory),
                again=self._plan.command,
                fired=self._fired,
                not_fired=self._not_fired or [f"{kind}: the run ended first" for kind in missing],
                left_out=list(self._plan.left_out),
                recoveries=self._recoveries,
                failures=self._failures,
            ),
            verdict,
        )

    # --- the beginning

    async def _begin(self) -> None:
        for number, name in enumerate(self._plan.shape.devices):
            await self._stack.add_device(self._device(name, number))
        await gather(*(device.start(START_SECONDS) for device in self._stack.devices.values()))
        await eventually(
            lambda: all(
                device.progress.accepted >= WARMUP_MESSAGES for device in self._stack.devices.values()
            ),
            within=START_SECONDS,
            what=f"each device having had {WARMUP_MESSAGES} messages accepted",
        )

    def _device(self, name: str, number: int) -> DevicePlan:
        user, _, own = name.partition("@")
        shape = self._plan.shape
        plain = name in shape.plain
        directory = self._stack.directory if number else self._stack.device_disk.directory
        conversations_of_user = [
            conversation
            for conversation in conversations(users(shape.devices))
            if user in conversation.split(":")[1:]
        ]
        return DevicePlan(
            user=user,
            device=own,
            password="",
            brokers=(),
            history=str(self._histories / f"{user}@{own}.jsonl"),
            store=str(directory / f"{user}@{own}.db") if not plain else "",
            conversations=tuple(conversations_of_user),
            rate=RATES[self._stack.kind],
            max_unanswered=MAX_UNANSWERED,
            seed=self._plan.seed,
            kind="plain" if plain else "sdk",
            patience=PATIENCE,
            format="protobuf" if number % 2 else "json",
            detour=number % 2 == 0,
        )

    # --- a round

    async def _round(self, number: int, round_: Round) -> None:
        if round_.backup:
            await self._stack.back_up()
        log.info(
            "round %d: %s", number, ", ".join(f"{fault.kind} ({fault.target})" for fault in round_.faults)
        )
        faults = [
            KINDS[fault.kind](self._stack, fault.kind, fault.target, self._rng) for fault in round_.faults
        ]
        await asyncio.gather(*(map(self._fire, faults, round_.faults)))
        await asyncio.sleep(round_.hold)
        since = now()
        await self._repair(faults)
        await self._recover(number, round_, since)

    async def _fire(self, fault: Fault, planned: Planned) -> None:
        await asyncio.sleep(planned.after)
        what = f"{fault.kind} ({fault.target})"
        try:
            seen = await fire(fault)
        except NotFired as error:
            self._not_fired.append(f"{what}: {error}")
            log.error("%s did not fire: %s", what, error)
        except RUN_ERRORS as error:
            self._fail(what, error)
        else:
            self._fired.append(fault.kind)
            self._write(fault.kind, fault.target, "fired", seen, loses_state=fault.kind in fault.loses_state)

    async def _repair(self, faults: Sequence[Fault]) -> None:
        for rank in sorted({fault.rank for fault in faults}):
            await asyncio.gather(*(self._repair_one(fault) for fault in faults if fault.rank == rank))

    async def _repair_one(self, fault: Fault) -> None:
        try:
            seen = await fault.repair()
        except RUN_ERRORS as error:
            self._fail(f"repairing {fault.kind} ({fault.target})", error)
        else:
            # A broker may still lose state until it is repaired.
            self._write(
                fault.kind, fault.target, "repaired", seen, loses_state=fault.kind in fault.loses_state
            )

    async def _recover(self, number: int, round_: Round, since: float) -> None:
        """Waits until each device has had a message accepted that it began to send after the repair.

        The recovery time counts from `since`, when the repairs began, so it includes the start of processes.
        """
        repaired = now()
        try:
            await eventually(
                lambda: self._is_well() and not self._waiting(repaired),
                within=RECOVERY_SECONDS,
                what="recovery",
            )
        except AssertionError:
            waiting = ", ".join(self._waiting(repaired))
            what = f"round {number}: not recovered after {RECOVERY_SECONDS:g} s: {waiting}"
            self._failures.append(what)
            log.error("%s", what)
            return
        except RUN_ERRORS as error:
            self._fail(f"round {number}", error)
            return
        seconds = round(now() - since, 2)
        self._recoveries.append(Recovery(sorted({fault.kind for fault in round_.faults}), seconds))
        for fault in round_.faults:
            self._write(fault.kind, fault.target, "recovered", f"{seconds}")
        log.info("round %d: recovered after %.1f s", number, seconds)

    def _waiting(self, since: float) -> list[str]:
        return [name for name, device in self._stack.devices.items() if device.progress.newest <= since]

    def _is_well(self) -> bool:
        """Raises `Failed` if a part has ended on its own."""
        for worker in self._stack.workers.values():
            if worker.should_run and worker.pid is None:
                raise Failed(f"{worker.name} ended on its own: {worker.last_log_line}")
        for name, device in self._stack.devices.items():
            if device.pid is None:
                raise Failed(f"{name} ended on its own with status {device.ended}")
        return True

    # --- the end

    async def _end(self) -> Verdict:
        """Lets every device settle and record what it holds, reads the store, and checks the histories."""
        stack = self._stack
        # Settled twice: the first device to settle may lack messages that another sent afterwards.
        rested = (
            await self._each("pausing", lambda device: device.command("pause", FINISH_SECONDS))
            and await self._each("settling", lambda device: device.settle(SETTLE_SECONDS))
            and await self._each("settling", lambda device: device.settle(SETTLE_SECONDS))
        )
        if not rested:
            self._failures.append("not all devices settled: messages reported as lost may still be in flight")
        await self._each("finishing", lambda device: device.finish(FINISH_SECONDS))
        for device in stack.devices.values():
            await device.kill()
        try:
            await gather(*map(self._sync_fresh_device, stack.devices.values()))
            await gather(*(stop_worker(stack, worker) for worker in stack.initial_workers))
            for line in await read_store(stack.store, stack.epoch):
                stack.history.write(line)
        except RUN_ERRORS as error:
            self._fail("the end", error)
        return await asyncio.to_thread(check_histories, self._histories)

    async def _each(self, what: str, ask: Callable[[DeviceProcess], Awaitable[object]]) -> bool:
        """Calls `ask` for every device; whether all succeeded."""
        devices = list(self._stack.devices.values())
        done = await asyncio.gather(*map(ask, devices), return_exceptions=True)
        for device, result in zip(devices, done, strict=True):
            if isinstance(result, RUN_ERRORS):
                self._fail(f"{device.name}, {what}", result)
            elif isinstance(result, BaseException):
                raise result
        return not any(isinstance(task, BaseException) for task in done)

    async def _sync_fresh_device(self, device: DeviceProcess) -> None:
        await sync_fresh_device(device.plan, broker=f"127.0.0.1:{self._stack.broker.port}")

    # --- records

    def _write(self, kind: str, target: str, phase: str, detail: str, *, loses_state: bool = False) -> None:
        self._stack.history.write(
            history.Fault("harness", now(), kind, target, phase, detail, loses_state=loses_state)
        )
        log.info("  %s %s (%s) %s", phase, kind, target, detail)

    def _fail(self, what: str, error: BaseException) -> None:
        failure = (
            f"{what}: {error}" if isinstance(error, Failed) else f"{what}: {type(error).__name__} {error}"
        )
        self._failures.append(failure)
        log.error("%s", failure)
