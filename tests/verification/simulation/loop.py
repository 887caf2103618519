"""An event loop with virtual time, on which several processes run as parties that may be killed or paused.

Time passes when nobody has anything to do, so an hour of silence costs nothing. Each party's callbacks run
in the order in which they were scheduled, as on an event loop of its own; between parties a seeded random
choice decides, so every seed is another interleaving, and the same seed is always the same one. (FoundationDB
and TigerBeetle are tested so; S. Zhou et al., "FoundationDB", SIGMOD 2021, section 4.)

A party that is killed never runs again, and none of its `finally` blocks do: as after SIGKILL.

What would tell one run from the next is taken away: clocks, `random`, `uuid4` and `secrets` follow the seed,
tasks hash by number and not by address. Strings hash alike only in processes with one
PYTHONHASHSEED, which `tests.verification.simulation` sees to.
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
CALLBACK_SECONDS = 2e-6  # that a callback takes: a party that never waits lets time pass as well
AT_ONCE = 6  # callbacks that a party runs before others have their chance, at most

_party: contextvars.ContextVar["Party | None"] = contextvars.ContextVar("party", default=None)


def current() -> "Party | None":
    """The party whose callback runs; None for the world itself, which nobody kills."""
    return _party.get()


class Handle:
    """A scheduled callback, as asyncio's. A party's own durable to what becomes of the party."""

    __slots__ = ("_args", "_callback", "_context", "_when", "party")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        party: "Party",
        when: float = 0.0,
    ) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = context
        self._when = when
        self.party = party

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


class Party:
    """A process of the simulated world. `Loop.party` makes it."""

    __slots__ = ("_context", "_loop", "alive", "fuse", "name", "paused", "ready", "tasks", "when_blown")

    def __init__(self, loop: "Loop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []  # so that the collector does not end what was killed
        self.fuse = -1  # callbacks until `when_blown` is called; negative: none is lit
        self.when_blown: Callable[[], None] | None = None
        self._loop = loop
        self._context = contextvars.copy_context()
        self._context.run(_party.set, self)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Handle:
        """Runs it as this party: never if it was killed by then, later while it is paused."""
        return self._loop.call_soon(callback, *args, context=self._context)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """As `call_soon`, after `delay` seconds."""
        return self._loop.call_later(delay, callback, *args, context=self._context)

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> "asyncio.Task[T]":
        """A task of this party."""
        return self._loop.create_task(work, name=name or self.name, context=self._context.copy())

    def light(self, callbacks: int, when_blown: Callable[[], None]) -> None:
        """Calls `when_blown`, as the world, once this party has run so many callbacks more."""
        self.fuse, self.when_blown = callbacks, when_blown

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Task(asyncio.Task[Any]):
    def __init__(self, work: Any, number: int, **given: Any) -> None:
        self._number = number
        super().__init__(work, **given)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.AbstractEventLoop):
    """To be used by `simulated(seed)`. `random` is for whoever decides what happens in the world."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.faults: list[dict[str, Any]] = []  # exceptions that nobody expected
        self.callbacks = 0  # that have run
        self._now = 0.0
        self._numbers = 0
        self._timers: list[tuple[float, int, Handle]] = []
        self._world = Party(self, "world")
        self._parties = [self._world]
        self._living = [self._world]
        self._closed = False

    # --- parties

    def party(self, name: str) -> Party:
        """A new process."""
        party = Party(self, name)
        self._parties.append(party)
        self._living.append(party)
        return party

    def crash(self, party: Party) -> None:
        """SIGKILL."""
        if party.alive:
            self._living.remove(party)
        party.alive = False
        party.fuse = -1
        party.ready.clear()

    def pause(self, party: Party) -> None:
        """SIGSTOP."""
        party.paused = True

    def resume(self, party: Party) -> None:
        """SIGCONT: whatever came meanwhile, timers too, is there at once."""
        party.paused = False

    # --- scheduling

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]  # our handles are not asyncio's
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if context is None:
            context = contextvars.copy_context()
        party = context.get(_party) or self._world
        handle = Handle(callback, args, context, party)
        if party.alive and not self._closed:
            party.ready.append(handle)
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
        handle = Handle(callback, args, context, context.get(_party) or self._world, when)
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
        party = (context.get(_party) if context is not None else _party.get()) or self._world
        party.tasks.append(task)
        return task

    def run_until_complete(self, future: Any) -> Any:
        """Runs the world until `future` is done. Raises `Deadlock` where nothing would ever happen again."""
        task = asyncio.ensure_future(future, loop=self)
        asyncio.events._set_running_loop(self)
        try:
            while not task.done():
                self._run_once()
        finally:
            asyncio.events._set_running_loop(None)
        return task.result()

    def _run_once(self) -> None:
        """A few callbacks of one party, or the next timer."""
        runnable = [party for party in self._living if party.ready and not party.paused]
        if not runnable:
            self._advance()
            return
        draw, timers = self.random.random, self._timers
        chosen = runnable[0] if len(runnable) == 1 else runnable[int(draw() * len(runnable))]
        ready = chosen.ready
        for _ in range(1 + int(draw() * AT_ONCE)):
            if not ready or chosen.paused:  # who is killed has nothing left
                return
            handle = ready.popleft()
            self._now = now = self._now + CALLBACK_SECONDS
            self.callbacks += 1
            try:
                handle.run()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 - as asyncio does; whoever runs the world looks at them
                self.faults.append({"message": "a callback failed", "exception": error})
            if timers and timers[0][0] <= now:
                self._ring()
            if chosen.fuse >= 0:
                self._burn(chosen)

    def _burn(self, party: Party) -> None:
        party.fuse -= 1
        if party.fuse < 0 and party.when_blown is not None:
            party.when_blown()

    def _advance(self) -> None:
        while self._timers and (self._timers[0][2].cancelled() or not self._timers[0][2].party.alive):
            heapq.heappop(self._timers)
        if not self._timers:
            raise Deadlock("nothing is left that could ever happen")
        self._now = max(self._now, self._timers[0][0])
        self._ring()

    def _ring(self) -> None:
        """Timers that are due go to their parties, in their order."""
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled() and handle.party.alive:
                handle.party.ready.append(handle)

    # --- what asyncio asks of a loop

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nothing runs any more; what is left over is let go without a word."""
        self._closed = True
        for party in self._parties:
            for task in party.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way
                    _end(task.get_coro())
            party.tasks.clear()
            party.ready.clear()
        self._timers.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.faults.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _end(work: Any) -> None:
    """Ends a coroutine here and now. Whatever its `finally` blocks do, and would wait for, leads nowhere.

    Left to the collector it would do the same at any time, and draw from the randomness of a later world.
    """
    for _ in range(20):  # a block that waits has to be ended once more
        try:
            work.close()
        except BaseException:  # noqa: BLE001 - it is dead already
            continue
        return


class Deadlock(AssertionError):
    """Everybody waits for something that will not come."""


@contextlib.contextmanager
def simulated(seed: int) -> Iterator[Loop]:
    """A loop whose parties find the seed's time and randomness wherever they look for them."""
    loop = Loop(seed)
    drawn = random.Random(seed ^ 0x5EED)
    before = (time.monotonic, time.time, time.time_ns, os.urandom, secrets.token_bytes)
    state, hook = random.getstate(), sys.unraisablehook
    random.seed(seed)
    time.monotonic = loop.time
    time.time = lambda: EPOCH + loop.time()
    time.time_ns = lambda: int((EPOCH + loop.time()) * 1e9)
    os.urandom = drawn.randbytes
    secrets.token_bytes = lambda nbytes=None: drawn.randbytes(32 if nbytes is None else nbytes)
    sys.unraisablehook = lambda _: None  # what is ended by `close` complains
    gc.disable()
    try:
        yield loop
    finally:
        loop.close()
        gc.enable()
        time.monotonic, time.time, time.time_ns, os.urandom, secrets.token_bytes = before
        random.setstate(state)
        sys.unraisablehook = hook
