"""When a view of who is alive may be acted upon.

A view that has just changed may change again: a wiped Redis shows each worker itself alone at first, and a
worker that stalls for a moment goes and comes back. To act at once would move partitions for nothing, and
have two workers take them from each other.
"""


class Membership:
    """Views as they are seen, and the last one that stood for `period` seconds.

    `acted` is what may be acted upon: None until any view has stood for so long. What was once acted upon
    holds while nothing is known, as when Redis is away: a partition without an owner serves nobody.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._seen: frozenset[str] | None = None
        self._since = 0.0
        self.acted: frozenset[str] | None = None

    def see(self, now: float, alive: frozenset[str]) -> bool:
        """Takes a view at `now`, in seconds of a clock that only grows. Returns whether it is acted upon."""
        if alive != self._seen:
            self._seen, self._since = alive, now
        if now - self._since < self._period:
            return False
        self.acted = alive
        return True

    def see_nothing(self) -> None:
        """It cannot be known who is alive; the next view stands from when it is seen."""
        self._seen = None


def contention(cuts: int, chance: float, *, base: float = 0.2, cap: float = 300.0) -> float:
    """Seconds before a session is taken again that was taken from here `cuts` times lately, unexplained.

    Two who reconnect at once starve each other: with each waiting twice as long after each cut, one of them
    has the session for longer and longer until it has it for good. `chance` is drawn from 0 to 1.
    """
    bound = min(cap, base * 2.0 ** min(cuts - 1, 30))
    return bound * (0.5 + 0.5 * chance)
