"""When a view of the live workers may be acted on.

A view that has just changed may change again: in a wiped Redis, each worker sees itself alone at first, and a
worker that stalls for a moment disappears and returns. Acting at once would move partitions needlessly, and
two workers would take them from each other.
"""

from imqtt.core.backoff import backoff


class LiveWorkers:
    """The current view, and the last one that was stable for `period` seconds.

    `acted` is the view to act on; None until one has been stable for that long. It stays while no view is
    available, for example while Redis is away: a partition without an owner serves nobody.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._seen: frozenset[str] | None = None
        self._since = 0.0
        self.acted: frozenset[str] | None = None

    def see(self, now: float, alive: frozenset[str]) -> bool:
        """Takes a view at `now`, in seconds of a monotonic clock. Returns whether it may be acted on."""
        if alive != self._seen:
            self._seen, self._since = alive, now
        if now - self._since < self._period:
            return False
        self.acted = alive
        return True

    def see_nothing(self) -> None:
        """The live workers are unknown; the next view counts as new."""
        self._seen = None


def contention(cuts: int, chance: float) -> float:
    """Seconds to wait before retaking a session after `cuts` recent unexplained disconnections.

    Two workers that reconnect at once starve each other. As each waits twice as long every time, one of them
    finally holds the session for good. `chance`: random, 0 to 1.
    """
    return backoff(cuts, chance, base=0.2, cap=300.0, least=0.5)
