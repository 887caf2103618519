"""The state machine of a device's connection: which broker to try when, and when to give up.

idle --> connecting --> established --> idle (waiting) --> connecting ...
                                        any of them --> closed

Times are in seconds of a monotonic clock.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from imqtt.core.backoff import backoff

WINDOW = 300.0  # seconds for which a failure counts against an address
STABLE = 10.0  # a connection that lasts this long is not a failure
PATIENCE = 3  # rounds of refusals before a device that was accepted once gives up
CONTESTED = 3  # takeovers within the window that show another process connecting as this device
UNCONTESTED = 120.0  # a connection that lasts this long, the other's longest wait and more, ends a contest
CONTEST_WAIT, CONTEST_WAIT_MOST = 5.0, 60.0  # before retaking the connection: the first time, and at most


class Phase(Enum):
    """The phase of a client's connection."""

    IDLE = "idle"  # before the first attempt, or waiting for the next
    CONNECTING = "connecting"  # to the broker, then waiting for the server's `Welcome`
    ESTABLISHED = "established"
    CLOSED = "closed"


class Try(NamedTuple):
    """Connect to the address with this number after `wait` seconds."""

    address: int
    wait: float


class Failures:
    """The failures of one address, within a sliding window."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=64)

    def add(self, now: float) -> None:
        self._times.append(now)

    def count(self, now: float) -> int:
        while self._times and self._times[0] <= now - WINDOW:
            self._times.popleft()
        return len(self._times)


class Connection:
    """`next` returns the next attempt; `established`, `failed`, `refused` and `lost` report its outcome.

    `chance` draws from 0 to 1.
    """

    def __init__(
        self, addresses: int, chance: Callable[[], float], *, base: float = 0.5, cap: float = 30.0
    ) -> None:
        if addresses < 1:
            raise ValueError("a connection needs an address")
        self.phase = Phase.IDLE
        self.tries = 0  # since the last connection that was stable
        self._chance = chance
        self._base = base
        self._cap = cap
        self._failures = [Failures() for _ in range(addresses)]
        self._last_tried = [-1] * addresses  # by address: the count of its last attempt
        self._count = 0
        self._current = 0
        self._since = 0.0
        self._outcomes: dict[int, bool] = {}  # this round's failed addresses: whether it refused
        self._refusing = 0  # consecutive rounds in which an address refused and none accepted
        self._was_let_in = False
        self._takeovers = Failures()

    def next(self, now: float) -> Try:
        """The next address: the one with the fewest recent failures, then the one tried longest ago."""
        address = min(
            range(len(self._failures)),
            key=lambda number: (self._failures[number].count(now), self._last_tried[number], number),
        )
        wait = 0.0
        if self.tries:
            # One round over all addresses counts as one failure, so that another broker is tried soon.
            rounds = 1 + (self.tries - 1) // len(self._failures)
            wait = backoff(rounds, self._chance(), base=self._base, cap=self._cap)
        if self.is_contested(now):
            times = self._takeovers.count(now) - CONTESTED + 1
            longer = backoff(times, self._chance(), base=CONTEST_WAIT, cap=CONTEST_WAIT_MOST, least=0.5)
            wait = max(wait, longer)
        self.phase = Phase.IDLE
        self._current = address
        return Try(address, wait)

    def connecting(self) -> None:
        """The wait is over."""
        self._count += 1
        self._last_tried[self._current] = self._count
        self.phase = Phase.CONNECTING

    def established(self, now: float) -> None:
        """The server has welcomed the device."""
        self.phase = Phase.ESTABLISHED
        self._since = now
        self._was_let_in = True
        self._refusing = 0
        self._outcomes.clear()

    def failed(self, now: float) -> None:
        """The address was unreachable or closed the connection, or its server did not answer."""
        self._fail(now, refused=False)

    def refused(self, now: float) -> bool:
        """The broker does not accept the credentials. True if it is time to give up.

        One refusal is not enough: every address is tried, and a device that was accepted before tries for
        some rounds, since a broker may just be reading its password file.
        """
        self._fail(now, refused=True)
        return self._refusing >= (PATIENCE if self._was_let_in else 1)

    def lost(self, now: float) -> None:
        if now - self._since >= UNCONTESTED:
            self._takeovers = Failures()
        if now - self._since >= STABLE:
            self.tries = 1
            self.phase = Phase.IDLE
        else:
            self._fail(now, refused=False)

    def taken_over(self, now: float) -> None:
        """Another connection took over the device's client id. Call it after `lost` for that connection."""
        self._takeovers.add(now)

    def is_contested(self, now: float) -> bool:
        """Whether this and another process keep ending each other's connections as the same device."""
        return self._takeovers.count(now) >= CONTESTED

    def close(self) -> None:
        self.phase = Phase.CLOSED

    def _fail(self, now: float, *, refused: bool) -> None:
        self.phase = Phase.IDLE
        self.tries += 1
        self._failures[self._current].add(now)
        self._outcomes[self._current] = refused
        if len(self._outcomes) == len(self._failures):
            self._refusing = self._refusing + 1 if any(self._outcomes.values()) else 0
            self._outcomes.clear()
