"""Peer discovery: server processes on one broker find each other over a topic of their own.

All deployments use the same session names, so two of them on one broker would take sessions from each other,
and each would have half of every conversation. The server that came to the broker later ends instead. A copy
of a store has the same cluster id; if only one process can have a store open, every peer has another store.

Workers of one deployment that do not see each other in Redis, because one cannot reach it or uses another
Redis, decide here which of them keeps a contested session.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial

import msgspec

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, LinkError
from imqtt.broker.link import Link, Packet
from imqtt.broker.values import Will
from imqtt.errors import SetupError
from imqtt.problems import Problem
from imqtt.server.access import SERVERS, AccessTest
from imqtt.server.connections import Connections, ReconnectingLink
from imqtt.server.liveness import Liveness

ANSWER_SECONDS = 0.5
SIMULTANEOUS_SECONDS = 10  # servers that started within this time count as simultaneous
ABSENT_SECONDS = 60.0  # after a longer disconnection a server counts as new: it may be another broker
CHECK_SECONDS = 60.0  # between two tests of the broker's access rules, which may change
RETRY_SECONDS = 1.0  # after a test that failed


class Peer(msgspec.Struct, frozen=True, tag="server", tag_field="type"):
    """A server process. `started` in milliseconds since the Unix epoch, `standing` in seconds.

    `standing`: how long the process has been on this broker without an objection; -1: not yet. This is a
    duration, because clocks differ and a process may have come from another broker a moment ago. `away`: the
    process cannot reach its state, so it does not know the other workers. `gone`: it has left, or this is its
    will. `asks`: the others should answer. `exclusive`: no other process can have its store open.
    """

    cluster: str
    worker: str
    host: str
    pid: int
    started: int
    standing: float = -1
    away: bool = False
    gone: bool = False
    asks: bool = False
    exclusive: bool = False

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Of two workers of one cluster that contest a session, the one with the lower rank keeps it."""
        return self.away, self.started, self.worker


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Peer).decode


def is_foreign(mine: Peer, other: Peer) -> bool:
    """Whether `other` serves another store: one of another cluster, or a copy."""
    return other.cluster != mine.cluster or mine.exclusive or other.exclusive


def gives_way(mine: Peer, other: Peer) -> bool:
    """Whether this server must end, because `other` has served another store on this broker for longer."""
    if not is_foreign(mine, other):
        return False
    if (other.standing < 0) != (mine.standing < 0):
        return mine.standing < 0
    longer = other.standing - mine.standing
    return longer > 0 if abs(longer) > SIMULTANEOUS_SECONDS else other.worker < mine.worker


