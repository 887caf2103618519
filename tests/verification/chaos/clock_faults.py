"""Faults that step the clocks of workers."""

from collections.abc import Collection

from tests.verification.chaos.faults import WORKERS, Fault, Shape, wait_for_effect

HOUR = 3_600_000  # milliseconds
EVERY_WORKER = "every worker"


class ClockStep(Fault):
    """`clock ahead`, `clock behind`: a step of seconds. `clock hour ahead`, `clock hour behind`: of an hour.

    Repaired by stepping back.
    """

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return (*shape.workers, EVERY_WORKER) if len(shape.workers) > 1 else shape.workers

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"clock"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        # A running worker reads its clock continuously.
        return {WORKERS} if target == EVERY_WORKER else {target}

    async def fire(self) -> str:
        stack = self.stack
        step = HOUR if "hour" in self.kind else self.rng.randrange(2_000, 30_000)
        self._offset = step if "ahead" in self.kind else -step
        names = stack.initial_workers if self.target == EVERY_WORKER else (self.target,)
        for name in names:
            clock = stack.workers[name].clock
            clock.step(self._offset)
            await wait_for_effect(
                lambda clock=clock: clock.seen == self._offset, f"{name} reading its stepped clock"
            )
        return f"by {self._offset / 1_000:+g} s"

    async def repair(self) -> str:
        for worker in self.stack.workers.values():
            worker.clock.step(0)
        return ""
