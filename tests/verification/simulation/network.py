"""What lies between a client and the broker: two pipes for each connection, with delays, cuts and stalls.

A pipe is one direction of a TCP connection. It durable the order, takes its time, and breaks what was sent
together into pieces now and then: Mosquitto reads one packet of a connection at a time, so a takeover may
come between any two. `None` in a pipe is the end of the stream.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from tests.verification.simulation.loop import Loop, Party

Packet = tuple[Any, ...]
Batch = list[Packet | None]

FASTEST = 0.000_05  # seconds
USUAL = 0.002
SLOWEST = 0.2
SELDOM = 0.02  # of all latencies are between the usual and the slowest
PIECES = 0.06  # of what arrives together arrives in two pieces


def latency(random: Random) -> float:
    """Seconds from one end to the other."""
    drawn = random.random()
    if drawn >= SELDOM:
        return FASTEST + (USUAL - FASTEST) * drawn
    return USUAL + (SLOWEST - USUAL) * (drawn / SELDOM)


class Pipe:
    """One direction. `take` is called as `party`, the receiver, with the packets that arrive together."""

    __slots__ = (
        "_batches",
        "_due",
        "_loop",
        "_party",
        "_random",
        "_reading",
        "_sent",
        "_take",
        "broken",
        "stalled",
    )

    def __init__(self, loop: Loop, party: Party, take: Callable[[Batch], None]) -> None:
        self.broken = False  # what is sent vanishes, and nobody learns of it
        self.stalled = False
        self._loop = loop
        self._random = loop.random
        self._party = party
        self._take = take
        self._batches: deque[Batch] = deque()  # each has a `_deliver` of its own under way, unless held up
        self._due = 0.0  # when the last of them arrives
        self._sent = -1.0  # when something was sent last
        self._reading = True

    @property
    def in_flight(self) -> int:
        """Packets that were sent and have not arrived."""
        return sum(map(len, self._batches))

    def send(self, packets: Iterable[Packet | None]) -> None:
        """They arrive in their order, behind everything sent before."""
        if self.broken:
            return
        now = self._loop.time()
        batches = self._batches
        if batches:
            # With what was sent by the same callback, with what lies there unread, or with what will be
            # there no earlier than this would be.
            if self._sent == now or self._due < now:
                batches[-1].extend(packets)
                self._sent = now
                return
            due = now + latency(self._random)
            if due <= self._due:
                batches[-1].extend(packets)
                return
        else:
            due = now + latency(self._random)
        self._sent = now
        self._due = due
        batches.append(list(packets))
        self._party.call_later(due - now, self._deliver)

    def _deliver(self) -> None:
        batches = self._batches
        if not batches or self.stalled or not self._reading:
            return
        batch = batches.popleft()
        if len(batch) > 1 and self._random.random() < PIECES:
            place = 1 + int(self._random.random() * (len(batch) - 1))
            batches.appendleft(batch[place:])
            del batch[place:]
            self._party.call_later(FASTEST, self._deliver)
        self._take(batch)

    def stall(self, stalled: bool) -> None:
        """Holds up what is in flight, and lets it go on."""
        self.stalled = stalled
        self._go_on()

    def read(self, reading: bool) -> None:
        """Whether the receiver takes what arrives."""
        self._reading = reading
        self._go_on()

    def _go_on(self) -> None:
        if self._reading and not self.stalled:
            for _ in self._batches:
                self._party.call_later(FASTEST, self._deliver)

    def lose(self, share: float, *, first: int = 0) -> None:
        """With the chance `share`, the last part of what is in flight is lost, behind its `first` packets."""
        if self._batches and self._random.random() < share:
            keep = first + int(self._random.random() * (self.in_flight + 1 - first))
            for _ in range(len(self._batches)):
                batch = self._batches.popleft()
                if keep > 0:
                    self._batches.append(batch[:keep])
                keep -= len(batch)

    def cut(self) -> None:
        """Loses everything, from now on too."""
        self._batches.clear()
        self.broken = True

    def end(self) -> None:
        """The receiver learns that nothing more comes, behind what is in flight, and nothing does."""
        self.send((None,))
        self.broken = True


class Connection:
    """A TCP connection between `client` and the broker."""

    __slots__ = (
        "_loop",
        "broker",
        "client",
        "client_id",
        "down",
        "heard",
        "keep_alive",
        "session",
        "up",
        "will",
    )

    def __init__(
        self,
        loop: Loop,
        client: Party,
        broker: Party,
        to_client: Callable[[Batch], None],
        to_broker: Callable[["Connection", Batch], None],
    ) -> None:
        self.client = client
        self.broker = broker
        self.up = Pipe(loop, broker, lambda batch: to_broker(self, batch))
        self.down = Pipe(loop, client, to_client)
        self._loop = loop
        # The broker's side of it:
        self.client_id = ""
        self.session: Any = None
        self.will: Any = None
        self.keep_alive = 0  # seconds
        self.heard = -1.0  # when a client that is silent now was last heard of

    def __repr__(self) -> str:
        return f"<{self.client_id or 'connection'} of {self.client.name}>"

    @property
    def mute(self) -> bool:
        """Whether nothing of what the client would say reaches the broker."""
        return self.up.broken or self.up.stalled or self.client.paused

    @property
    def silent(self) -> bool:
        """Whether the client would get no answer to a ping."""
        up, down = self.up, self.down
        return up.broken or up.stalled or down.broken or down.stalled or self.broker.paused

    # --- what is done to it

    def cut(self, *, client: bool = True, broker: bool = True) -> None:
        """Ends it, with all that is in flight. Who does not notice durable it until keep-alive finds out."""
        for pipe, notices in ((self.down, client), (self.up, broker)):
            if pipe.broken:
                continue
            pipe.cut()
            pipe.broken = pipe.stalled = False
            if notices:
                pipe.end()
            pipe.broken = True

    def stall(self, seconds: float | None = None) -> None:
        """Holds up both directions, for so long or until `resume`."""
        self.up.stall(True)
        self.down.stall(True)
        if seconds is not None:
            self._loop.call_later(seconds, self.resume)

    def resume(self) -> None:
        self.up.stall(False)
        self.down.stall(False)

    # --- how its ends end it

    def leave(self, losing: float) -> None:
        """The client's end is closed. What is in flight towards it is lost.

        A broker that answers something of what it reads after that gets a reset, and reads no further:
        `losing` is how often that is the case.
        """
        self.down.cut()
        if not self.up.broken:
            self.up.lose(losing, first=1)
            self.up.end()

    def hang_up(self, losing: float) -> None:
        """The broker's end is closed."""
        self.up.cut()
        if not self.down.broken:
            self.down.lose(losing)
            self.down.end()
