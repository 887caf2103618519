"""An event loop with virtual time that runs several processes, which may be killed or paused.

Time advances only when every process waits, so an hour of silence costs nothing. Each process's callbacks run
in the order of scheduling, as on an event loop of its own; a seeded random choice interleaves the processes.
Every seed gives another interleaving, and the same seed always the same one. (FoundationDB and TigerBeetle
are tested this way; J. Zhou et al., "FoundationDB", SIGMOD 2021, section 4.)

A killed process never runs again, not even its `finally` blocks: as after SIGKILL.

All sources of differences between runs are removed: clocks, `random`, `uuid4` and `secrets` follow the seed,
and tasks hash by number instead of address. Hashes of strings depend on PYTHONHASHSEED, which
`tests.verification.simulation` sets.
"""

import asyncio
import contextlib
import contextvars
import gc
import heapq
import os
import random
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_790_000_000.0  # seconds since the Unix epoch, when every simulation begins
CALLBACK_SECONDS = 2e-6  # duration of a callback, so that time also passes in a process that never waits
AT_ONCE = 6  # callbacks that a process may run before others get a turn

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


def current() -> "Process | None":
    """The process whose callback is running; None for the world itself, which is never killed."""
    return _process.get()


class Handle:
    """A scheduled callback, like asyncio's. It does not run if its process was killed."""

    __slots__ = ("_args", "_callback", "_context", "_when", "process")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        process: "Process",
        when: float = 0.0,
    ) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = context
        self._when = when
        self.process = process

    def cancel(self) -> None:
        self._callback = None
        self._args = ()

    def cancelled(self) -> bool:
        return self._callback is None

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if self._callback is not None:
            self._context.run(self._callback, *self._args)


