"""Workers' clocks that step."""

from collections.abc import Collection

from tests.verification.chaos.faults import WORKERS, Fault, Shape, shows

HOUR = 3_600_000  # milliseconds
EVERY = "every worker"


class Step(Fault):
    """`clock ahead`, `clock behind`: by seconds. `clock hour ahead`, `clock hour behind`.

    Healed by stepping back.
    """

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return (*shape.workers, EVERY) if len(shape.workers) > 1 else shape.workers

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"clock"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        # A worker looks at its clock as long as it runs.
        return {WORKERS} if target == EVERY else {target}

    async def fire(self) -> str:
        stack = self.stack
        step = HOUR if "hour" in self.kind else self.chance.randrange(2_000, 30_000)
        self._offset = step if "ahead" in self.kind else -step
        names = stack.regulars if self.target == EVERY else (self.target,)
        for name in names:
            clock = stack.workers[name].clock
            clock.step(self._offset)
            await shows(lambda clock=clock: clock.seen == self._offset, f"{name} having seen its clock step")
        return f"by {self._offset / 1_000:+g} s"

    async def heal(self) -> str:
        for worker in self.stack.workers.values():
            worker.clock.step(0)
        return ""
