"""The connections that a server process has to the broker: how they are made again, and what is said of it.

All of them lose a broker at the same moment and find it again at the same moment. So one of them looks for
it, quickly, while the others wait for that one's success; and the log has one problem for all of them.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from random import random

from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link
from imqtt.core.backoff import backoff
from imqtt.problems import Problem, explain

# Between two looks, at first and at most. A broker that is restarted should be found before devices find it:
# what they publish to a broker that has lost its sessions reaches nobody until the server has subscribed.
# Where nobody listens, a look costs 0.1 ms; a broker that hangs up may write a line into its log for each.
FIRST_LOOK_SECONDS = 0.03
NOBODY_LISTENS_SECONDS = 0.1
UNREACHABLE_SECONDS = 1.0

Connect = Callable[[], Awaitable[Link]]


class Connections:
    """The problem that they share, and word of the broker's return."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._return: asyncio.Future[None] | None = None

    def line(self, name: str, connect: Connect, *, looks: bool = False) -> "Line":
        """One of them. `looks`: the one that looks for a broker that is gone."""
        return Line(self, name, connect, looks=looks)

    def reached(self) -> None:
        """The broker has accepted a connection: whoever waits for it tries at once."""
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
        """Connects. Raises what `connect` raises, which is a problem from then on."""
        try:
            link = await self._connect()
        except (OSError, LinkError) as error:
            self.failed(error)
            raise
        self._connections.reached()
        return link

    def failed(self, error: Exception) -> None:
        """There is no connection, or no longer, or it is of no use."""
        self._connections.problem.start(explain(error), self.name)

    def works(self) -> None:
        """The connection does what it is for; or nobody wants it any more."""
        self._connections.problem.end(self.name)

    async def pause(self, attempt: int, error: Exception) -> None:
        """Waits after a failed attempt (the first is 1) until the next one."""
        if not isinstance(error, OSError):  # the broker is there, and does not take this one connection
            await asyncio.sleep(backoff(attempt, random()))
        elif self._looks and not isinstance(
            error, ssl.SSLError
        ):  # a handshake costs the broker a millisecond
            refused = isinstance(error, ConnectionRefusedError)
            cap = NOBODY_LISTENS_SECONDS if refused else UNREACHABLE_SECONDS
            await self._connections.returned(backoff(attempt, random(), base=FIRST_LOOK_SECONDS, cap=cap))
        else:
            await self._connections.returned(backoff(attempt, random()))
