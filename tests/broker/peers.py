"""Peers of the link: a real Mosquitto, and servers that misbehave."""

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from imqtt.broker import LinkSettings
from imqtt.mosquitto.installation import executable
from imqtt.mosquitto.process import end_with_parent
from tests.ports import free_port

HOST = "127.0.0.1"
WITHIN = 120.0  # seconds; it only ends a test that hangs

CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages {receive_maximum}
max_queued_messages 0
set_tcp_nodelay true
{more}
"""


async def eventually(condition: Callable[[], object], within: float = WITHIN) -> None:
    """Returns when `condition`, which may be a coroutine function, holds. Fails after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.005)


class Broker:
    """A Mosquitto process on a free port. `more` is added to its configuration."""

    def __init__(self, directory: Path, more: str = "", receive_maximum: int = 0) -> None:
        self.port = free_port()
        self.log = directory / "mosquitto.log"
        self._configuration = directory / "mosquitto.conf"
        self._configuration.write_text(
            CONFIGURATION.format(port=self.port, more=more, receive_maximum=receive_maximum)
        )
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                executable(), "-c", str(self._configuration), stdout=log, stderr=log,
                preexec_fn=end_with_parent(signal.SIGKILL),
            )  # fmt: skip
        await eventually(self._answers)

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def settings(self, client_id: str, **more: Any) -> LinkSettings:
        return LinkSettings(HOST, self.port, client_id, **{"keep_alive": 60, "timeout": WITHIN} | more)

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log.read_text()
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A TCP server that runs `talk` on each connection, and then keeps it open."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._server: asyncio.Server | None = None
        self._ended = asyncio.Event()
        self.port = 0

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        await self._ended.wait()
        writer.close()

    def settings(self, **more: Any) -> LinkSettings:
        return LinkSettings(HOST, self.port, "one", **{"timeout": WITHIN} | more)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._hold, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._ended.set()
        self._server.close()
        await self._server.wait_closed()


async def packet(reader: asyncio.StreamReader) -> bytes:
    """Reads the next packet from the link."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80:
        head += await reader.readexactly(1)
    size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))
    return head + await reader.readexactly(size)
