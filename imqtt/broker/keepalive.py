"""When to send PINGREQ, and when a silent peer counts as gone (section 3.1.2.10)."""

from enum import Enum

DEAD_AFTER = 1.5  # keep alive intervals without a byte: what the broker grants a client, granted back


class Due(Enum):
    """What is to be done now."""

    NOTHING = "nothing"
    PING = "ping"
    DEAD = "dead"


class KeepAlive:
    """One connection's clock. Times in seconds, of any clock that does not step back.

    A ping is due when nothing was sent for the interval, which the broker asks for, and also when nothing was
    received for it: a link that only publishes at QoS 0, or has nothing to do, hears from a live peer by
    that alone.
    """

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval  # 0: never
        self.sent = now  # the last byte in each direction
        self.received = now
        self._pinged = now

    def due(self, now: float, *, reading: bool) -> Due:
        """`reading`: whether the link reads at all; a peer that nobody listens to is not judged."""
        if not self.interval:
            return Due.NOTHING
        if not reading:
            self.received = now
        if now >= self.received + DEAD_AFTER * self.interval:
            return Due.DEAD
        if now >= max(min(self.sent, self.received), self._pinged) + self.interval:
            self._pinged = now
            return Due.PING
        return Due.NOTHING

    def next(self) -> float | None:
        """When to ask again."""
        if not self.interval:
            return None
        ping = max(min(self.sent, self.received), self._pinged) + self.interval
        return min(ping, self.received + DEAD_AFTER * self.interval)
