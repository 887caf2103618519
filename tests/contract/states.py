"""The states that the contract's suites run against. Another one joins by an entry in `STATES`."""

import secrets
from collections.abc import Awaitable, Callable
from random import Random

from imqtt.state.base import State
from imqtt.state.memory import MemoryState
from imqtt.state.redis.state import RedisState
from tests.redis_server import shared_redis
from tests.services import WITHIN
from tests.verification.simulation.state import SharedState, SimState

RATE = 10  # tokens a second
BURST = 20


async def _open_memory(rate: int, burst: int) -> State:
    return MemoryState(rate, burst)


async def _open_redis(rate: int, burst: int) -> State:
    return await RedisState.open(
        shared_redis(), cluster=secrets.token_hex(8), rate=rate, burst=burst, trip_seconds=WITHIN
    )


async def _open_simulated(rate: int, burst: int) -> State:
    return SimState(SharedState(rate, burst), Random(0), latency=(0.0, 0.0))


STATES: dict[str, Callable[[int, int], Awaitable[State]]] = {
    "memory": _open_memory,
    "redis": _open_redis,
    "simulated": _open_simulated,
}
