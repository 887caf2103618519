"""What may be lost at the cost of speed only: seen ids, device lists, presence, rate limits."""

from imqtt.errors import SetupError
from imqtt.state.base import State


def open_state(url: str, *, rate: int, burst: int) -> State:
    """The state that `url` names: `memory:`. Rates are messages a second for one device.

    Raises `SetupError`.
    """
    if url == "memory:":
        from imqtt.state.memory import MemoryState

        return MemoryState(rate=rate, burst=burst)
    raise SetupError(f"state {url!r} is none that this version knows: memory:")
