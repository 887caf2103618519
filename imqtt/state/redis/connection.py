"""The connection to Redis, with shared round trips of bounded duration.

Calls made within one iteration of the event loop, or during a round trip, share the next round trip. If a
round trip takes too long, or Redis refuses everything, Redis counts as away: every call fails at once, while
one task reconnects.
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
from imqtt.state.redis.address import Address, is_away, pack
from imqtt.state.redis.keys import Keys

log = logging.getLogger(__name__)

# A round trip takes 0.2 ms on one machine and some milliseconds in a data center. Beyond this bound reading
# the store is better, since all calls wait for the slowest.
TRIP_SECONDS = 0.25
GRACE_SECONDS = 0.05
# The size in bytes at which a round trip takes no further calls. After an outage, Redis receives the changes
# of thousands of devices: 2,000 take 55 ms here. On a machine five times as slow, a single round trip with
# all of them would exceed TRIP_SECONDS: Redis would count as away again and receive all of them again,
# without end.
TRIP_BYTES = 65_536
REFUSALS_LOGGED = 20  # distinct ones, each once, in the life of a process
STEADY_SECONDS = 5.0  # after a connection of this duration, the pauses between attempts start over
RETRY_SECONDS = 1.0  # the maximum pause between two attempts


class Refusal(StateAway):
    """Redis answers, but refuses this command. A retry would not help."""


class Request(NamedTuple):
    packed: bytes
    answer: asyncio.Future[Any]


class Connection:
    """One connection, which reconnects. Belongs to the event loop that opened it."""

    def __init__(
        self, address: Address, keys: Keys, connection: AbstractConnection, trip_seconds: float
    ) -> None:
        self.trip_seconds = trip_seconds
        self._address = address
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._recovered: list[Callable[[], object]] = []
        self._refusals: set[str] = set()
        self._waiting: list[Request] = []
        self._under_way: deque[Request] = deque()
        self._wake = asyncio.Event()
        self.trouble = ""  # the time and cause since which Redis is away
        self._problem = Problem(
            log,
            f"Redis at {address} is away and the store is read instead",
            f"Redis at {address} is back",
        )
        self._closed = False
        self._task = self._loop.create_task(self._run(connection), name="redis-link")

    def when_back(self, recovered: Callable[[], object]) -> None:
        """Calls `recovered` on each reconnect, before other calls are accepted."""
        self._recovered.append(recovered)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Redis's answer to the command, or `StateAway`. Redis executes calls in order.

        If one fails with `StateAway`, all later ones fail too, until Redis is back.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.trouble or self._closed:
            answer.set_exception(StateAway(self.trouble or "the state is closed"))
            return answer
        self._waiting.append(Request(pack(command), answer))
        self._wake.set()
        return answer

    async def close(self) -> None:
        """Closes the connection. Pending calls fail."""
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
            except Exception as error:  # noqa: BLE001 - logged, and raised by the pending calls
                self._away(error)
            finally:
                with contextlib.suppress(RedisError, OSError):  # it is replaced anyway
                    await connection.disconnect(nowait=True)
            if self._loop.time() - connected > STEADY_SECONDS:
                attempt = 0
            connection, attempt = await self._connect_again(attempt)
            self._problem.end()
            self.trouble = ""
            for recovered in self._recovered:
                recovered()

    async def _serve(self, connection: AbstractConnection) -> None:
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
        """The commands of the next round trip. Moves its calls to `_under_way`."""
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
        """Reads again: if the event loop was blocked, the timeout expires although the answer is there."""
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
                # Keeps the connection, since `_read_late` may continue this read.
                result = await connection.read_response(disconnect_on_error=False)
            except ResponseError as refusal:
                if is_away(refusal):
                    raise
                # A key of another program, or a bug. No caller may depend on the state, so only this call
                # fails.
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
        self.trouble = f"Redis at {self._address} is away since {since}: {why}"
        self._problem.start(why)
        if not is_away(error):
            log.error("Redis at %s: a bug in imqtt", self._address, exc_info=error)
        self._fail(self.trouble)

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
            except Exception as error:  # noqa: BLE001 - any error means that there is no connection
                self._problem.start(explain(error))


def undelivered(answer: asyncio.Future[Any]) -> bool:
    """Whether a call that nobody awaited has to be repeated."""
    return answer.cancelled() or answer.exception() is not None
