"""One run: real devices talk while faults are fired and healed, and then their histories are judged."""

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
from tests.verification.chaos.devices import DeviceEnded, DeviceProcess, fresh
from tests.verification.chaos.devices import Plan as DevicePlan
from tests.verification.chaos.faults import Failed, Fault, NotFired, Shape, fire, gather
from tests.verification.chaos.killing import left
from tests.verification.chaos.kinds import KINDS
from tests.verification.chaos.parts import PARTITIONS, WORKERS, Stack
from tests.verification.chaos.plan import Plan, Planned, Round
from tests.verification.chaos.report import Outcome, Recovery, judged
from tests.verification.chaos.truth import stored
from tests.verification.checker import history
from tests.verification.checker.check import Verdict, check
from tests.verification.checker.history import History, now

log = logging.getLogger("chaos")

SDK = tuple(f"{user}@{name}" for user in ("alice", "bob", "carol") for name in ("phone", "laptop"))
PLAIN = ("alice@plain", "dave@plain")
RATE = 4.0  # messages a second, of each device
MOST_OPEN = 24  # that are unanswered: after a long outage, no more are sent than a slow machine can carry out
CALM_MESSAGES = 10  # that each device has had accepted before the first fault
START_SECONDS = 120.0
RECOVERY_SECONDS = 90.0
SETTLE_SECONDS = 120.0
FINISH_SECONDS = 60.0
PATIENCE = 10.0  # after which a message that is not sent again counts as unanswered

# What a part, or a look at it, may end in: the run has failed then, and is judged all the same.
TROUBLE = (AssertionError, Failed, NotFired, DeviceEnded, ImqttError, OSError, TimeoutError)


def shape(
    stack: str, *, disks: bool, sdk: Sequence[str] = SDK, plain: Sequence[str] = PLAIN, workers: int = 0
) -> Shape:
    """Who takes part in a run on this stack."""
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
    """Direct ones of all pairs, and each user's own."""
    return [*(f"d:{one}:{other}" for one, other in combinations(users, 2)), *(f"u:{user}" for user in users)]


async def run(plan: Plan, directory: Path) -> Outcome:
    """Carries the plan out. All that is written on the way is in the directory."""
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


def judge(histories: Path) -> Verdict:
    """The verdict on all that was written in the directory."""
    return check(history.merge(sorted(histories.glob("*.jsonl"))))


