"""A server process's connections to the broker: reconnecting, and logging that they are down.

All of them lose the broker at the same moment and find it again at the same moment. So one of them tries to
reconnect at short intervals while the others wait for its success, and the log has one problem for all.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from random import random
from typing import Any

from imqtt.broker.errors import ConnackRefused, LinkError
from imqtt.broker.link import Link
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError
from imqtt.problems import Problem, explain

# Intervals of the connection that looks for the broker: the first one, and the longest. The server should
# find a restarted broker before devices do: a command to a broker that has lost its sessions meets no
# subscriber until the server has subscribed. An attempt on a closed port costs 0.1 ms; a broker that accepts
# and hangs up may log a line for each.
FIRST_LOOK_SECONDS = 0.03
PORT_CLOSED_SECONDS = 0.1
UNREACHABLE_SECONDS = 1.0
SHORT_LIVED_SECONDS = 5.0  # a connection that ended sooner counts as a failed attempt

Connect = Callable[[], Awaitable[Link]]


class Connections:
    """The state that all connections share: the problem in the log, and whether the broker is back."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._return: asyncio.Future[None] | None = None

    def reached(self) -> None:
        """The broker has accepted a connection. Those that wait for it try at once."""
        if self._return is not None and not self._return.done():
            self._return.set_result(None)
        self._return = None

    async def returned(self, within: float) -> None:
        """Returns when the broker has accepted a connection, or after `within` seconds."""
        if self._return is None:
            self._return = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._return], timeout=within)


class ReconnectingLink:
    """One connection by its name, over all the links that it has in its life.

    `looks`: it is the one that looks for a broker that is gone.
    """

    def __init__(self, connections: Connections, name: str, connect: Connect, *, looks: bool = False) -> None:
        self.name = name
        self._connections = connections
        self._connect = connect
        self._looks = looks
        self.refusal = ""  # why the broker refuses the connection
        self.refused_at = 0.0  # start of the refusals, by the event loop's clock

    def failed(self, error: Exception) -> None:
        """The connection cannot be made, was lost, or is of no use."""
        self._connections.problem.start(explain(error), self.name)

    def works(self) -> None:
        """The connection is of use, or no longer needed."""
        self.refusal = ""
        self._connections.problem.end(self.name)

    async def run(
        self,
        serve: Callable[[Link], Awaitable[None]],
        *,
        ready: asyncio.Event | None = None,
        until: asyncio.Event | None = None,
        after: Callable[[int], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Connects, has `serve` use the link, and reconnects when it ends, until cancelled or `until` is set.

        Until `ready` is set, a permanent refusal by the broker raises `SetupError`. `after` replaces the wait
        after a disconnection; its argument counts the connections that ended soon, from 1 on.
        """
        until = until or asyncio.Event()
        loop = asyncio.get_running_loop()
        attempt = 0
        while not until.is_set():
            try:
                link = await self._open()
            except (OSError, LinkError) as error:
                is_permanent = isinstance(error, ConnackRefused) and not error.retryable
                if is_permanent and ready is not None and not ready.is_set():
                    raise SetupError(f"the broker does not take the server: {error}") from error
                attempt += 1
                await first_of(self._pause(attempt, error), until.wait())
                continue
            connected = loop.time()
            try:
                await serve(link)
            except (OSError, LinkError) as error:
                self.failed(error)
            finally:
                await link.close()
            if until.is_set():
                return
            # Back off from a broker that accepts connections and closes them at once.
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            wait = (
                after(attempt)
                if after
                else asyncio.sleep(backoff(attempt, random(), base=FIRST_LOOK_SECONDS))
            )
            await first_of(wait, until.wait())

    async def _open(self) -> Link:
        try:
            link = await self._connect()
        except (OSError, LinkError) as error:
            if not self.refusal:
                self.refused_at = asyncio.get_running_loop().time()
            self.refusal = str(error) if isinstance(error, ConnackRefused) else ""
            self.failed(error)
            raise
        self.refusal = ""
        self._connections.reached()
        return link

    async def _pause(self, attempt: int, error: Exception) -> None:
        if not isinstance(error, OSError):  # the broker is there, and does not take this one connection
            await asyncio.sleep(backoff(attempt, random()))
        # A failed TLS handshake is not repeated at short intervals: it costs the broker a millisecond.
        elif self._looks and not isinstance(error, ssl.SSLError):
            refused = isinstance(error, ConnectionRefusedError)
            cap = PORT_CLOSED_SECONDS if refused else UNREACHABLE_SECONDS
            await self._connections.returned(backoff(attempt, random(), base=FIRST_LOOK_SECONDS, cap=cap))
        else:
            await self._connections.returned(backoff(attempt, random()))


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them returns, or raises its error; the others are cancelled."""
    tasks = [asyncio.create_task(wait, name="first-of") for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
