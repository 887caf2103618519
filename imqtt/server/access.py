"""Whether the broker's access rules let the server read what devices send, and send to devices.

Mosquitto's `acl_file` never refuses SUBSCRIBE: it leaves out packets on their delivery. So a server whose
account may not read hears nothing and is told nothing. Here it sends itself a packet of each kind that it
depends on, and waits for it. A refused publish shows by itself, in the PUBACK's reason code.
"""

import asyncio
from collections.abc import Sequence

from imqtt.broker.errors import describe
from imqtt.broker.link import Link, Message
from imqtt.problems import Problem
from imqtt.server.egress import FAILURE

HEAR_SECONDS = 5.0  # for a packet to come back after the broker has taken it

# Shaped like those of devices, and no device's, since user ids have no $. Only this process subscribes to its
# own `up`: a partition is a number.
UP = "imqtt/$servers/up/"  # followed by the worker
DOWN = "imqtt/$servers/down"

_ALL_UP, _ALL_DOWN = "imqtt/+/up/+", "imqtt/+/down"


class Access:
    """Finds out whether this server's account may do its work, over a connection that subscribes to `topics`.

    `servers` is the topic on which servers find each other. `account`: its name at the broker.
    """

    def __init__(self, worker: str, servers: str, account: str, problem: Problem) -> None:
        self._servers = servers
        self._up = UP + worker
        self._account = account
        self._problem = problem
        self._awaited: dict[str, asyncio.Event] = {it: asyncio.Event() for it in self.topics}

    @property
    def topics(self) -> tuple[str, str]:
        """What the connection has to subscribe to."""
        return self._servers, self._up

    def heard(self, topic: str) -> None:
        """A packet that this process has sent to itself has come back."""
        self._awaited[topic].set()

    async def granted(self, link: Link, said: Message) -> bool:
        """Whether the account may do all of it; logs what it may not. `said` goes to `servers`.

        Raises `Closed`.
        """
        for event in self._awaited.values():
            event.clear()
        codes = await link.publish([said, Message(self._up, b""), Message(DOWN, b"")])
        filters = (self._servers, _ALL_UP, _ALL_DOWN)
        refused = {it: code for it, code in zip(filters, codes, strict=True) if code >= FAILURE}
        # What was refused cannot come back.
        sent = [it for it, code in zip(self.topics, codes, strict=False) if code < FAILURE]
        unheard = await self._unheard(sent)
        missing = [f"publish to {it} ({describe(code)})" for it, code in refused.items()]
        missing += [f"read {_ALL_UP if it == self._up else it}" for it in unheard]
        if missing:
            self._problem.start(
                f"the account {self._account!r} may not {', nor '.join(missing)}. Mosquitto's acl_file "
                "needs `topic readwrite imqtt/#` below the account's `user` line, as in deploy/mosquitto/acl"
            )
        else:
            self._problem.end()
        return not missing

    async def _unheard(self, topics: Sequence[str]) -> list[str]:
        """Those of the topics on which nothing has come back in time."""
        try:
            async with asyncio.timeout(HEAR_SECONDS):
                for it in topics:
                    await self._awaited[it].wait()
        except TimeoutError:
            return [it for it in topics if not self._awaited[it].is_set()]
        return []
