"""A server process's connections to the broker: reconnecting, and logging that they are down.

All of them lose the broker at the same moment and find it again at the same moment. So one of them tries to
reconnect at short intervals while the others wait for its success, and the log has one problem for all.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from random import random

from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link
from imqtt.core.backoff import backoff
from imqtt.problems import Problem, explain

# Intervals of the connection that looks for the broker: the first one, and the longest. The server should
# find a restarted broker before devices do: what they publish to a broker that has lost its sessions meets no
# subscriber until the server has subscribed. An attempt on a closed port costs 0.1 ms; a broker that accepts
# and hangs up may log a line for each.
FIRST_LOOK_SECONDS = 0.03
PORT_CLOSED_SECONDS = 0.1
UNREACHABLE_SECONDS = 1.0

Connect = Callable[[], Awaitable[Link]]


class Connections:
    """What all connections share: the problem in the log, and the notice that the broker is back."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._return: asyncio.Future[None] | None = None

    def line(self, name: str, connect: Connect, *, looks: bool = False) -> "Line":
        """One connection. `looks`: it is the one that looks for a broker that is gone."""
        return Line(self, name, connect, looks=looks)

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


class Line:
    """One connection by its name, over all the links that it has in its life."""

    def __init__(self, connections: Connections, name: str, connect: Connect, *, looks: bool) -> None:
        self.name = name
        self._connections = connections
        self._connect = connect
        self._looks = looks

    async def open(self) -> Link:
        """Connects. A failure is logged as the shared problem and raised: `OSError` or `LinkError`."""
        try:
            link = await self._connect()
        except (OSError, LinkError) as error:
            self.failed(error)
            raise
        self._connections.reached()
        return link

    def failed(self, error: Exception) -> None:
        """The connection cannot be made, was lost, or does not do what it is for."""
        self._connections.problem.start(explain(error), self.name)

    def works(self) -> None:
        """The connection does what it is for, or is no longer needed."""
        self._connections.problem.end(self.name)

    async def pause(self, attempt: int, error: Exception) -> None:
        """Waits after a failed attempt (the first is 1) until the next one."""
        if not isinstance(error, OSError):  # the broker is there, and does not take this one connection
            await asyncio.sleep(backoff(attempt, random()))
        # A failed TLS handshake is not repeated at short intervals: it costs the broker a millisecond.
        elif self._looks and not isinstance(error, ssl.SSLError):
            refused = isinstance(error, ConnectionRefusedError)
            cap = PORT_CLOSED_SECONDS if refused else UNREACHABLE_SECONDS
            await self._connections.returned(backoff(attempt, random(), base=FIRST_LOOK_SECONDS, cap=cap))
        else:
            await self._connections.returned(backoff(attempt, random()))
