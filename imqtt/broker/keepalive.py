"""When to send PINGREQ, and when a silent peer is considered dead (section 3.1.2.10)."""

from enum import Enum

DEAD_AFTER = 1.5  # keep alive intervals without a byte; a broker waits as long for a client


class Due(Enum):
    NOTHING = "nothing"
    PING = "ping"
    DEAD = "dead"


class KeepAlive:
    """The keep alive of one connection. Times in seconds, of any clock that does not go backwards.

    A ping is due when nothing was sent for one interval, as MQTT requires, and also when nothing was received
    for one: a link that is idle or only publishes at QoS 0 hears from its peer in no other way.
    """

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval  # 0: never
        self.sent = now  # the last byte in each direction
        self.received = now
        self._pinged = now

    def due(self, now: float, *, reading: bool) -> Due:
        """`reading`: whether the link reads its socket. If not, the peer is never considered dead."""
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
        """When to call `due` again."""
        if not self.interval:
            return None
        ping = max(min(self.sent, self.received), self._pinged) + self.interval
        return min(ping, self.received + DEAD_AFTER * self.interval)
