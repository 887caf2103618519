"""When to send PINGREQ, and when a silent peer is considered dead (section 3.1.2.10)."""

DEAD_AFTER = 1.5  # keep alive intervals without a byte; a broker waits as long for a client
NEVER = float("inf")


class KeepAlive:
    """The keep alive of one connection. Times in seconds, of any clock that does not go backwards.

    A ping is due when nothing was sent for one interval, as MQTT requires, and also when nothing was received
    for one: a link that is idle or only publishes at QoS 0 hears from its peer in no other way.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval or NEVER
        self.sent = now  # the last byte in each direction
        self.received = now
        self.pinged = now

    @property
    def ping(self) -> float:
        """When to send a PINGREQ."""
        return max(min(self.sent, self.received), self.pinged) + self._interval

    @property
    def death(self) -> float:
        """When the peer is considered dead."""
        return self.received + DEAD_AFTER * self._interval
