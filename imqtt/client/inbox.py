"""Receives frames: stores their changes, then reports them."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from imqtt.client.catchup import CatchUp
from imqtt.client.feed import Broadcast, Feed
from imqtt.client.marker import Marker
from imqtt.client.requests import Requests
from imqtt.client.sender import Sender
from imqtt.client.store import LocalStore
from imqtt.client.values import Notice
from imqtt.core.changes import Step
from imqtt.core.outbox import OutboxKey
from imqtt.core.replica import Replica
from imqtt.errors import Malformed
from imqtt.model import Accepted, AnyFrame, Event, Marks, Page, PeerTyping, Presence, Rejected, Welcome
from imqtt.protocol import decode_frames

log = logging.getLogger(__name__)

MAX_PRESENCES = 10_000  # users whose presence is remembered


@dataclass(eq=False)
class Inbox:
    """Processes frames in order of arrival. Outlives connections."""

    replica: Replica
    store: LocalStore
    sender: Sender
    requests: Requests
    catchup: CatchUp
    marker: Marker
    feed: Feed
    notices: Broadcast[Notice]

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()  # unusable packets and answers, by kind
        self.presences: OrderedDict[str, Presence] = OrderedDict()
        self._unsure: list[str] = []  # users who were present on the last connection
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()  # see `commit`
        self._settling: set[asyncio.Task[None]] = set()

    def connected(self) -> None:
        """A new connection begins: all users count as offline until the server reports otherwise."""
        self._unsure = [user for user, known in self.presences.items() if known.state != "offline"]
        for user in self._unsure:
            self.presences[user] = Presence(user, "offline")

    async def take(self, payloads: Iterable[bytes], welcome: Callable[[Welcome], None]) -> None:
        """Returns when everything in these packets is stored and reported."""
        frames: list[AnyFrame] = []
        for payload in payloads:
            try:
                frames += decode_frames(payload)
            except Malformed as error:
                self.counts["malformed"] += 1
                log.warning("a packet is dropped: %s", error)
        accepted = [frame for frame in frames if isinstance(frame, Accepted)]
        keys = [OutboxKey(frame.conversation, frame.client_msg_id) for frame in accepted]
        entries = await self.sender.entries(keys) if keys else {}
        overlaps = self.replica.overlaps(frames)
        held = await self.store.ids(overlaps) if overlaps else {}
        pages: list[Page] = []
        rejections: list[Rejected] = []
        welcomed = False
        for frame in frames:
            if isinstance(frame, Event):
                self.replica.event(frame, held)
            elif isinstance(frame, Accepted):
                entry = entries.get(OutboxKey(frame.conversation, frame.client_msg_id))
                self.replica.accepted(frame, None if entry is None else entry.command, held)
            elif isinstance(frame, Page):
                self.replica.page(frame, self.requests.asked(frame.ref), held)
                pages.append(frame)
            elif isinstance(frame, Rejected):
                rejections.append(frame)
            elif isinstance(frame, Welcome):
                welcome(frame)
                welcomed = True
            else:
                self._tell(frame)
        if welcomed:  # the presence of those who are still present came with it
            self._tell_departed()
        await self.commit(pages, rejections)

    async def commit(self, pages: Sequence[Page] = (), rejections: Sequence[Rejected] = ()) -> None:
        """Stores the changes of the replica, and then reports them.

        The requests that `pages` answer are done at once: the server reads the next page while this one is
        stored. Its packet waits, so no more than one page does.

        If storing fails, the replica is ahead of the store and must not be used any more: `failed` gets the
        error, even if the caller was cancelled.
        """
        step = self.replica.take()
        self.requests.revise(step.doubted, step.voided)
        if step.changes:
            step.changes.wanted_after = self.feed.wanted_after
        stored = self.store.apply(step.changes) if step.changes else None
        # Even if the connection ends now: the replica has changed, so this has to be reported.
        task = asyncio.create_task(self._settle(step, stored, rejections), name="imqtt-settle")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        self.catchup.want(step.wanted)
        for page in pages:
            self.requests.answer(page)
        await asyncio.shield(task)

    async def settled(self) -> None:
        """Returns when everything that was taken is stored and reported, even for cancelled callers."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    def check(self) -> None:
        """Raises the error of a failed write, after which the replica is unusable."""
        if self.failed.done():
            raise self.failed.result()

    async def _settle(
        self,
        step: Step,
        stored: "asyncio.Future[dict[str, int]] | None",
        rejections: Sequence[Rejected],
    ) -> None:
        try:
            if stored is not None:
                self.replica.trimmed(await stored)
                if step.changes.restarted or step.changes.overlays:
                    self.feed.invalidations += 1
                self.feed.advance(step.ordinal)
            self.check()
            await self._report(step, rejections)
        except Exception as error:
            if not self.failed.done():
                self.failed.set_result(error)
            raise

    async def _report(self, step: Step, rejections: Sequence[Rejected]) -> None:
        for accepted in step.accepted:
            self.sender.accepted(accepted)
        for notice in step.notices:
            self.notices.tell(notice)
        self.marker.add(step.marked)
        for answer in rejections:
            if self.requests.answer(answer):
                continue
            if answer.client_msg_id:
                await self.sender.rejected(answer)
            else:
                self.counts[f"rejected {answer.code}"] += 1
                log.warning(
                    "a %s is rejected: %s: %s", answer.command or "command", answer.code, answer.reason
                )

    def _tell_departed(self) -> None:
        unsure, self._unsure = self._unsure, []
        for user in unsure:
            if (presence := self.presences.get(user)) is not None and presence.state == "offline":
                self.notices.tell(presence)

    def _tell(self, frame: Marks | Presence | PeerTyping) -> None:
        if isinstance(frame, Marks):
            self.replica.marks(frame)
            return
        if isinstance(frame, Presence):
            self.presences[frame.user] = frame
            self.presences.move_to_end(frame.user)
            if len(self.presences) > MAX_PRESENCES:
                self.presences.popitem(last=False)
        self.notices.tell(frame)
