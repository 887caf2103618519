"""Data that may be lost at the cost of speed: seen keys, device lists, presence, rate limits, workers."""

from imqtt.errors import SetupError
from imqtt.redaction import redacted
from imqtt.state.base import State


async def open_state(url: str, *, cluster: str, rate: int, burst: int, password: str = "") -> State:
    """Opens the state at `url`: `memory:`, or `redis://host:port/number` (also `rediss:` and `unix:`).

    `cluster` is the store's, since several clusters may use one Redis. `rate` is in messages a second for
    one device. Raises `SetupError` if the operator has to correct something.
    """
    if url == "memory:":
        from imqtt.state.memory import MemoryState

        return MemoryState(rate=rate, burst=burst)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from imqtt.state.redis.state import RedisState

        return await RedisState.open(url, cluster=cluster, rate=rate, burst=burst, password=password)
    raise SetupError(f"unknown kind of state {redacted(url)!r}: use memory: or redis://host:port/number")
