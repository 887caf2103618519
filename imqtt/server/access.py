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

# No device has these topics, since user ids have no $, though the last two have the form of devices' topics.
# No other process subscribes to this process's `up`, which ends with the worker's id in place of a partition.
SERVERS = "imqtt/$servers"  # on which servers find each other
UP = f"{SERVERS}/up/"  # followed by the worker
DOWN = f"{SERVERS}/down"

_ALL_UP, _ALL_DOWN = "imqtt/+/up/+", "imqtt/+/down"


class AccessTest:
    """Tests the rights of this server's account, over a connection that subscribes to `topics`.

    `account`: its name at the broker.
    """

    def __init__(self, worker: str, account: str, problem: Problem) -> None:
        self._up = UP + worker
        self._account = account
        self._problem = problem
        self.topics = (SERVERS, self._up)
        self._awaited = {topic: asyncio.Event() for topic in self.topics}

    def heard(self, topic: str) -> None:
        """Call it when a packet that this process sent to itself has come back on `topic`."""
        self._awaited[topic].set()

    async def granted(self, link: Link, announcement: Packet) -> bool:
        """Whether the account has all rights that it needs; logs the missing ones.

        Publishes `announcement`, whose topic is `SERVERS`. Raises `Closed`.
        """
        for event in self._awaited.values():
            event.clear()
        # By topic, the filter whose rights a packet tests.
        filters = {SERVERS: SERVERS, self._up: _ALL_UP, DOWN: _ALL_DOWN}
        codes = await link.publish([announcement, Packet(self._up, b""), Packet(DOWN, b"")])
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
