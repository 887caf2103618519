"""Who else serves this broker: every server process answers when another one asks.

The sessions have the same names for everybody, so two deployments on one broker would take them from each
other, and each would have half of every conversation. The one that came later ends instead. And workers of
one deployment that do not see each other in Redis, since one cannot reach it or was given another one, find
out here which of them goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from random import random

import msgspec

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, LinkError, Refused
from imqtt.broker.link import Link, Message
from imqtt.broker.values import Will
from imqtt.core.backoff import backoff
from imqtt.errors import SetupError

log = logging.getLogger(__name__)

TOPIC = "imqtt/$servers"  # no device's: user ids have no $
ANSWER_SECONDS = 0.5
SHORT_LIVED_SECONDS = 5.0


class Presence(msgspec.Struct, frozen=True, tag="server", tag_field="type"):
    """A server process. `started` in milliseconds since the Unix epoch; `asks`: others are to answer.

    `away`: it does not reach its state, and cannot know who else is there. `gone`: its connection ended
    without a goodbye; this is what the broker says in its stead.
    """

    cluster: str
    worker: str
    host: str
    pid: int
    started: int
    away: bool = False
    gone: bool = False
    asks: bool = False

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Of two who take a session from each other, the lower one keeps it."""
        return self.away, self.started, self.worker


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Presence).decode


def rival(mine: Presence, other: Presence) -> bool:
    """Whether `other` serves another store on this broker, and came first."""
    return other.cluster != mine.cluster and (other.started, other.worker) < (mine.started, mine.worker)


class RollCall:
    """One connection on which the servers of a broker make themselves known.

    `away` tells whether this one does not reach its state at the moment. `gone` is told of workers whose
    connections ended: a process that is killed is known to be gone at once, before its time in the state
    has run out.
    """

    def __init__(
        self,
        me: Presence,
        connect: Callable[[Will], Awaitable[Link]],
        *,
        away: Callable[[], bool],
        warn: Callable[[str], None],
        gone: Callable[[str], None],
    ) -> None:
        self._me = me
        self._connect = connect
        self._away = away
        self._warn = warn
        self._gone = gone
        self._link: Link | None = None
        self._heard: dict[str, Presence] = {}  # in answer to the last question
        self._asking: asyncio.Task[None] | None = None

    async def outranked(self, known: Collection[str]) -> Presence | None:
        """Asks who is there. A worker of the same cluster, not among `known`, that keeps what is fought over.

        A question is one for all who ask at the same time.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="roll-call-question")
        await asyncio.shield(self._asking)
        me = self._now()
        better = [
            it for it in self._heard.values() if it.rank < me.rank and (me.away or it.worker not in known)
        ]
        return min(better, key=lambda it: it.rank, default=None)

    async def _ask(self) -> None:
        self._heard.clear()
        if self._link is not None:
            self._link.publish([self._message(asks=True)])
        await asyncio.sleep(ANSWER_SECONDS)

    def _now(self) -> Presence:
        return msgspec.structs.replace(self._me, away=self._away())

    def _message(self, *, asks: bool) -> Message:
        return Message(TOPIC, _encode(msgspec.structs.replace(self._now(), asks=asks)))

    async def run(self, ready: asyncio.Event) -> None:
        """Answers until cancelled; `ready` is set once nobody has objected.

        Raises `SetupError` if a server of another store was here before.
        """
        attempt = 0
        loop = asyncio.get_running_loop()
        will = Will(TOPIC, _encode(msgspec.structs.replace(self._me, gone=True)))
        while True:
            connected = loop.time()
            try:
                link = await self._connect(will)
                try:
                    await self._answer(link, ready)
                finally:
                    self._link = None
                    await link.close()
            except (OSError, LinkError) as error:
                if isinstance(error, Refused) and not error.retryable and not ready.is_set():
                    raise SetupError(f"the broker does not take the server: {error}") from error
                log.debug("the roll call: %s", error)
            attempt = attempt + 1 if loop.time() - connected < SHORT_LIVED_SECONDS else 1
            await asyncio.sleep(backoff(attempt, random()))

    async def _answer(self, link: Link, ready: asyncio.Event) -> None:
        question = self._message(asks=True)
        # Asked before this one listens itself: then the broker's answer tells whether anybody does.
        alone = await link.publish([question]) == [NO_MATCHING_SUBSCRIBERS]
        await link.subscribe(TOPIC)
        self._link = link
        link.publish([question])  # somebody may have come meanwhile, and has not heard the first
        patience = asyncio.get_running_loop().call_later(0.0 if alone else ANSWER_SECONDS, ready.set)
        try:
            while True:
                for received in await link.receive(100):
                    self._hear(link, received.payload)
                    link.ack(received)
        finally:
            patience.cancel()

    def _hear(self, link: Link, payload: bytes) -> None:
        try:
            other = _decode(payload)
        except msgspec.DecodeError:
            return
        if other.worker == self._me.worker:
            return
        if other.gone:
            self._gone(other.worker)
            return
        if rival(self._me, other):
            raise SetupError(
                f"this broker is served already, by {other.host} (pid {other.pid}) on the store of cluster "
                f"{other.cluster}; the store here is of cluster {self._me.cluster}. Give each its own broker"
            )
        if other.cluster == self._me.cluster:
            self._heard[other.worker] = other
        else:
            self._warn(
                f"another imqtt came to this broker: {other.host} (pid {other.pid}), cluster {other.cluster}"
            )
        if other.asks:
            link.publish([self._message(asks=False)])
