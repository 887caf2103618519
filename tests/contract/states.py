"""The states that the contract's suites run against. Another one joins by an entry in `STATES`."""

from collections.abc import Awaitable, Callable

from imqtt.state.base import State
from imqtt.state.memory import MemoryState

RATE = 10  # tokens a second
BURST = 20


async def _open_memory(rate: int, burst: int) -> State:
    return MemoryState(rate, burst)


STATES: dict[str, Callable[[int, int], Awaitable[State]]] = {
    "memory": _open_memory,
}
