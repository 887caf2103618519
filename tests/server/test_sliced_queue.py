"""Work that is divided into slices by key: keys take turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from imqtt.errors import StoreUnreachable
from imqtt.server.sliced_queue import SlicedQueue, alone
from tests.services import eventually


class Worker:
    """Does three slices of each key. The next `fail` slices fail."""

    def __init__(self) -> None:
        self.queue = SlicedQueue[str]("testing", alone(self._do))
        self.done: list[str] = []
        self.fail = 0
        self.put: dict[str, str] = {}  # keys that are added during this slice

    async def _do(self, key: str, after: str) -> str:
        number = int(after or "0") + 1
        if self.fail:
            self.fail -= 1
            raise StoreUnreachable("not now")
        self.done.append(f"{key}{number}")
        if (other := self.put.pop(self.done[-1], None)) is not None:
            self.queue.put(other)
        return "" if number == 3 else str(number)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.queue.run())
        yield
        await eventually(lambda: self.queue.idle)
        task.cancel()
        await asyncio.wait([task])


async def test_keys_take_turns() -> None:
    worker = Worker()
    for key in "abb":
        worker.queue.put(key)
    async with worker.working():
        pass
    assert worker.done == ["a1", "b1", "a2", "b2", "a3", "b3"]


async def test_a_key_that_is_put_again_starts_over_after_its_last_slice() -> None:
    for when in ("a1", "a2", "a3"):
        worker = Worker()
        worker.put[when] = "a"
        worker.queue.put("a")
        async with worker.working():
            pass
        assert worker.done == ["a1", "a2", "a3", "a1", "a2", "a3"]


async def test_a_slice_that_fails_is_done_again_before_all_others() -> None:
    worker = Worker()
    worker.fail = 1
    worker.put["a1"] = "c"
    for key in "ab":
        worker.queue.put(key)
    async with worker.working():
        pass
    assert worker.done == ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


async def test_an_exception_ends_the_work_of_its_own_key_only() -> None:
    done: list[str] = []

    async def do(key: str, _: str) -> str:
        if key == "bad":
            raise ValueError(key)
        done.append(key)
        return ""

    queue = SlicedQueue[str]("testing", alone(do))
    queue.put("bad")
    queue.put("good")
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.idle)
    task.cancel()
    assert done == ["good"]


async def test_a_key_that_is_put_again_before_an_exception_starts_over() -> None:
    done: list[str] = []

    async def do(key: str, after: str) -> str:
        done.append(key + after)
        if done == ["a"]:
            queue.put("b")  # is served between the slices of `a`
        elif key == "b":
            queue.put("a")
        elif done == ["a", "b", "a1"]:
            raise ValueError(key)
        return "1" if not after and key == "a" else ""

    queue = SlicedQueue[str]("testing", alone(do))
    queue.put("a")
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.idle)
    task.cancel()
    assert done == ["a", "b", "a1", "a", "a1"]


async def test_first_slices_are_done_together_and_later_ones_alone() -> None:
    done: list[str] = []

    async def do(slices: Sequence[tuple[str, str]]) -> list[str]:
        done.append("+".join(key + after for key, after in slices))
        return ["" if key in "bd" or after else "1" for key, after in slices]

    queue = SlicedQueue[str]("testing", do, together=3)
    for key in "abcde":
        queue.put(key)
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.idle)
    task.cancel()
    assert done == ["a+b+c", "d+e", "a1", "c1", "e1"]


async def test_a_key_that_fails_does_not_fail_those_done_together_with_it() -> None:
    done: list[str] = []

    async def do(slices: Sequence[tuple[str, str]]) -> list[str]:
        if any(key == "bad" for key, _ in slices):
            raise ValueError("bad")
        done.extend(key for key, _ in slices)
        return [""] * len(slices)

    queue = SlicedQueue[str]("testing", do, together=3)
    for key in ("a", "bad", "b"):
        queue.put(key)
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.idle)
    task.cancel()
    assert done == ["a", "b"]
