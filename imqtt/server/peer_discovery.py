"""Who else serves this broker: every server process answers when another one asks.

The sessions have the same names for everybody, so two deployments on one broker would take them from each
other, and each would have half of every conversation. The one that came to the broker later ends instead.
A copy of the store has the same cluster. But if only one process may open a store, every other server that
answers has another one.
Workers of one deployment that do not see each other in Redis, since one cannot reach it or was given
another one, find out here which of them goes on.

First of all, the server tests whether the broker lets it receive anything at all: see `access`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from random import random

import msgspec

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, LinkError, Refused
from imqtt.broker.link import Link, Message
from imqtt.broker.values import Will
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError
from imqtt.server.access import Access
from imqtt.server.connections import Connections, Line

TOPIC = "imqtt/$servers"  # no device's: user ids have no $
ANSWER_SECONDS = 0.5
SHORT_LIVED_SECONDS = 5.0
SIMULTANEOUS_SECONDS = 10  # who came with less between them came together
ABSENT_SECONDS = 60.0  # who was cut off for longer comes anew, perhaps to another broker
CHECK_SECONDS = 60.0  # between two looks at what the broker's access rules allow; they may be changed
RETRY_SECONDS = 1.0  # after a look that found too little


class Peer(msgspec.Struct, frozen=True, tag="server", tag_field="type"):
    """A server process. `started` in milliseconds since the Unix epoch, `standing` in seconds.

    `standing`: for how long it has been on this broker with nobody objecting; -1: not yet. A duration, since
    clocks differ, and one that served another broker for weeks has come to this one just now. `asks`: others
    are to answer. `away`: it does not reach its state, and cannot know who else is there. `gone`: it has
    left, or its connection ended without a goodbye, and the broker says this in its stead. `exclusive`: no
    other process can have its store open.
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
        """Of two of one cluster who take a session from each other, the lower one keeps it."""
        return self.away, self.started, self.worker


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Peer).decode


def is_foreign(mine: Peer, other: Peer) -> bool:
    """Whether `other` serves another store: one of another cluster, or a copy."""
    return other.cluster != mine.cluster or mine.exclusive or other.exclusive


def gives_way(mine: Peer, other: Peer) -> bool:
    """Whether this server is to end, because `other` has served another store on this broker for longer."""
    if not is_foreign(mine, other):
        return False
    if (other.standing < 0) != (mine.standing < 0):
        return mine.standing < 0
    longer = other.standing - mine.standing
    return longer > 0 if abs(longer) > SIMULTANEOUS_SECONDS else other.worker < mine.worker


