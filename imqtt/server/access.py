"""Whether the broker's access rules let the server read what devices send, and send to devices.

With an `acl_file`, Mosquitto never refuses SUBSCRIBE: it drops packets on delivery. A server whose account
may not read would receive nothing and get no error. So the server sends itself a packet of each kind that it
depends on, and waits for them. A refused publish needs no such test: the PUBACK's reason code tells.
"""

import asyncio
import contextlib

from imqtt.broker.errors import describe
from imqtt.broker.link import Link, Packet
from imqtt.problems import Problem
from imqtt.server.publisher import FAILURE

HEAR_SECONDS = 5.0  # for a packet to come back after the broker has taken it

# Topics of the same form as devices' topics. They belong to no device, since user ids have no $. No other
# process subscribes to this process's `up`: it ends with the worker's id, where devices have a partition.
UP = "imqtt/$servers/up/"  # followed by the worker
DOWN = "imqtt/$servers/down"

_ALL_UP, _ALL_DOWN = "imqtt/+/up/+", "imqtt/+/down"


class Access:
    """Tests what this server's account may do, over a connection that subscribes to `topics`.

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
        """Call it when a packet that this process sent to itself has come back on `topic`."""
        self._awaited[topic].set()

    async def granted(self, link: Link, said: Packet) -> bool:
        """Whether the account has all rights that it needs; logs the missing ones.

        Publishes `said` to `servers`. Raises `Closed`.
        """
        for event in self._awaited.values():
            event.clear()
        # By topic, the filter whose rights a packet tests.
        filters = {self._servers: self._servers, self._up: _ALL_UP, DOWN: _ALL_DOWN}
        codes = await link.publish([said, Packet(self._up, b""), Packet(DOWN, b"")])
        refused = {topic: code for topic, code in zip(filters, codes, strict=True) if code >= FAILURE}
        missing = [f"publish to {filters[topic]} ({describe(code)})" for topic, code in refused.items()]
        # A refused packet cannot come back.
        awaited = {topic: event for topic, event in self._awaited.items() if topic not in refused}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_SECONDS):
                for event in awaited.values():
                    await event.wait()
        missing += [f"read {filters[topic]}" for topic, event in awaited.items() if not event.is_set()]
        if missing:
            self._problem.start(
                f"the account {self._account!r} may not {', nor '.join(missing)}. Mosquitto's acl_file "
                "needs `topic readwrite imqtt/#` below the account's `user` line, as in deploy/mosquitto/acl"
            )
        else:
            self._problem.end()
        return not missing
