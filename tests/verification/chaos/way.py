"""A way between two parts, on which a harness may do to their bytes whatever a network does.

    async with Way(broker.port, "devices to broker") as way:    way.port leads to the broker
        hit = way.stall()
        ...
        way.mend()                                               `hit` now says what the stall has really done

One fault at a time: a new one takes the place of the one before.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Self, cast

HOST = "127.0.0.1"
HELD_MOST = 256 * 1024  # bytes kept back in one direction; then its sender is not read any more
PIECE = 4096  # bytes that pass a slow way at once
SWALLOW_SECONDS = 0.05  # between the first answer that is kept back and the reset

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


@dataclass(slots=True)
class Hit:
    """What a fault has really done so far; false while that is nothing.

    `connections`: those that it has reset, refused or kept bytes back of. `bytes`: those that it has delayed,
    kept back or lost.
    """

    kind: str
    connections: int = 0
    bytes: int = 0
    _met: set[int] = field(default_factory=set, repr=False)

    def __bool__(self) -> bool:
        return self.connections > 0

    def count(self, connection: int, size: int = 0) -> None:
        """Something was done to this connection, and to so many of its bytes."""
        self._met.add(connection)
        self.connections = len(self._met)
        self.bytes += size


@dataclass(frozen=True, slots=True)
class _Pace:
    """`delay` in seconds, of each byte; `rate` in bytes a second, 0: any."""

    delay: float
    rate: float


class Way:
    """What comes to `port` goes on to the port `to`. `to` may be changed, for connections to come.

    A connection that cannot be made onwards is reset. Bytes are passed on as they came.
    """

    def __init__(self, to: int, name: str = "") -> None:
        self.to = to
        self.name = name
        self.port = 0
        self.connections = 0  # that were ever made to it
        self.bytes = 0  # that ever came, both ways
        self.hit: Hit | None = None  # of the fault that is on
        self.pace: _Pace | None = None
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        self._joining: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, answers=False), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._joining:
            task.cancel()
        if self._joining:
            await asyncio.wait(self._joining)

    def __repr__(self) -> str:
        return f"Way({self.to}, {self.name!r})"

    @property
    def open(self) -> int:
        """Connections that lead through it now."""
        return sum(not side.answers for side in self._sides)

    # --- faults: each returns its `Hit`, which goes on counting until the next one, or `mend`

    def cut(self) -> Hit:
        """Resets every connection, and until `mend` each new one at once."""
        hit = self._begin("cut")
        self._is_cut = True
        self._reset_all(hit)
        return hit

    def drop(self) -> Hit:
        """Resets the connections that there are."""
        hit = self._begin("drop")
        self._reset_all(hit)
        return hit

    def slow(self, delay: float, rate: float = 0.0) -> Hit:
        """Every byte takes `delay` seconds longer, and at most `rate` a second pass each way (0: any)."""
        self.mend()
        hit = self._begin("slow")
        self.pace = _Pace(delay, rate)
        return hit

    def stall(self) -> Hit:
        """Nothing passes any more, not even an end; connections stay open, and new ones are let in."""
        self.mend()
        hit = self._begin("stall")
        self.pace = _Pace(inf, 0.0)
        return hit

    def swallow(self) -> Hit:
        """Of the connections that there are, what goes to the server passes, and no answer does.

        Each is reset a moment after the first answer of which it is deprived: what was asked for on it has
        happened, and who asked does not know. One that gets no answer until `mend` is left alone; so are new
        ones, on which it is found out what happened.
        """
        self.mend()
        hit = self._begin("swallow")
        for side in self._sides:
            side.swallows = side.answers
        return hit

    def mend(self) -> Hit | None:
        """Ends the fault: what was kept back passes. Returns what it has done."""
        hit, self.hit = self.hit, None
        self.pace = None
        self._is_cut = False
        for side in list(self._sides):
            side.mend()
        return hit

    def _begin(self, kind: str) -> Hit:
        self.pace = None
        self._is_cut = False
        self.hit = Hit(kind)
        return self.hit

    def _reset_all(self, hit: Hit) -> None:
        for side in list(self._sides):
            if not side.answers:
                hit.count(side.number, side.underway + (side.other.underway if side.other else 0))
            side.reset()

    # --- what its connections tell it

    def come(self, side: "_Side") -> int:
        """A new connection's number; it is reset if the way is cut."""
        self.connections += 1
        if self._is_cut:
            assert self.hit is not None
            self.hit.count(self.connections)
            side.reset()
        else:
            task = asyncio.create_task(self._join(side, self.connections), name=f"way-to-{self.to}")
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)
        return self.connections

    def enter(self, side: "_Side") -> None:
        self._sides.add(side)

    def leave(self, side: "_Side") -> None:
        self._sides.discard(side)

    async def _join(self, near: "_Side", number: int) -> None:
        far = _Side(self, answers=True, number=number)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, HOST, self.to)
        except OSError:
            near.reset()
            return
        if near.lost:  # by a fault, or by who had called
            far.reset()
            return
        near.other, far.other = far, near
        near.regulate()
        far.regulate()


