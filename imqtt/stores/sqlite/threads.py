"""Threads that carry out an event loop's reads.

`run_in_executor` costs a read 58 us of CPU time: it makes two futures that are chained, one of them with a
lock and a condition, and wakes the event loop for each result. Here a read has one future, and results that
are ready together wake the loop once: 25 us.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Call = tuple[asyncio.Future[Any], Callable[[], Any]]
Result = tuple[asyncio.Future[Any], Any, BaseException | None]


def _carry_out(future: asyncio.Future[Any], function: Callable[[], Any]) -> Result:
    try:
        return future, function(), None
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        return future, None, error


class Threads:
    """At most `count` threads, each started when all others may be busy."""

    def __init__(self, count: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._pending = 0  # calls without a result
        self._results: deque[Result] = deque()
        self._waking = False  # whether the event loop will look for results

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Calls `function` in a thread. A call whose future is cancelled is carried out all the same."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        if len(self._threads) < min(self._pending, self._count):
            number = len(self._threads)
            thread = threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._calls.put((future, function))
        return future

    async def close(self) -> None:
        """Returns when every call has its result. No call may follow."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._hand_over()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._results.append(_carry_out(*call))
            if not self._waking:
                self._waking = True
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._waking = False  # before looking: a thread that sees it False wakes the loop again
        while self._results:
            future, result, error = self._results.popleft()
            self._pending -= 1
            if future.done():
                continue  # its caller was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
