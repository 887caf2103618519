"""What may be lost at the cost of speed only: seen ids, device lists, presence, rate limits, workers."""

from imqtt.errors import SetupError
from imqtt.redaction import redacted
from imqtt.state.base import State


async def open_state(url: str, *, cluster: str, rate: int, burst: int, password: str = "") -> State:
    """The state that `url` names: `memory:`, or `redis://host:port/number` (`rediss:`, `unix:` as well).

    `cluster` is the store's: several may use one Redis. Rates are messages a second for one device. Raises
    `SetupError` for whatever the operator has to put right.
    """
    if url == "memory:":
        from imqtt.state.memory import MemoryState

        return MemoryState(rate=rate, burst=burst)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from imqtt.state.redis.state import RedisState

        return await RedisState.open(url, cluster=cluster, rate=rate, burst=burst, password=password)
    raise SetupError(f"unknown kind of state {redacted(url)!r}: write memory: or redis://host:port/number")