class Run:
    """A plan on a stack that runs."""

    def __init__(self, stack: Stack, plan: Plan) -> None:
        self._stack = stack
        self._plan = plan
        self._histories = stack.directory / "histories"
        self._chance = Random(f"{plan.seed} fired")
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
        except TROUBLE as error:
            self._fail("the run", error)
        verdict = await self._end()
        missing = sorted(self._plan.kinds - set(self._fired))
        return judged(
            Outcome(
                stack=self._stack.kind,
                seed=self._plan.seed,
                rounds=len(self._plan.rounds),
                seconds=round(now() - began, 1),
                directory=str(self._stack.directory),
                again=self._plan.again,
                fired=self._fired,
                not_fired=self._not_fired or [f"{kind}: the run ended before" for kind in missing],
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
            lambda: all(device.progress.accepted >= CALM_MESSAGES for device in self._stack.devices.values()),
            within=START_SECONDS,
            what=f"each device having had {CALM_MESSAGES} messages accepted",
        )

    def _device(self, name: str, number: int) -> DevicePlan:
        user, _, own = name.partition("@")
        shape = self._plan.shape
        plain = name in shape.plain
        directory = self._stack.directory if number else self._stack.device_disk.directory
        talks = [
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
            conversations=tuple(talks),
            rate=RATE,
            most_open=MOST_OPEN,
            seed=self._plan.seed,
            kind="plain" if plain else "sdk",
            patience=PATIENCE,
            format="protobuf" if number % 2 else "json",
            detour=number % 2 == 0,
        )

    # --- a round

    async def _round(self, number: int, round_: Round) -> None:
        if round_.keep:
            await self._stack.keep()
        log.info(
            "round %d: %s", number, ", ".join(f"{fault.kind} ({fault.target})" for fault in round_.faults)
        )
        faults = [
            KINDS[fault.kind](self._stack, fault.kind, fault.target, self._chance) for fault in round_.faults
        ]
        await asyncio.gather(*(map(self._fire, faults, round_.faults)))
        await asyncio.sleep(round_.hold)
        since = now()
        await self._heal(faults)
        await self._recover(number, round_, since)

    async def _fire(self, fault: Fault, planned: Planned) -> None:
        await asyncio.sleep(planned.after)
        what = f"{fault.kind} ({fault.target})"
        try:
            seen = await fire(fault)
        except NotFired as error:
            self._not_fired.append(f"{what}: {error}")
            log.error("%s did not fire: %s", what, error)
        except TROUBLE as error:
            self._fail(what, error)
        else:
            self._fired.append(fault.kind)
            self._write(fault.kind, fault.target, "fired", seen, forgets=fault.kind in fault.forgets)

    async def _heal(self, faults: Sequence[Fault]) -> None:
        for rank in sorted({fault.rank for fault in faults}):
            await asyncio.gather(*(self._heal_one(fault) for fault in faults if fault.rank == rank))

    async def _heal_one(self, fault: Fault) -> None:
        try:
            seen = await fault.heal()
        except TROUBLE as error:
            self._fail(f"healing {fault.kind} ({fault.target})", error)
        else:
            # What a broker was made to forget, it may have forgotten until now.
            self._write(fault.kind, fault.target, "healed", seen, forgets=fault.kind in fault.forgets)

    async def _recover(self, number: int, round_: Round, since: float) -> None:
        """Until every device has been accepted a message that it began to send after all was healed.

        What is told as the time of recovery is from `since` on, when healing began: the start of a process
        is part of it.
        """
        healed = now()
        try:
            await eventually(
                lambda: self._is_well() and not self._waiting(healed),
                within=RECOVERY_SECONDS,
                what="recovery",
            )
        except AssertionError:
            waiting = ", ".join(self._waiting(healed))
            what = f"round {number}: after {RECOVERY_SECONDS:g} s not recovered: {waiting}"
            self._failures.append(what)
            log.error("%s", what)
            return
        except TROUBLE as error:
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
        """Raises `Failed` for a part that has ended by itself."""
        for worker in self._stack.workers.values():
            if worker.wanted and worker.pid is None:
                raise Failed(f"{worker.name} ended by itself: {worker.last_words}")
        for name, device in self._stack.devices.items():
            if device.pid is None:
                raise Failed(f"{name} ended by itself, with {device.ended}")
        return True

    # --- the end

    async def _end(self) -> Verdict:
        """Every device comes to rest and says what it has; then the store is read, and all is judged."""
        stack = self._stack
        # Asked twice: who has come to rest first may lack what another one sent thereafter.
        rested = (
            await self._each("pausing", lambda device: device.command("pause", FINISH_SECONDS))
            and await self._each("coming to rest", lambda device: device.settle(SETTLE_SECONDS))
            and await self._each("coming to rest", lambda device: device.settle(SETTLE_SECONDS))
        )
        if not rested:
            self._failures.append("not all devices came to rest: what is said to be lost may be under way")
        await self._each("finishing", lambda device: device.finish(FINISH_SECONDS))
        for device in stack.devices.values():
            await device.kill()
        try:
            await gather(*map(self._fresh, stack.devices.values()))
            await gather(*(left(stack, worker) for worker in stack.regulars))
            for line in await stored(stack.store, stack.epoch):
                stack.history.write(line)
        except TROUBLE as error:
            self._fail("the end", error)
        return await asyncio.to_thread(judge, self._histories)

    async def _each(self, what: str, ask: Callable[[DeviceProcess], Awaitable[object]]) -> bool:
        """Asks every device the same; whether all of them have done it."""
        devices = list(self._stack.devices.values())
        done = await asyncio.gather(*map(ask, devices), return_exceptions=True)
        for device, result in zip(devices, done, strict=True):
            if isinstance(result, TROUBLE):
                self._fail(f"{device.name}, {what}", result)
            elif isinstance(result, BaseException):
                raise result
        return not any(isinstance(task, BaseException) for task in done)

    async def _fresh(self, device: DeviceProcess) -> None:
        await fresh(device.plan, broker=f"127.0.0.1:{self._stack.broker.port}")

    # --- words

    def _write(self, kind: str, target: str, phase: str, detail: str, *, forgets: bool = False) -> None:
        self._stack.history.write(
            history.Fault("harness", now(), kind, target, phase, detail, forgets=forgets)
        )
        log.info("  %s %s (%s) %s", phase, kind, target, detail)

    def _fail(self, what: str, error: BaseException) -> None:
        said = f"{what}: {error}" if isinstance(error, Failed) else f"{what}: {type(error).__name__} {error}"
        self._failures.append(said)
        log.error("%s", said)