class _Side(asyncio.Protocol):
    """One end of a connection. What it receives goes to the other end, in order.

    `answers`: it is the server's end. `lost`: it has ended.
    """

    def __init__(self, way: Way, *, answers: bool, number: int = 0) -> None:
        self.way = way
        self.answers = answers
        self.number = number
        self.other: _Side | None = None
        self.lost = False
        self.swallows = False
        self._transport: asyncio.Transport | None = None
        self._held: deque[tuple[float, bytes]] = deque()  # when it may pass; b"" stands for the end
        self._held_bytes = 0
        self._free_at = 0.0  # when all that was let onto a way with a rate will have passed
        self._timer: asyncio.TimerHandle | None = None
        self._congested = False  # the other end does not take more
        self._failure = False  # it did not end in good order
        self._loop = asyncio.get_running_loop()

    @property
    def underway(self) -> int:
        """Bytes that have arrived here, or are to leave from here, and would be lost with it."""
        return self._held_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.way.enter(self)
        self._transport.pause_reading()  # until there is somewhere to go
        if not self.answers:
            self.number = self.way.come(self)

    def data_received(self, data: bytes) -> None:
        way = self.way
        way.bytes += len(data)
        other = self.other
        if other is None or other.lost:
            return
        if way.hit is None or not self._is_hit(data):
            other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._failure = self._failure or exc is not None
        other = self.other
        if other is not None and not other.lost:
            other.forget()  # nobody is there any more for what it keeps back
            if self.way.pace is not None:
                # The end comes behind what is kept back, and is kept back itself.
                self._hold(b"", self._due(0, self.way.pace))
                return
            other.finish(failure=self._failure)
        self.forget()
        self.way.leave(self)

    def pause_writing(self) -> None:
        self._set_congested(True)

    def resume_writing(self) -> None:
        self._set_congested(False)

    def _set_congested(self, congested: bool) -> None:
        if self.other is not None:
            self.other._congested = congested
            self.other.regulate()

    # --- what the other end and the way ask for

    def write(self, data: bytes) -> None:
        if not self.lost:
            assert self._transport is not None
            self._transport.write(data)

    def finish(self, *, failure: bool) -> None:
        """The other end has ended: so does this one, in the same way."""
        if failure:
            self.reset()
        elif not self.lost:
            assert self._transport is not None
            self._transport.close()

    def reset(self) -> None:
        """Ends the connection with an RST, on which the peer's next call fails."""
        self.forget()
        if self.lost:
            self.way.leave(self)
        elif self._transport is not None:
            self._failure = True
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                )
            self._transport.abort()

    def mend(self) -> None:
        if self.swallows and self._timer is not None:
            self._deprive()  # what it has swallowed is gone, and nothing may pass behind that
        self.swallows = False
        self._release(inf)

    def regulate(self) -> None:
        """Reads the socket if there is room for what comes."""
        if self._transport is None or self.lost or self.other is None:
            return
        if self._congested or self._held_bytes > HELD_MOST:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def forget(self) -> None:
        """What is kept back does not pass any more."""
        self._held.clear()
        self._held_bytes = 0
        self._stop_timer()

    # --- faults

    def _is_hit(self, data: bytes) -> bool:
        """Whether the fault has done with these bytes what is to be done."""
        way = self.way
        assert way.hit is not None
        if self.swallows:
            if self._timer is None:
                self._timer = self._loop.call_later(SWALLOW_SECONDS, self._deprive)
            way.hit.count(self.number, len(data))
            return True
        pace = way.pace
        if pace is None:
            return False
        way.hit.count(self.number, len(data))
        size = PIECE if pace.rate else len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._hold(piece, self._due(len(piece), pace))
        return True

    def _due(self, size: int, pace: _Pace) -> float:
        """When the last of so many bytes will have passed."""
        self._free_at = max(self._free_at, self._loop.time()) + (size / pace.rate if pace.rate else 0.0)
        return self._free_at + pace.delay

    def _deprive(self) -> None:
        if self.other is not None:
            self.other.reset()
        self.reset()

    def _hold(self, data: bytes, due: float) -> None:
        self._held.append((due, data))
        self._held_bytes += len(data)
        self.regulate()
        if self._timer is None and due < inf:
            self._timer = self._loop.call_at(due, self._pass)

    def _pass(self) -> None:
        self._timer = None
        self._release(self._loop.time())
        if self._held and self._held[0][0] < inf:
            self._timer = self._loop.call_at(self._held[0][0], self._pass)

    def _release(self, until: float) -> None:
        if until == inf:
            self._stop_timer()
            self._free_at = 0.0
        while self._held and self._held[0][0] <= until:
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            if self.other is None:
                continue
            if data:
                self.other.write(data)
            else:
                self.other.finish(failure=self._failure)
        self.regulate()
        if self.lost and not self._held:
            self.way.leave(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
