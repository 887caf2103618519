"""The simulated state: like `imqtt.state.memory`, but shared by all workers, as Redis is.

Correctness does not depend on it, so it fails in every way: it loses its data, is unreachable, and remembers
keys that it never stored.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from random import Random
from typing import Any, NamedTuple, TypeVar

from imqtt.model import Device, Key, Registration
from imqtt.state.base import Begun, DevicePresence, StateAway, Worker
from imqtt.state.memory import MemoryState

T = TypeVar("T")

LATENCY = (0.000_1, 0.001)  # seconds, each way
RETRY_SECONDS = 1.0  # at most, until a worker notices that the state is back

Call = Callable[[MemoryState], Coroutine[Any, Any, Any]]


class SharedState:
    """The data shared by all workers. `rate` and `burst` as `MemoryState`'s.

    While it is `away`, no worker reaches it. `mistaken` is the probability that it returns a key that was
    never stored.
    """

    def __init__(self, rate: int, burst: int) -> None:
        self.memory = MemoryState(rate, burst)
        self.away = False
        self.mistaken = 0.0
        self._limits = (rate, burst)

    def flush(self) -> None:
        """FLUSHALL. Earlier leases fill nothing any more, as in Redis."""
        ended = self.memory._lease
        self.memory = MemoryState(*self._limits)
        self.memory._lease = self.memory._oldest = ended + 1


class _Asked(NamedTuple):
    call: Call
    answer: "asyncio.Future[Any]"


class SimState:
    """A `State` of one worker. Calls share round trips and are executed in the order of calling.

    `cut` is like `SharedState.away`, for this worker alone.
    """

    def __init__(self, state: SharedState, random: Random, *, latency: tuple[float, float] = LATENCY) -> None:
        self.cut = False
        self._state = state
        self._random = random.random
        self._loop = asyncio.get_running_loop()
        self._least, self._spread = latency[0], latency[1] - latency[0]
        self._trouble = ""
        self._asked: list[_Asked] = []
        self._under_way = False
        self._meanwhile = MemoryState(*state._limits)

    @property
    def shared(self) -> bool:
        return True

    @property
    def trouble(self) -> str:
        return self._trouble

    async def close(self) -> None:
        self._fail("the state is closed")

    # --- workers

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        return await self._ask(lambda memory: memory.beat(worker, ttl))

    async def workers(self) -> list[Worker]:
        return await self._ask(lambda memory: memory.workers())

    async def leave(self, worker: str) -> None:
        await self._ask_or(None, lambda memory: memory.leave(worker))

    # --- batches

    async def begin(
        self, users: Collection[str], keys: Collection[Key], wanted: Mapping[Device, int], now: int
    ) -> Begun:
        try:
            lists, maybe, tokens = await self._ask(lambda memory: memory.begin(users, keys, wanted, now))
        except StateAway:
            return Begun({}, frozenset(), await self._meanwhile.take(wanted, now))
        return Begun(lists, maybe | self._mistaken(keys), tokens)

    async def finish(
        self, stored: Collection[Key], users: Collection[str]
    ) -> dict[str, tuple[Registration, ...]]:
        nothing: dict[str, tuple[Registration, ...]] = {}
        return await self._ask_or(nothing, lambda memory: memory.finish(stored, users))

    # --- seen ids

    async def seen(self, keys: Collection[Key]) -> frozenset[Key]:
        try:
            found = await self._ask(lambda memory: memory.seen(keys))
        except StateAway:
            return frozenset()
        return found | self._mistaken(keys)

    def _mistaken(self, keys: Collection[Key]) -> set[Key]:
        if not self._state.mistaken:
            return set()
        return {key for key in keys if self._random() < self._state.mistaken}

    async def mark_seen(self, keys: Collection[Key]) -> None:
        await self._ask_or(None, lambda memory: memory.mark_seen(keys))

    # --- device lists

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        nothing: dict[str, tuple[Registration, ...]] = {}
        return await self._ask_or(nothing, lambda memory: memory.devices(users))

    async def lease_devices(self, users: Collection[str]) -> int:
        return await self._ask_or(-1, lambda memory: memory.lease_devices(users))  # older than every lease

    async def fill_devices(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        await self._ask_or(None, lambda memory: memory.fill_devices(lease, lists))

    async def forget_devices(self, users: Collection[str]) -> None:
        await self._ask_or(None, lambda memory: memory.forget_devices(users))

    async def distrust_devices(self) -> None:
        await self._ask_or(None, lambda memory: memory.distrust_devices())

    # --- presence

    async def arrive(self, presence: DevicePresence) -> None:
        await self._ask_or(None, lambda memory: memory.arrive(presence))

    async def update(self, presence: DevicePresence) -> bool:
        return await self._ask_or(otherwise=True, call=lambda memory: memory.update(presence))

    async def refresh(self, devices: Collection[Device], now: int, expires: int) -> dict[Device, str]:
        no_devices: dict[Device, str] = {}
        return await self._ask_or(no_devices, lambda memory: memory.refresh(devices, now, expires))

    async def presence(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        return await self._ask(lambda memory: memory.presence(users))

    async def expired(self, now: int, longest: int | None = None) -> list[DevicePresence]:
        nothing: list[DevicePresence] = []
        return await self._ask_or(nothing, lambda memory: memory.expired(now, longest))

    # --- rate limits

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        try:
            return await self._ask(lambda memory: memory.take(wanted, now))
        except StateAway:
            return await self._meanwhile.take(wanted, now)

    # --- calls

    async def _ask_or(self, otherwise: T, call: Callable[[MemoryState], Coroutine[Any, Any, T]]) -> T:
        try:
            return await self._ask(call)
        except StateAway:
            return otherwise

    def _ask(self, call: Callable[[MemoryState], Coroutine[Any, Any, T]]) -> "asyncio.Future[T]":
        """Fails with `StateAway`, as do all later calls until the state is reachable again."""
        answer: asyncio.Future[T] = self._loop.create_future()
        if self._trouble:
            answer.set_exception(StateAway(self._trouble))
            return answer
        self._asked.append(_Asked(call, answer))
        self._begin()
        return answer

    def _begin(self) -> None:
        if self._asked and not self._under_way:
            self._under_way = True
            self._loop.call_later(self._delay(), self._execute)

    def _execute(self) -> None:
        """Executes all pending calls at the state."""
        asked, self._asked = self._asked, []
        if self._unreachable:
            self._lose(asked)
            return
        memory = self._state.memory
        results = [_result(call.call(memory)) for call in asked]
        self._loop.call_later(self._delay(), self._answer, asked, results)

    def _answer(self, asked: list[_Asked], results: list[Any]) -> None:
        if self._unreachable:
            self._lose(asked)  # executed, but the answer is lost
            return
        self._under_way = False
        for call, result in zip(asked, results, strict=True):
            if not call.answer.done():
                call.answer.set_result(result)
        self._begin()

    def _lose(self, asked: list[_Asked]) -> None:
        self._asked = asked + self._asked
        self._fail("the state is away")
        self._loop.call_later(self._retry_after(), self._try_again)

    def _fail(self, trouble: str) -> None:
        self._trouble = trouble
        asked, self._asked = self._asked, []
        for call in asked:
            if not call.answer.done():
                call.answer.set_exception(StateAway(trouble))

    def _try_again(self) -> None:
        if self._unreachable:
            self._loop.call_later(self._retry_after(), self._try_again)
            return
        self._trouble = ""
        self._under_way = False
        # Before all other calls: an invalidation may have been lost while the state was unreachable.
        self._ask(lambda memory: memory.distrust_devices()).add_done_callback(lambda done: done.exception())

    @property
    def _unreachable(self) -> bool:
        return self.cut or self._state.away

    def _delay(self) -> float:
        return self._least + self._spread * self._random()

    def _retry_after(self) -> float:
        return RETRY_SECONDS * (0.1 + 0.9 * self._random())


def _result(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, like all of `MemoryState`'s."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the coroutine waits")
