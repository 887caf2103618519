"""The health page: a worker's status over HTTP, for supervisors and monitoring."""

import asyncio
from collections.abc import Callable
from errno import EADDRINUSE

import msgspec

from imqtt.addresses import host_port
from imqtt.errors import SetupError
from imqtt.problems import explain

HEAD_BYTES = 8_192
SECONDS = 5.0


class Health(msgspec.Struct, frozen=True):
    """A worker's status.

    `status` is `ok`, `degraded` (it serves, and something is wrong), or `starting`, `leaving` and `cut off`
    (it does not serve). `store`, `state`, `broker`, `clock` and `process` are `ok` or a sentence with the
    problem, its start and its cause; `unfinished` are commands that were received and not PUBACKed yet.
    """

    status: str
    worker: str
    store: str
    state: str
    broker: str
    clock: str
    process: str
    partitions: tuple[int, ...]
    unfinished: int

    @property
    def serving(self) -> bool:
        return self.status in ("ok", "degraded")


class HealthPage:
    """Answers every GET with `health()` as JSON: 200 while it serves, else 503.

    HTTP is as little of RFC 9112 as a prober needs: one request a connection, whatever its path.
    """

    def __init__(self, address: str, health: Callable[[], Health]) -> None:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65_535:
            raise SetupError(f"--health: {address!r} is no address; write host:port")
        self._host = host.strip("[]") or "127.0.0.1"
        self._port = int(port)
        self._health = health
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Raises `SetupError` if it cannot."""
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port, limit=HEAD_BYTES)
        except OSError as error:
            where = host_port(self._host, self._port)
            hint = "; stop what listens there, or give another port" if error.errno == EADDRINUSE else ""
            raise SetupError(f"--health: cannot listen on {where}: {explain(error)}{hint}") from error

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head.partition(b" ")[0]))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    def _response(self, method: bytes) -> bytes:
        if method not in (b"GET", b"HEAD"):
            return b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
        health = self._health()
        body = msgspec.json.encode(health) + b"\n"
        status = b"200 OK" if health.serving else b"503 Service Unavailable"
        fields = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close" % len(body)
        return b"HTTP/1.1 %b\r\n%b\r\n\r\n" % (status, fields) + (body if method == b"GET" else b"")
