"""The network between a client and the broker: two pipes for each connection, with delays, cuts and stalls.

A pipe is one direction of a TCP connection. It keeps the order, has a latency, and sometimes delivers a batch
in two pieces: Mosquitto reads one packet of a connection at a time, so a takeover may come between any two.
`None` in a pipe is the end of the stream.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from tests.verification.simulation.loop import Loop, Process

Packet = tuple[Any, ...]
Batch = list[Packet | None]

FASTEST = 0.000_05  # seconds
USUAL = 0.002
SLOWEST = 0.2
SLOW_SHARE = 0.02  # share of latencies between the usual and the slowest
SPLIT_SHARE = 0.06  # share of batches that arrive in two pieces


def latency(random: Random) -> float:
    """Seconds from one end to the other."""
    drawn = random.random()
    if drawn >= SLOW_SHARE:
        return FASTEST + (USUAL - FASTEST) * drawn
    return USUAL + (SLOWEST - USUAL) * (drawn / SLOW_SHARE)


class Pipe:
    """One direction. `take` is called in the receiving process with the packets that arrive together."""

    __slots__ = (
        "_batches",
        "_due",
        "_loop",
        "_process",
        "_random",
        "_reading",
        "_sent",
        "_take",
        "broken",
        "stalled",
    )

    def __init__(self, loop: Loop, process: Process, take: Callable[[Batch], None]) -> None:
        self.broken = False  # packets vanish without notice
        self.stalled = False
        self._loop = loop
        self._random = loop.random
        self._process = process
        self._take = take
        self._batches: deque[Batch] = deque()  # each has a scheduled `_deliver`, unless held up
        self._due = 0.0  # when the last of them arrives
        self._sent = -1.0  # when the last packet was sent
        self._reading = True

    @property
    def in_flight(self) -> int:
        """Packets that were sent and have not arrived."""
        return sum(map(len, self._batches))

    def send(self, packets: Iterable[Packet | None]) -> None:
        """Packets arrive in order, after everything sent before."""
        if self.broken:
            return
        now = self._loop.time()
        batches = self._batches
        if batches:
            # Joins the last batch if that was sent at the same time, is unread, or would arrive no earlier.
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
        self._process.call_later(due - now, self._deliver)

    def _deliver(self) -> None:
        batches = self._batches
        if not batches or self.stalled or not self._reading:
            return
        batch = batches.popleft()
        if len(batch) > 1 and self._random.random() < SPLIT_SHARE:
            place = 1 + int(self._random.random() * (len(batch) - 1))
            batches.appendleft(batch[place:])
            del batch[place:]
            self._process.call_later(FASTEST, self._deliver)
        self._take(batch)

    def stall(self, stalled: bool) -> None:
        """Holds up the packets in flight, or releases them."""
        self.stalled = stalled
        self._continue()

    def read(self, reading: bool) -> None:
        """Whether the receiver reads."""
        self._reading = reading
        self._continue()

    def _continue(self) -> None:
        if self._reading and not self.stalled:
            for _ in self._batches:
                self._process.call_later(FASTEST, self._deliver)

    def lose(self, share: float, *, first: int = 0) -> None:
        """With probability `share`, lose some of the last packets in flight, but never the `first` ones."""
        if self._batches and self._random.random() < share:
            keep = first + int(self._random.random() * (self.in_flight + 1 - first))
            for _ in range(len(self._batches)):
                batch = self._batches.popleft()
                if keep > 0:
                    self._batches.append(batch[:keep])
                keep -= len(batch)

    def cut(self) -> None:
        """Loses everything in flight and everything sent later."""
        self._batches.clear()
        self.broken = True

    def end(self) -> None:
        """Lets the receiver see the end of the stream after the packets in flight. Nothing more can be
        sent.
        """
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
        client: Process,
        broker: Process,
        to_client: Callable[[Batch], None],
        to_broker: Callable[["Connection", Batch], None],
    ) -> None:
        self.client = client
        self.broker = broker
        self.up = Pipe(loop, broker, lambda batch: to_broker(self, batch))
        self.down = Pipe(loop, client, to_client)
        self._loop = loop
        # The broker's data:
        self.client_id = ""
        self.session: Any = None
        self.will: Any = None
        self.keep_alive = 0  # seconds
        self.heard = -1.0  # when a client that is now silent last sent something

    def __repr__(self) -> str:
        return f"<{self.client_id or 'connection'} of {self.client.name}>"

    @property
    def mute(self) -> bool:
        """Whether packets from the client cannot reach the broker."""
        return self.up.broken or self.up.stalled or self.client.paused

    @property
    def silent(self) -> bool:
        """Whether a ping from the client would get no answer."""
        up, down = self.up, self.down
        return up.broken or up.stalled or down.broken or down.stalled or self.broker.paused

    # --- faults

    def cut(self, *, client: bool = True, broker: bool = True) -> None:
        """Ends the connection and loses everything in flight. An end that does not notice waits for
        keep-alive.
        """
        for pipe, notices in ((self.down, client), (self.up, broker)):
            if pipe.broken:
                continue
            pipe.cut()
            pipe.broken = pipe.stalled = False
            if notices:
                pipe.end()
            pipe.broken = True

    def stall(self, seconds: float | None = None) -> None:
        """Holds up both directions, for this long or until `resume`."""
        self.up.stall(True)
        self.down.stall(True)
        if seconds is not None:
            self._loop.call_later(seconds, self.resume)

    def resume(self) -> None:
        self.up.stall(False)
        self.down.stall(False)

    # --- closing

    def close_client_end(self, losing: float) -> None:
        """Closes the client's end. Packets in flight towards it are lost.

        If the broker answers something that it reads after that, it gets a reset and reads no further:
        `losing` is the probability.
        """
        self.down.cut()
        if not self.up.broken:
            self.up.lose(losing, first=1)
            self.up.end()

    def close_broker_end(self, losing: float) -> None:
        """Closes the broker's end."""
        self.up.cut()
        if not self.down.broken:
            self.down.lose(losing)
            self.down.end()
