"""Faults that remove data or restore old data."""

import shutil
import time
from collections.abc import Collection
from typing import ClassVar

from tests.verification.chaos.faults import WORKERS, Fault, NotFired, Shape, gather
from tests.verification.chaos.process_faults import stop_worker
from tests.verification.chaos.store_reader import read_store
from tests.verification.checker.history import Restored, now


class BrokerStateLoss(Fault):
    """`wipe broker`: killed, and its state deleted. `old broker`: killed, and an old state restored.

    Repaired by starting it. The old state dates from the last `Stack.back_up` or earlier.
    """

    loses_state: ClassVar[Collection[str]] = ("wipe broker", "old broker")

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
                raise NotFired("no old state was saved")
            await broker.kill()
            age = time.time() - copy.stat().st_mtime
            shutil.copyfile(copy, broker.state)
            return f"a state of {copy.stat().st_size} bytes, {age:.0f} s old"
        size = await broker.save()
        await broker.kill()
        broker.state.unlink()
        return f"a state of {size} bytes"

    async def repair(self) -> str:
        await self.stack.broker.start()
        return f"process {self.stack.broker.pid}"


class RedisFlush(Fault):
    """FLUSHALL on Redis. Nothing needs repair."""

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

    async def repair(self) -> str:
        return ""


class BackupRestore(Fault):
    """All servers stop and the store is restored from an earlier backup. Repaired by starting the servers.

    The store is read before the restore: it is the reference for the epoch that ends.
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
            raise NotFired("no backup was taken")
        await gather(
            *(stop_worker(stack, worker.name) for worker in stack.workers.values() if worker.should_run)
        )
        before = await read_store(stack.store, stack.epoch)
        for line in before:
            stack.history.write(line)
        heads = {
            log.conversation: log.rows[-1].seq for log in await read_store(stack.backup_url, 0) if log.rows
        }
        await stack.restore()
        stack.history.write(Restored("harness", now(), stack.epoch, heads))
        stack.epoch += 1
        lost = sum(len(log.rows) for log in before) - sum(heads.values())
        if lost <= 0:
            raise NotFired("the backup lacked nothing")
        return f"{lost} events were not in the backup"

    async def repair(self) -> str:
        await gather(*(self.stack.workers[worker].start() for worker in self.stack.initial_workers))
        return ""
