"""Threads that carry out an event loop's reads.

`run_in_executor` costs a read 58 us of CPU time: it makes two futures that are chained, one of them with a
lock and a condition, and wakes the event loop for each result. Here a read has one future, and results that
are ready together wake the loop once: 25 us.

A second thread is woken only when a read has waited for a millisecond. Threads that carry out short reads at
the same time mostly wait for Python's global lock: when 2,000 devices said hello at once, waking one for each
read cost a quarter of the server's CPU time.
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

PATIENCE = 0.001  # seconds that calls wait before one more thread is woken for them


def _carry_out(future: asyncio.Future[Any], function: Callable[[], Any]) -> Result:
    try:
        return future, function(), None
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        return future, None, error


class Threads:
    """At most `count` threads, each started when it is first needed."""

    def __init__(self, count: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []
        self._calls: deque[Call] = deque()
        self._awake = 0  # threads that take calls
        self._lock = threading.Lock()  # of these two
        self._wake: SimpleQueue[bool] = SimpleQueue()  # True wakes a sleeping thread, False ends one
        self._watching = False  # whether `_watch` will be called
        self._results: deque[Result] = deque()
        self._reporting = False  # whether the event loop will look for results

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Calls `function` in a thread. A call whose future is cancelled is carried out all the same."""
        future: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            self._calls.append((future, function))
            asleep = self._awake == 0
        if asleep:
            self._wake_one()
        elif not self._watching:
            self._watch()
        return future

    async def close(self) -> None:
        """Returns when every call has its result. No call may follow."""
        for _ in self._threads:
            self._wake.put(False)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._hand_over()

    def _wake_one(self) -> None:
        """Wakes a thread, or starts one if there may be more."""
        with self._lock:
            self._awake += 1
            if self._awake > len(self._threads):
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
        self._wake.put(True)

    def _watch(self, oldest: Call | None = None) -> None:
        """Wakes one more thread if the `oldest` call still waits, and looks again while calls wait."""
        with self._lock:
            waiting = self._calls[0] if self._calls else None
            stuck = waiting is not None and waiting is oldest and self._awake < self._count
        if stuck:
            self._wake_one()
        self._watching = waiting is not None
        if self._watching:
            self._loop.call_later(PATIENCE, self._watch, waiting)

    def _run(self) -> None:
        while self._wake.get():
            while (call := self._next()) is not None:
                self._results.append(_carry_out(*call))
                if not self._reporting:
                    self._reporting = True
                    self._loop.call_soon_threadsafe(self._hand_over)

    def _next(self) -> Call | None:
        """The next call, or None when this thread may sleep."""
        with self._lock:
            if self._calls:
                return self._calls.popleft()
            self._awake -= 1
            return None

    def _hand_over(self) -> None:
        self._reporting = False  # before looking: a thread that sees it False wakes the loop again
        while self._results:
            future, result, error = self._results.popleft()
            if future.done():
                continue  # its caller was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
