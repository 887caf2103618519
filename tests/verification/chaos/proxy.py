"""A TCP proxy between two parts that injects the faults of a network.

    async with Proxy(broker.port, "devices to broker") as proxy:    proxy.port leads to the broker
        effect = proxy.stall()
        ...
        proxy.repair()                                              `effect` counts what the stall did

A new fault replaces the one before it.
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
MAX_HELD_BYTES = 256 * 1024  # bytes held back in one direction before reading from the sender stops
CHUNK_BYTES = 4096  # bytes that pass a slow proxy at once
SWALLOW_SECONDS = 0.05  # between the first dropped answer and the reset

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds


@dataclass(slots=True)
class Effect:
    """What a fault has done so far; false if nothing.

    `connections`: those that it reset, refused or delayed. `bytes`: those that it delayed, held back or
    dropped.
    """

    kind: str
    connections: int = 0
    bytes: int = 0
    _connections: set[int] = field(default_factory=set, repr=False)

    def __bool__(self) -> bool:
        return self.connections > 0

    def count(self, connection: int, size: int = 0) -> None:
        """Records an effect on this connection and on `size` of its bytes."""
        self._connections.add(connection)
        self.connections = len(self._connections)
        self.bytes += size


@dataclass(frozen=True, slots=True)
class _Pace:
    """`delay`: seconds for each byte. `rate`: bytes per second; 0 is unlimited."""

    delay: float
    rate: float


class Proxy:
    """Connections to `port` are forwarded to the port `to`, which may be changed for later connections.

    If the target refuses a connection, the client's end is reset. Bytes pass unchanged.
    """

    def __init__(self, to: int, name: str = "") -> None:
        self.to = to
        self.name = name
        self.port = 0
        self.connections = 0  # accepted so far
        self.bytes = 0  # received so far, from both ends
        self.effect: Effect | None = None  # of the present fault
        self.pace: _Pace | None = None
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, answers=False), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def __repr__(self) -> str:
        return f"Proxy({self.to}, {self.name!r})"

    @property
    def open(self) -> int:
        """Number of open connections."""
        return sum(not side.answers for side in self._sides)

    # --- faults: each returns its `Effect`, which counts until the next fault or `repair`

    def cut(self) -> Effect:
        """Resets every connection, and each new one until `repair`."""
        effect = self._begin("cut")
        self._is_cut = True
        self._reset_all(effect)
        return effect

    def drop(self) -> Effect:
        """Resets all present connections."""
        effect = self._begin("drop")
        self._reset_all(effect)
        return effect

    def slow(self, delay: float, rate: float = 0.0) -> Effect:
        """Delays every byte by `delay` seconds; limits each direction to `rate` bytes per second, if not
        0.
        """
        self.repair()
        effect = self._begin("slow")
        self.pace = _Pace(delay, rate)
        return effect

    def stall(self) -> Effect:
        """Passes nothing, not even the end of a connection; connections stay open, new ones are accepted."""
        self.repair()
        effect = self._begin("stall")
        self.pace = _Pace(inf, 0.0)
        return effect

    def swallow(self) -> Effect:
        """Passes requests on present connections, and drops the answers.

        Each connection is reset shortly after its first dropped answer: the request was carried out, and the
        client does not know. Connections without an answer until `repair` and new connections are unaffected;
        the client uses a new one to learn the outcome.
        """
        self.repair()
        effect = self._begin("swallow")
        for side in self._sides:
            side.swallows = side.answers
        return effect

    def repair(self) -> Effect | None:
        """Ends the fault and releases bytes that are held back. Returns the effect of the fault."""
        effect, self.effect = self.effect, None
        self.pace = None
        self._is_cut = False
        for side in list(self._sides):
            side.repair()
        return effect

    def _begin(self, kind: str) -> Effect:
        self.pace = None
        self._is_cut = False
        self.effect = Effect(kind)
        return self.effect

    def _reset_all(self, effect: Effect) -> None:
        for side in list(self._sides):
            if not side.answers:
                effect.count(side.number, side.underway + (side.other.underway if side.other else 0))
            side.reset()

    # --- calls by connections

    def accept(self, side: "_Side") -> int:
        """Number a new connection; reset it if the proxy is cut."""
        self.connections += 1
        if self._is_cut:
            assert self.effect is not None
            self.effect.count(self.connections)
            side.reset()
        else:
            task = asyncio.create_task(self._connect(side, self.connections), name=f"proxy-to-{self.to}")
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return self.connections

    def add(self, side: "_Side") -> None:
        self._sides.add(side)

    def remove(self, side: "_Side") -> None:
        self._sides.discard(side)

    async def _connect(self, near: "_Side", number: int) -> None:
        far = _Side(self, answers=True, number=number)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, HOST, self.to)
        except OSError:
            near.reset()
            return
        if near.lost:  # by a fault or by the client
            far.reset()
            return
        near.other, far.other = far, near
        near.regulate()
        far.regulate()


class _Side(asyncio.Protocol):
    """One end of a connection. Received bytes go to the other end, in order.

    `answers`: it is the server's end. `lost`: the connection has ended.
    """

    def __init__(self, proxy: Proxy, *, answers: bool, number: int = 0) -> None:
        self.proxy = proxy
        self.answers = answers
        self.number = number
        self.other: _Side | None = None
        self.lost = False
        self.swallows = False
        self._transport: asyncio.Transport | None = None
        self._held: deque[tuple[float, bytes]] = deque()  # due time and bytes; b"" is the end of the stream
        self._held_bytes = 0
        self._free_at = 0.0  # when all bytes accepted at a limited rate will have passed
        self._timer: asyncio.TimerHandle | None = None
        self._congested = False  # the other end's buffer is full
        self._failure = False  # the connection was reset or failed
        self._loop = asyncio.get_running_loop()

    @property
    def underway(self) -> int:
        """Buffered bytes that a reset would lose."""
        return self._held_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.proxy.add(self)
        self._transport.pause_reading()  # until the target is connected
        if not self.answers:
            self.number = self.proxy.accept(self)

    def data_received(self, data: bytes) -> None:
        proxy = self.proxy
        proxy.bytes += len(data)
        other = self.other
        if other is None or other.lost:
            return
        if proxy.effect is None or not self._apply_fault(data):
            other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._failure = self._failure or exc is not None
        other = self.other
        if other is not None and not other.lost:
            other.discard_held()  # its held bytes have no receiver any more
            if self.proxy.pace is not None:
                # The end follows the held bytes and is held back too.
                self._hold(b"", self._due(0, self.proxy.pace))
                return
            other.finish(failure=self._failure)
        self.discard_held()
        self.proxy.remove(self)

    def pause_writing(self) -> None:
        self._set_congested(True)

    def resume_writing(self) -> None:
        self._set_congested(False)

    def _set_congested(self, congested: bool) -> None:
        if self.other is not None:
            self.other._congested = congested
            self.other.regulate()

    # --- calls by the other end and the proxy

    def write(self, data: bytes) -> None:
        if not self.lost:
            assert self._transport is not None
            self._transport.write(data)

    def finish(self, *, failure: bool) -> None:
        """Ends this end in the same way as the other one."""
        if failure:
            self.reset()
        elif not self.lost:
            assert self._transport is not None
            self._transport.close()

    def reset(self) -> None:
        """Ends the connection with an RST, so that the peer's next call fails."""
        self.discard_held()
        if self.lost:
            self.proxy.remove(self)
        elif self._transport is not None:
            self._failure = True
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                )
            self._transport.abort()

    def repair(self) -> None:
        if self.swallows and self._timer is not None:
            self._reset_both()  # the dropped answer is lost, so no later byte may pass
        self.swallows = False
        self._release(inf)

    def regulate(self) -> None:
        """Reads the socket only while there is room for more bytes."""
        if self._transport is None or self.lost or self.other is None:
            return
        if self._congested or self._held_bytes > MAX_HELD_BYTES:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def discard_held(self) -> None:
        """Drops the bytes that are held back."""
        self._held.clear()
        self._held_bytes = 0
        self._stop_timer()

    # --- faults

    def _apply_fault(self, data: bytes) -> bool:
        """Applies the fault to these bytes; whether they are consumed."""
        proxy = self.proxy
        assert proxy.effect is not None
        if self.swallows:
            if self._timer is None:
                self._timer = self._loop.call_later(SWALLOW_SECONDS, self._reset_both)
            proxy.effect.count(self.number, len(data))
            return True
        pace = proxy.pace
        if pace is None:
            return False
        proxy.effect.count(self.number, len(data))
        size = CHUNK_BYTES if pace.rate else len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._hold(piece, self._due(len(piece), pace))
        return True

    def _due(self, size: int, pace: _Pace) -> float:
        """When the last of these bytes will have passed."""
        self._free_at = max(self._free_at, self._loop.time()) + (size / pace.rate if pace.rate else 0.0)
        return self._free_at + pace.delay

    def _reset_both(self) -> None:
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
            self.proxy.remove(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