class Process:
    """A process of the simulated world, made by `Loop.new_process`."""

    __slots__ = ("_context", "_loop", "alive", "at_zero", "countdown", "name", "paused", "ready", "tasks")

    def __init__(self, loop: "Loop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []  # referenced, so that those of a killed process stay open
        self.countdown = -1  # callbacks until `at_zero` is called; negative: no countdown
        self.at_zero: Callable[[], None] | None = None
        self._loop = loop
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Handle:
        """Schedules a callback: dropped if the process is killed, delayed while it is paused."""
        return self._loop.call_soon(callback, *args, context=self._context)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """As `call_soon`, after `delay` seconds."""
        return self._loop.call_later(delay, callback, *args, context=self._context)

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> "asyncio.Task[T]":
        """Creates a task of this process."""
        return self._loop.create_task(work, name=name or self.name, context=self._context.copy())

    def call_after(self, callbacks: int, at_zero: Callable[[], None]) -> None:
        """Calls `at_zero`, as the world, when this process has run this many more callbacks."""
        self.countdown, self.at_zero = callbacks, at_zero

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Task(asyncio.Task[Any]):
    def __init__(self, work: Any, number: int, **given: Any) -> None:
        self._number = number
        super().__init__(work, **given)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.AbstractEventLoop):
    """Created by `simulated(seed)`. `random` is for all decisions about the world."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.errors: list[dict[str, Any]] = []  # unexpected exceptions
        self.callbacks = 0  # number of callbacks run
        self._now = 0.0
        self._numbers = 0
        self._timers: list[tuple[float, int, Handle]] = []
        self._world = Process(self, "world")
        self._processes = [self._world]
        self._alive = [self._world]
        self._closed = False

    # --- processes

    def new_process(self, name: str) -> Process:
        process = Process(self, name)
        self._processes.append(process)
        self._alive.append(process)
        return process

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        if process.alive:
            self._alive.remove(process)
        process.alive = False
        process.countdown = -1
        process.ready.clear()

    def pause(self, process: Process) -> None:
        """SIGSTOP."""
        process.paused = True

    def resume(self, process: Process) -> None:
        """SIGCONT: everything that arrived meanwhile, including timers, is ready at once."""
        process.paused = False

    # --- scheduling

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]  # our handles are not asyncio's
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        process = context.get(_process) or self._world
        handle = Handle(callback, args, context, process)
        if process.alive and not self._closed:
            process.ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # see above
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]  # see above
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # see above
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context, context.get(_process) or self._world, when)
        if not self._closed:
            self._numbers += 1
            heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        self._numbers += 1
        task = _Task(coro, self._numbers, loop=self, name=name or "task", context=context)
        process = (context.get(_process) if context is not None else _process.get()) or self._world
        process.tasks.append(task)
        return task

    def run_until_complete(self, future: Any) -> Any:
        """Runs the world until `future` is done. Raises `Deadlock` if nothing is left to run."""
        task = asyncio.ensure_future(future, loop=self)
        asyncio.events._set_running_loop(self)
        try:
            while not task.done():
                self._run_once()
        finally:
            asyncio.events._set_running_loop(None)
        return task.result()

    def _run_once(self) -> None:
        """Runs a few callbacks of one process, or advances to the next timer."""
        runnable = [process for process in self._alive if process.ready and not process.paused]
        if not runnable:
            self._advance()
            return
        draw, timers = self.random.random, self._timers
        chosen = runnable[0] if len(runnable) == 1 else runnable[int(draw() * len(runnable))]
        ready = chosen.ready
        for _ in range(1 + int(draw() * AT_ONCE)):
            if not ready or chosen.paused:  # a killed process has no callbacks left
                return
            handle = ready.popleft()
            self._now = now = self._now + CALLBACK_SECONDS
            self.callbacks += 1
            try:
                handle.run()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - as asyncio does; the scenario reports them
                self.errors.append({"message": "a callback failed", "exception": error})
            if timers and timers[0][0] <= now:
                self._schedule_due_timers()
            if chosen.countdown >= 0:
                self._count_down(chosen)

    def _count_down(self, process: Process) -> None:
        process.countdown -= 1
        if process.countdown < 0 and process.at_zero is not None:
            process.at_zero()

    def _advance(self) -> None:
        while self._timers and (self._timers[0][2].cancelled() or not self._timers[0][2].process.alive):
            heapq.heappop(self._timers)
        if not self._timers:
            raise Deadlock("nothing is left to run")
        self._now = max(self._now, self._timers[0][0])
        self._schedule_due_timers()

    def _schedule_due_timers(self) -> None:
        """Hands due timers to their processes, in order."""
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled() and handle.process.alive:
                handle.process.ready.append(handle)

    # --- asyncio's interface of a loop

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stops running and discards everything that is left."""
        self._closed = True
        for process in self._processes:
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way
                    _end(task.get_coro())
            process.tasks.clear()
            process.ready.clear()
        self._timers.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _end(work: Any) -> None:
    """Closes a coroutine now, so that its `finally` blocks have no effect.

    The garbage collector would do the same at any time and draw from the randomness of a later world.
    """
    for _ in range(20):  # a `finally` block that waits has to be closed again
        try:
            work.close()
        except BaseException:  # noqa: BLE001 - its process is dead
            continue
        return


class Deadlock(AssertionError):
    """Every process waits for something that cannot happen."""


@contextlib.contextmanager
def simulated(seed: int) -> Iterator[Loop]:
    """A loop whose processes get the seed's time and randomness."""
    loop = Loop(seed)
    drawn = random.Random(seed ^ 0x5EED)
    originals = (time.monotonic, time.time, time.time_ns, os.urandom, secrets.token_bytes)
    state, hook = random.getstate(), sys.unraisablehook
    random.seed(seed)
    time.monotonic = loop.time
    time.time = lambda: EPOCH + loop.time()
    time.time_ns = lambda: int((EPOCH + loop.time()) * 1e9)
    os.urandom = drawn.randbytes
    secrets.token_bytes = lambda nbytes=None: drawn.randbytes(32 if nbytes is None else nbytes)
    sys.unraisablehook = lambda _: None  # coroutines closed by `close` raise
    gc.disable()
    try:
        yield loop
    finally:
        loop.close()
        gc.enable()
        time.monotonic, time.time, time.time_ns, os.urandom, secrets.token_bytes = originals
        random.setstate(state)
        sys.unraisablehook = hook
