"""Parts that lose their data, or restart with old data."""

import shutil
import time
from collections.abc import Collection
from typing import ClassVar

from tests.verification.chaos.faults import WORKERS, Fault, NotFired, Shape, gather
from tests.verification.chaos.killing import left
from tests.verification.chaos.truth import stored
from tests.verification.checker.history import Restored, now


class Amnesia(Fault):
    """`wipe broker`: killed, and its state removed. `old broker`: killed, and an old state put in place.

    Healed by starting it. What is old is at least as old as the last `Stack.keep`.
    """

    forgets: ClassVar[Collection[str]] = ("wipe broker", "old broker")

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("broker",)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"broker"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return set()

    async def fire(self) -> str:
        broker, copy = self.stack.broker, self.stack.broker_copy
        if self.kind == "old broker":
            if copy is None:
                raise NotFired("there is no old state")
            await broker.kill()
            age = time.time() - copy.stat().st_mtime
            shutil.copyfile(copy, broker.state)
            return f"a state of {copy.stat().st_size} bytes, {age:.0f} s old"
        size = await broker.save()
        await broker.kill()
        broker.state.unlink()
        return f"a state of {size} bytes"

    async def heal(self) -> str:
        await self.stack.broker.start()
        return f"process {self.stack.broker.pid}"


class Flush(Fault):
    """FLUSHALL on Redis. There is nothing to heal."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("redis",) if shape.stack == "scale" else ()

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"seen"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {"redis"}

    async def fire(self) -> str:
        redis = self.stack.redis
        assert redis is not None
        keys = int(redis.command("DBSIZE")[1:])
        answer = redis.command("FLUSHALL")
        if not keys or not answer.startswith(b"+OK"):
            raise NotFired(f"{keys} keys, {answer!r}")
        return f"{keys} keys"

    async def heal(self) -> str:
        return ""


class Restore(Fault):
    """The store is put back to an earlier backup, while no server runs. Healed by starting them.

    What the store had is read before, since it is the truth of the epoch that ends here.
    """

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("store",)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {WORKERS, "store", "disk", "shares"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {"broker", "redis"}

    async def fire(self) -> str:
        stack = self.stack
        if stack.backup is None:
            raise NotFired("there is no backup")
        await gather(*(left(stack, worker.name) for worker in stack.workers.values() if worker.wanted))
        was = await stored(stack.store, stack.epoch)
        for line in was:
            stack.history.write(line)
        heads = {log.conversation: log.rows[-1].seq for log in await stored(stack.backup_url, 0) if log.rows}
        await stack.restore()
        stack.history.write(Restored("harness", now(), stack.epoch, heads))
        stack.epoch += 1
        lost = sum(len(log.rows) for log in was) - sum(heads.values())
        if lost <= 0:
            raise NotFired("the backup had everything")
        return f"{lost} events that the backup did not have"

    async def heal(self) -> str:
        await gather(*(self.stack.workers[worker].start() for worker in self.stack.regulars))
        return ""
