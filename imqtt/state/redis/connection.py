"""The link to Redis: what is asked together goes together, in bounded time, or not at all.

Calls that are made within one iteration of the event loop, or while others are on their way, share the next
round trip. A round trip that takes too long, or a Redis that takes nothing, means that it is away: every call
fails at once then, and costs its caller nothing, while one task tries to get it back.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from random import random
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from imqtt.core.backoff import backoff
from imqtt.problems import Problem, explain
from imqtt.state.base import StateAway
from imqtt.state.redis.address import Address, is_away, open_first, pack
from imqtt.state.redis.keys import Keys

log = logging.getLogger(__name__)

# A round trip takes 0.2 ms on one machine and some in a data center. Whoever waits longer would rather read
# the store; and everybody waits for the slowest.
TRIP_SECONDS = 0.25
GRACE_SECONDS = 0.05
# The size at which a round trip takes no further calls, in bytes. After an outage, Redis is told what
# thousands of devices did meanwhile: 2,000 changes take it 55 ms here. On a machine five times as slow, a
# single round trip with all of that would exceed TRIP_SECONDS: Redis would count as away again, and be told
# all of it again, without end.
TRIP_BYTES = 65_536
REFUSALS_LOGGED = 20  # each once, and no more than these in the life of a process
# The pause between tries grows until a connection has lasted this long.
STEADY_SECONDS = 5.0
RETRY_SECONDS = 1.0  # at most, between two tries


class Refusal(StateAway):
    """Redis is there, and does not carry out this one command: to ask again would not help."""


class Request(NamedTuple):
    packed: bytes
    answer: asyncio.Future[Any]


class Connection:
    """One connection, made again when it breaks. Belongs to the event loop that it was opened on."""

    def __init__(
        self, address: Address, keys: Keys, connection: AbstractConnection, trip_seconds: float
    ) -> None:
        self.trip_seconds = trip_seconds
        self._address = address
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._recovered: list[Callable[[], None]] = []
        self._refusals: set[str] = set()
        self._waiting: list[Request] = []
        self._under_way: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._trouble = ""
        self._problem = Problem(
            log,
            f"Redis at {address} is away and the store is read instead",
            f"Redis at {address} is back",
        )
        self._closed = False
        self._task = self._loop.create_task(self._run(connection), name="redis-link")

    @classmethod
    async def open(cls, address: Address, keys: Keys, trip_seconds: float) -> "Connection":
        """Redis counts as away if a round trip takes longer than `trip_seconds`.

        Raises `SetupError` if there is no suitable Redis.
        """
        return cls(address, keys, await open_first(address, keys), trip_seconds)

    @property
    def trouble(self) -> str:
        """Since when Redis is away, and why; "" if it is there."""
        return self._trouble

    def when_back(self, recovered: Callable[[], None]) -> None:
        """Has `recovered` called each time that Redis is back, before anybody else's call is taken."""
        self._recovered.append(recovered)

    async def call(self, *command: str | bytes | int) -> Any:
        """Redis's answer, whose shape is the command's. Raises `StateAway`."""
        return await self.submit(*command)

    def submit(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """A call whose answer one need not wait for. Calls are carried out in the order of their making.

        Where one fails with `StateAway`, all that were made after it fail too, until Redis is back.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._trouble or self._closed:
            answer.set_exception(StateAway(self._trouble or "the state is closed"))
            return answer
        self._waiting.append(Request(pack(command), answer))
        self._wake.set()
        return answer

    async def close(self) -> None:
        """Lets go. What is under way fails."""
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail("the state is closed")

    async def _run(self, connection: AbstractConnection) -> None:
        attempt = 0
        while True:
            connected = self._loop.time()
            try:
                await self._serve(connection)
            except Exception as error:  # noqa: BLE001 - told below; who asked is told as well
                self._away(error)
            finally:
                with contextlib.suppress(RedisError, OSError):  # it is given up either way
                    await connection.disconnect(nowait=True)
            if self._loop.time() - connected > STEADY_SECONDS:
                attempt = 0
            connection, attempt = await self._connect_again(attempt)
            self._problem.end()
            self._trouble = ""
            for recovered in self._recovered:
                recovered()

    async def _serve(self, connection: AbstractConnection) -> None:
        """Round trips, one after the other, until one fails."""
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            packed = self._begin()
            try:
                async with asyncio.timeout(self.trip_seconds):
                    await connection.send_packed_command(packed, check_health=False)
                    packed = b""
                    await self._read_answers(connection)
            except TimeoutError:
                await self._read_late(connection, sent=not packed)

    def _begin(self) -> bytes:
        """The commands of the next round trip, whose calls are under way now."""
        size = count = 0
        for request in self._waiting:
            count += 1
            size += len(request.packed)
            if size >= TRIP_BYTES:
                break
        self._under_way.extend(self._waiting[:count])
        del self._waiting[:count]
        return b"".join([request.packed for request in self._under_way])

    async def _read_late(self, connection: AbstractConnection, *, sent: bool) -> None:
        """Looks once more: where the loop stood still, time ran out before the answer was looked at."""
        if sent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    return await self._read_answers(connection)
        raise TimeoutError(f"no answer in {self.trip_seconds} s")

    async def _read_answers(self, connection: AbstractConnection) -> None:
        while self._under_way:
            error: Exception | None = None
            result: Any = None
            try:
                # The connection stays: a read that is given up is taken up again, see `_read_late`.
                result = await connection.read_response(disconnect_on_error=False)
            except ResponseError as refusal:
                if is_away(refusal):
                    raise
                # A key of another program's, or a mistake of ours: nothing may rest on the state, so this
                # call alone is one that is not answered.
                if str(refusal) not in self._refusals and len(self._refusals) < REFUSALS_LOGGED:
                    self._refusals.add(str(refusal))
                    log.error("Redis at %s refuses a command: %s", self._address, refusal)
                error = Refusal(f"Redis at {self._address} refuses a command: {refusal}")
            answer = self._under_way.popleft().answer
            if answer.done():
                continue  # its caller was cancelled
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

    def _away(self, error: Exception) -> None:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        why = explain(error)
        self._trouble = f"Redis at {self._address} is away since {since}: {why}"
        self._problem.start(why)
        if not is_away(error):
            log.error("Redis at %s: a fault of imqtt's own", self._address, exc_info=error)
        self._fail(self._trouble)

    def _fail(self, reason: str) -> None:
        requests = [*self._under_way, *self._waiting]
        self._under_way.clear()
        self._waiting.clear()
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(StateAway(reason))

    async def _connect_again(self, attempt: int) -> tuple[AbstractConnection, int]:
        while True:
            if attempt:
                await asyncio.sleep(backoff(attempt, random(), base=0.05, cap=RETRY_SECONDS))
            attempt += 1
            try:
                return await self._address.connect(self._keys), attempt
            except Exception as error:  # noqa: BLE001 - whatever it is, there is no connection
                self._problem.start(explain(error))


def undelivered(answer: asyncio.Future[Any]) -> bool:
    """Whether a call that nobody waited for has to be made again. A mistake of ours is logged."""
    if answer.cancelled():
        return True
    error = answer.exception()
    if error is not None and not isinstance(error, StateAway):
        log.error("Redis does not take what it is told", exc_info=error)
    return isinstance(error, StateAway)