@dataclass(eq=False, repr=False)
class PeerDiscovery:
    """The connection on which the servers of a broker announce themselves.

    It tells `liveness` which workers of this cluster send something, and which left or lost the connection.
    `foreign` is the problem that a server of another store is on this broker.
    """

    me: Peer
    connect: Callable[[Will], Awaitable[Link]]
    connections: Connections
    access: AccessTest
    liveness: Liveness
    foreign: Problem

    def __post_init__(self) -> None:
        self._goodbye = _encode(msgspec.structs.replace(self.me, gone=True))
        self._link: Link | None = None
        self._since: float | None = None  # start of the time without an objection, by the event loop's clock
        self._cut = 0.0  # end of the last connection, by the same clock
        self._answers: dict[str, Peer] = {}  # to the last question, by worker
        self._asking: asyncio.Task[None] | None = None
        self._foreign_workers: set[str] = set()  # of other stores on this broker

    async def run(self, ready: asyncio.Event) -> None:
        """Runs until cancelled. Sets `ready` once the access rules suffice and no server has objected.

        Raises `SetupError` if a server of another store was on this broker before.
        """
        connect = partial(self.connect, Will(SERVERS, self._goodbye))
        connection = ReconnectingLink(self.connections, "peer discovery", connect)
        try:
            await connection.run(partial(self._serve, ready, connection), ready=ready)
        finally:
            if self._asking is not None:
                self._asking.cancel()
                await asyncio.wait([self._asking])

    async def _serve(self, ready: asyncio.Event, connection: ReconnectingLink, link: Link) -> None:
        try:
            await self._answer(link, ready, connection)
        except SetupError:
            await self.say_goodbye()
            raise
        finally:
            self._link, self._cut = None, asyncio.get_running_loop().time()

    async def say_goodbye(self) -> None:
        """Announces that this server leaves, so that the others need not wait for a timeout."""
        if self._link is None:
            return
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._link.publish([Packet(SERVERS, self._goodbye)])

    async def outranked(self, known: Collection[str]) -> Peer | None:
        """Asks the other servers; returns the worker of this cluster that keeps contested sessions, if any.

        Workers in `known` are left out. Simultaneous calls share one question.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="peer-discovery-question")
        await asyncio.shield(self._asking)
        me = self._now()
        unknown = [peer for peer in self._answers.values() if me.away or peer.worker not in known]
        return min(
            (peer for peer in unknown if peer.rank < me.rank), key=lambda peer: peer.rank, default=None
        )

    async def _ask(self) -> None:
        self._answers.clear()
        if self._link is not None:
            self._link.publish([self._message(asks=True)])
        await asyncio.sleep(ANSWER_SECONDS)

    async def _answer(self, link: Link, ready: asyncio.Event, connection: ReconnectingLink) -> None:
        if asyncio.get_running_loop().time() - self._cut > ABSENT_SECONDS:
            self._since = None
        self._foreign_workers.clear()  # goodbyes may have been missed; those still here will answer
        self.foreign.end()
        # Asked before this server subscribes, so that the PUBACK tells whether any other server has.
        alone = await link.publish([self._message(asks=True)]) == [NO_MATCHING_SUBSCRIBERS]
        await link.subscribe(*self.access.topics)
        connection.works()
        self._link = link
        standing = asyncio.create_task(self._stand(link, ready, alone=alone), name="peer-discovery-standing")
        try:
            while True:
                for received in await link.receive(100):
                    if received.topic == SERVERS:
                        self._hear(link, received.payload)
                    else:
                        self.access.heard(received.topic)
                    link.ack(received)
        finally:
            standing.cancel()
            await asyncio.gather(standing, return_exceptions=True)

    async def _stand(self, link: Link, ready: asyncio.Event, *, alone: bool) -> None:
        """Sets `ready` once the access rules suffice and no server objects; then keeps testing the rules.

        Ends with the link.
        """
        stands = False
        with contextlib.suppress(LinkError):
            while True:
                # Another server may have connected after the first question, or its answer was lost.
                if not await self.access.granted(link, self._message(asks=not stands)):
                    alone = False
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if not stands:
                    await asyncio.sleep(0.0 if alone else ANSWER_SECONDS)
                    stands = True
                    if self._since is None:
                        self._since = asyncio.get_running_loop().time()
                    ready.set()
                await asyncio.sleep(CHECK_SECONDS)

    def _hear(self, link: Link, payload: bytes) -> None:
        try:
            other = _decode(payload)
        except msgspec.DecodeError:
            return
        if other.worker == self.me.worker:
            self.access.heard(SERVERS)
            return
        if other.gone and other.cluster == self.me.cluster:
            self.liveness.suspect(other.worker)
        if is_foreign(self.me, other):
            self._hear_foreign(other)
        elif not other.gone:
            self.liveness.trust(other.worker)
            self._answers[other.worker] = other
        if other.asks:
            link.publish([self._message(asks=False)])

    def _hear_foreign(self, other: Peer) -> None:
        if other.gone:
            self._foreign_workers.discard(other.worker)
            if not self._foreign_workers:
                self.foreign.end()
            return
        server = f"{other.host} (pid {other.pid})"
        if other.cluster == self.me.cluster:
            # A claim in MongoDB expires if its holder is paused, so this may be the very same store.
            store = f"this store or a copy of it, of cluster {other.cluster}"
            remedy = "end one of the two servers"
        else:
            store = f"the store of cluster {other.cluster}"
            remedy = f"the store here is of cluster {self.me.cluster}. Give each its own broker"
        if gives_way(self._now(), other):
            raise SetupError(f"this broker is served already, by {server} on {store}; {remedy}")
        self._foreign_workers.add(other.worker)
        self.foreign.start(f"{server} serves {store}")

    def _now(self) -> Peer:
        standing = -1.0 if self._since is None else asyncio.get_running_loop().time() - self._since
        return msgspec.structs.replace(self.me, standing=round(standing, 1), away=self.liveness.away)

    def _message(self, *, asks: bool) -> Packet:
        return Packet(SERVERS, _encode(msgspec.structs.replace(self._now(), asks=asks)))
