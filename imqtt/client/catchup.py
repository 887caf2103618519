"""Finds the events that a device misses, and requests them.

The server lists conversations by their heads, newest first. The device reads the list down to where it was
complete last time, and requests the conversations that are behind, many in one `Sync`, one `Sync` at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import InitVar, dataclass
from random import random, uniform

from imqtt.client.requests import Requests
from imqtt.client.settings import Timing
from imqtt.client.store import LocalStore
from imqtt.client.uplink import Uplink
from imqtt.core.changes import Changes, Want
from imqtt.core.replica import Replica
from imqtt.core.sync_queue import SyncQueue
from imqtt.errors import ImqttError, NotConnected
from imqtt.model import SNOWFLAKE_TIME_SHIFT, Cursor, Id, Page, Position, Sync

CURSORS = 100  # in one request: a page holds no more events or heads
MARGIN = 3_600_000 << SNOWFLAKE_TIME_SHIFT  # one worker's clock may be an hour behind another's
WHOLE_WALK_EVERY = 86_400  # seconds: once a day the device reads the whole list


@dataclass(eq=False)
class CatchUp:
    """Outlives connections, and keeps the wanted conversations between them."""

    replica: Replica
    store: LocalStore
    uplink: Uplink
    requests: Requests
    timing: Timing
    meta: InitVar[Mapping[str, str]]
    commit: Callable[[], Awaitable[None]]
    settled: Callable[[], Awaitable[None]]

    def __post_init__(self, meta: Mapping[str, str]) -> None:
        self.complete = asyncio.Event()  # everything missed has arrived on this connection
        self._wanted = SyncQueue(random)
        self._firm: set[str] = set()  # to be requested even if no event is known to be missing
        self._changed = asyncio.Event()
        self._complete_to = int(meta.get("complete_to", 0))  # id of the newest head of the last walk
        self._whole_walk_at = int(meta.get("whole_walk_at", 0))  # seconds since the Unix epoch

    def want(self, wanted: Mapping[str, Want]) -> None:
        """Requests these conversations soon."""
        now = time.monotonic()
        self._firm.update(name for name, want in wanted.items() if want is not Want.HOLE)
        for conversation, want in wanted.items():
            wait = uniform(0.1, 1.0) * self.timing.hole if want is Want.HOLE else 0.0
            self._wanted.add(conversation, now + wait, firm=want is not Want.HOLE)
        if wanted:
            self._changed.set()

    def cursors(self, before: int = 1 << 63) -> tuple[Cursor, ...]:
        """The cursors of the conversations that come first in the list of heads."""
        newest = self.replica.newest(self._at_once, before)
        return tuple(_cursor(log.conversation, log.cursor) for log in newest)

    @property
    def _at_once(self) -> int:
        limits = self.uplink.limits
        return CURSORS if limits is None else max(1, min(CURSORS, limits.cursors))

    async def run(self, page: Page) -> None:
        """Catches up from `page`, which answers `Hello`, and stays up to date until the connection ends."""
        while True:
            await self._walk(page)
            next_walk = time.monotonic() + self.timing.sync * uniform(0.75, 1.25)
            while (now := time.monotonic()) < next_walk:
                self._changed.clear()
                due = self._wanted.next_at()
                if due is not None and due <= now:
                    await self._repair()
                    continue
                await self.settled()  # requests are answered before their events are stored
                self.complete.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(next_walk, due or next_walk) - now):
                        await self._changed.wait()
            page = await self._ask(Sync(cursors=self.cursors(), heads=True))

    async def _ask(self, sync: Sync) -> Page:
        while True:
            try:
                return await self.requests.ask(sync)
            except NotConnected:
                raise
            except ImqttError:
                # Not retryable: this device is mistaken about the server. The next connection begins with
                # a new `Welcome`; until then, a rare request does no harm.
                await asyncio.sleep(self.timing.patience)

    async def _walk(self, page: Page) -> None:
        """Reads the list of heads down to where nothing can have changed since the last walk."""
        newest = page.heads[0].id if page.heads else Id(0)
        bound = self._complete_to - MARGIN
        whole = self.replica.adopting or time.time() - self._whole_walk_at > WHOLE_WALK_EVERY
        if newest < self._complete_to:
            whole = True  # the store is older than the device's events: it was restored from a backup
        listed: set[str] = set()
        while True:
            listed.update(head.conversation for head in page.heads)
            # If one log was restored, so were all that were younger than the backup, however new the newest
            # head is.
            whole = whole or any(part.restart for part in page.slices)
            before = page.more_heads
            if not before or not (whole or before >= bound):
                break
            page = await self._ask(Sync(cursors=self.cursors(before), heads=True, heads_before=before))
            if page.more_heads >= before:
                break  # a list that does not descend would never end
        if whole and not page.more_heads:
            # A conversation that the store has lost entirely has no head.
            self.want(dict.fromkeys(self.replica.known() - listed, Want.CHECK))
        self._complete_to = newest
        changes = Changes(meta={"complete_to": str(newest), "adopted": "1"})
        if whole:
            self._whole_walk_at = int(time.time())
            changes.meta["whole_walk_at"] = str(self._whole_walk_at)
        if self.replica.adopting:
            self.replica.end_adoption()
            await self.commit()
        # The heads are stored already, so the logs that are behind are known after a restart too.
        await self.store.apply(changes)

    async def _repair(self) -> None:
        """Sends one `Sync` for the conversations that are due."""
        names = self._wanted.due(time.monotonic(), self._at_once)
        logs = {name: self.replica.logs[name] for name in names}
        for name in names:
            if not logs[name].is_open and name not in self._firm:
                self._wanted.done(name)  # the missing events have arrived meanwhile
                del logs[name]
        if not logs:
            return
        self._firm.difference_update(logs)
        asked = {name: log.cursor for name, log in logs.items()}
        try:
            page = await self._ask(Sync(cursors=tuple(_cursor(*cursor) for cursor in asked.items())))
        except BaseException:
            self._firm.update(logs)
            self._wanted.retry(list(logs), time.monotonic())
            raise
        if any(part.restart for part in page.slices):
            self._whole_walk_at = 0  # the store was restored: the next walk reads the whole list
        now = time.monotonic()
        moved = {name for name, log in logs.items() if log.cursor != asked[name]}
        unfinished = {part.conversation for part in page.slices if part.more or part.restart}
        for name, log in logs.items():
            was_not_reached = page.more and bool(moved) and name not in moved
            if log.is_open or name in unfinished or was_not_reached:
                self._firm.add(name)
                self._wanted.again(name, now, helped=name in moved or was_not_reached)
            else:
                self._wanted.done(name)


def _cursor(conversation: str, position: Position) -> Cursor:
    return Cursor(conversation, position.seq, position.id)