class PeerDiscovery:
    """One connection on which the servers of a broker make themselves known.

    `away` tells whether this one does not reach its state at the moment. `heard` is told of workers of this
    cluster that say something, `gone` of those that left or whose connections ended: one that is killed is
    known to be gone at once, before its time in the state has run out. `warn` is told of another store's
    server, and with "" that it has gone.
    """

    def __init__(
        self,
        me: Peer,
        connect: Callable[[Will], Awaitable[Link]],
        connections: Connections,
        access: Access,
        *,
        away: Callable[[], bool],
        heard: Callable[[str], None],
        gone: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._me = me
        self._connect = connect
        self._connections = connections
        self._access = access
        self._away = away
        self._heard = heard
        self._gone = gone
        self._warn = warn
        self._link: Link | None = None
        self._since: float | None = None  # when nobody had objected, by the event loop's clock
        self._cut = 0.0  # when it was last cut off, by the same clock
        self._answers: dict[str, Peer] = {}  # to the last question, by worker
        self._asking: asyncio.Task[None] | None = None
        self._foreign: set[str] = set()  # workers on other stores that are here

    async def run(self, ready: asyncio.Event) -> None:
        """Answers until cancelled. `ready`: the broker lets this server work, and nobody has objected.

        Raises `SetupError` if a server of another store was here before.
        """
        attempt = 0
        loop = asyncio.get_running_loop()
        will = Will(TOPIC, _encode(msgspec.structs.replace(self._me, gone=True)))
        line = self._connections.line("peer discovery", lambda: self._connect(will))
        while True:
            try:
                link = await line.open()
            except (OSError, LinkError) as error:
                if isinstance(error, Refused) and not error.retryable and not ready.is_set():
                    raise SetupError(f"the broker does not take the server: {error}") from error
                attempt += 1
                await line.pause(attempt, error)
                continue
            connected = loop.time()
            try:
                try:
                    await self._answer(link, ready, line)
                except SetupError:
                    await self.say_goodbye()
                    raise
                finally:
                    self._link, self._cut = None, loop.time()
                    await link.close()
            except (OSError, LinkError) as error:
                line.failed(error)
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            await asyncio.sleep(backoff(attempt, random()))

    async def say_goodbye(self) -> None:
        """Nobody need wait until this one is missed. A broker that does not take it is not waited for."""
        if self._link is None:
            return
        goodbye = Message(TOPIC, _encode(msgspec.structs.replace(self._me, gone=True)))
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._link.publish([goodbye])

    async def outranked(self, known: Collection[str]) -> Peer | None:
        """Asks who is there. A worker of the same cluster, not among `known`, that keeps what is fought over.

        A question is one for all who ask at the same time.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="peer-discovery-question")
        await asyncio.shield(self._asking)
        me = self._now()
        better = [
            it for it in self._answers.values() if it.rank < me.rank and (me.away or it.worker not in known)
        ]
        return min(better, key=lambda it: it.rank, default=None)

    async def _ask(self) -> None:
        self._answers.clear()
        if self._link is not None:
            self._link.publish([self._message(asks=True)])
        await asyncio.sleep(ANSWER_SECONDS)

    async def _answer(self, link: Link, ready: asyncio.Event, line: Line) -> None:
        if asyncio.get_running_loop().time() - self._cut > ABSENT_SECONDS:
            self._since = None
        self._foreign.clear()  # who is still here answers; a goodbye may have been missed
        self._warn("")
        # Asked before this one listens itself: then the broker's answer tells whether anybody does.
        alone = await link.publish([self._message(asks=True)]) == [NO_MATCHING_SUBSCRIBERS]
        await link.subscribe(*self._access.topics)
        line.works()
        self._link = link
        standing = asyncio.create_task(self._stand(link, ready, alone=alone), name="peer-discovery-standing")
        try:
            while True:
                for received in await link.receive(100):
                    if received.topic == TOPIC:
                        self._hear(link, received.payload)
                    else:
                        self._access.heard(received.topic)
                    link.ack(received)
        finally:
            standing.cancel()

    async def _stand(self, link: Link, ready: asyncio.Event, *, alone: bool) -> None:
        """Sets `ready` once this server has its rights and no other objects; then keeps testing the rights.

        Ends with the link.
        """
        stands = False
        with contextlib.suppress(LinkError):
            while True:
                # Another server may have connected after the first question, or its answer was not delivered.
                if not await self._access.granted(link, self._message(asks=not stands)):
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
        if other.worker == self._me.worker:
            self._access.heard(TOPIC)
            return
        if other.gone and other.cluster == self._me.cluster:
            self._gone(other.worker)
        if is_foreign(self._me, other):
            self._hear_foreign(other)
        elif not other.gone:
            self._heard(other.worker)
            self._answers[other.worker] = other
        if other.asks:
            link.publish([self._message(asks=False)])

    def _hear_foreign(self, other: Peer) -> None:
        if other.gone:
            self._foreign.discard(other.worker)
            if not self._foreign:
                self._warn("")
            return
        if gives_way(self._now(), other):
            raise SetupError(
                f"this broker is served already, by {other.host} (pid {other.pid}) on "
                f"{self._store_of(other)}; {self._remedy(other)}"
            )
        self._foreign.add(other.worker)
        self._warn(f"{other.host} (pid {other.pid}) serves {self._store_of(other)}")

    def _store_of(self, other: Peer) -> str:
        # MongoDB's claim cannot keep a process out whose holder stood still: it may be the very store.
        here = "this store or a copy of it," if other.cluster == self._me.cluster else "the store"
        return f"{here} of cluster {other.cluster}"

    def _remedy(self, other: Peer) -> str:
        if other.cluster == self._me.cluster:
            return "end one of the two servers"
        return f"the store here is of cluster {self._me.cluster}. Give each its own broker"

    def _now(self) -> Peer:
        standing = -1.0 if self._since is None else asyncio.get_running_loop().time() - self._since
        return msgspec.structs.replace(self._me, standing=round(standing, 1), away=self._away())

    def _message(self, *, asks: bool) -> Message:
        return Message(TOPIC, _encode(msgspec.structs.replace(self._now(), asks=asks)))
