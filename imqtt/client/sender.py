"""The outbox at work: messages leave the device, and whoever waits for one is told what became of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from random import random
from typing import TypeVar

from imqtt.client.settings import Timing
from imqtt.client.store import LocalStore
from imqtt.client.transport import Untaken
from imqtt.client.uplink import Uplink
from imqtt.client.values import Entry, Notice, Refused, error_of
from imqtt.core.outbox import Fate, Outbox, OutboxKey
from imqtt.errors import Conflict, Discarded, ImqttError, TooLarge
from imqtt.model import Accepted, Rejected, Send
from imqtt.protocol import Bounds, check

log = logging.getLogger(__name__)

MAX_ENTRIES = 256  # messages whose contents are kept in memory; others are read again when answered
UNBOUNDED = Bounds(content=1 << 28, command=1 << 28)  # the server's bounds are not known yet

T = TypeVar("T")


class Sender:
    """Outlives connections. An entry is durable before it is sent, and stays until it is answered.

    What a program puts and discards is done by the store first and followed here, in the order in which the
    store was asked. So both have the same messages, whatever else comes while the store is at work.
    """

    def __init__(
        self,
        uplink: Uplink,
        store: LocalStore,
        timing: Timing,
        unsent: Sequence[OutboxKey],
        notify: Callable[[Notice], None],
    ) -> None:
        self._uplink = uplink
        self._store = store
        self._notify = notify
        self._outbox = Outbox(
            random, answer_within=timing.answer, patience=timing.patience, untaken_within=timing.untaken
        )
        self._entries: dict[OutboxKey, Entry] = {}  # a cache of those that are under way
        self._unanswered: dict[
            OutboxKey, int
        ] = {}  # hashes of what was published, also if it was discarded since
        self._leaving: set[OutboxKey] = set()  # what the store is discarding
        self._waiting: dict[OutboxKey, list[asyncio.Future[Accepted]]] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        for key in unsent:
            self._outbox.put(key, time.monotonic())

    def __len__(self) -> int:
        return len(self._outbox)

    def check(self, send: Send) -> None:
        """Raises what the server would refuse it with, as far as it has told its limits.

        The broker hangs up on what is too large for it, and then nobody refuses the message at all. It takes
        four times the largest command (deploy/mosquitto/mosquitto.conf), so the server's limit comes first.
        """
        limits = self._uplink.limits
        if limits is None:
            check(send, UNBOUNDED)
            return
        check(send, Bounds(limits.content, limits.command, limits.cursors))
        size = len(self._uplink.encode(send))
        if size > limits.command:
            raise TooLarge.of("a command", size, limits.command)

    async def put(self, entry: Entry) -> None:
        """Durable when it returns, and then sent by itself. Raises `Conflict`.

        A cancellation does not stop it: the message would be in the outbox, and unsent.
        """
        published = self._unanswered.get(entry.key)
        if published is not None and published != hash(entry.content):
            # Its answer would be taken for this one's.
            raise Conflict(f"the client_msg_id {entry.client_msg_id} was sent with other content")

        def follow(is_new: bool) -> None:
            if is_new:
                self._outbox.put(entry.key, time.monotonic())
                self._changed.set()

        await _followed(self._store.put(entry), follow)

    def wait(self, key: OutboxKey) -> "asyncio.Future[Accepted]":
        """What becomes of the message. To be called right before `put`, so that no answer is missed."""
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        if self._failure is None:
            self._waiting.setdefault(key, []).append(future)
        else:
            future.set_exception(self._failure)
        return future

    def forget(self, key: OutboxKey, future: "asyncio.Future[Accepted]") -> None:
        """Nobody waits any more."""
        waiting = self._waiting.get(key, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(key, None)
        if future.done() and not future.cancelled():
            future.exception()  # heard: `put` may have raised another one

    def fail(self, error: Exception) -> None:
        """Nothing will be sent any more by this client. The outbox keeps what it has, and what is put yet."""
        self._failure = error
        for futures in self._waiting.values():
            _tell(futures, error)
        self._waiting.clear()

    async def discard(self, key: OutboxKey) -> bool:
        """Takes a message out of the outbox. It may have been sent. Whoever waits is told `Discarded`."""
        waiting = list(self._waiting.get(key, ()))  # and not who puts it again in the meantime

        def follow(_: bool) -> None:
            self._outbox.discard(key, time.monotonic())
            self._entries.pop(key, None)
            self._changed.set()
            _tell(waiting, Discarded("the message was discarded; if it was sent, it may be stored anyway"))

        discarded = self._store.discard(key)
        self._leaving.add(key)
        discarded.add_done_callback(lambda _: self._leaving.discard(key))
        return await _followed(discarded, follow)

    async def run(self) -> None:
        """Sends while there is a connection. Ends with `NotConnected`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._changed.clear()
                    keys = self._outbox.take(time.monotonic())
                    if keys:
                        for entry in await self._load(keys):
                            tasks.create_task(self._publish(entry))
                    await self._until_due()
        finally:
            self._outbox.lost(time.monotonic())

    async def _until_due(self) -> None:
        due = self._outbox.next_at()
        wait = None if due is None else max(0.0, due - time.monotonic())
        try:
            async with asyncio.timeout(wait):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _load(self, keys: Collection[OutboxKey]) -> list[Entry]:
        if len(self._entries) > MAX_ENTRIES:
            self._entries.clear()
        found = await self._store.entries([key for key in keys if key not in self._entries])
        # What has left the outbox meanwhile may come again, with other content.
        self._entries.update((key, entry) for key, entry in found.items() if key in self._outbox)
        entries: list[Entry] = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is None:  # answered or discarded in the meantime
                self._outbox.discard(key, time.monotonic())
            elif key not in self._leaving:
                entries.append(entry)
        return entries

    async def _publish(self, entry: Entry) -> None:
        send = Send(entry.conversation, entry.client_msg_id, entry.content, entry.client_time)
        try:
            self.check(send)
        except ImqttError as error:  # it was put when the limits were others, or not known
            self._unanswered.pop(entry.key, None)
            if self._outbox.rejected(entry.key, time.monotonic(), retryable=False) is Fate.REFUSED:
                self._changed.set()
                await self._refuse(entry, error)
            return
        if self._uplink.is_attached:
            self._unanswered[entry.key] = hash(entry.content)
        try:
            await self._uplink.publish(send, entry.conversation)
        except Untaken as error:
            log.debug("%s", error)
            self._outbox.untaken(entry.key, time.monotonic())
            self._changed.set()

    # --- answers

    async def entries(self, keys: Collection[OutboxKey]) -> dict[OutboxKey, Entry]:
        """The messages of these keys that are in the outbox."""
        known = {key: self._entries[key] for key in keys if key in self._entries}
        unknown = [key for key in keys if key not in known and key in self._outbox]
        return known | (await self._store.entries(unknown) if unknown else {})

    def accepted(self, frame: Accepted) -> None:
        """The message is in the device's log, and out of the outbox."""
        key = OutboxKey(frame.conversation, frame.client_msg_id)
        self._outbox.accepted(key, time.monotonic())
        self._entries.pop(key, None)
        self._unanswered.pop(key, None)
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(frame)
        self._changed.set()

    async def rejected(self, frame: Rejected) -> None:
        """Sends again if that may help. Else whoever waits is told; if nobody does, the outbox keeps it."""
        key = OutboxKey(frame.conversation, frame.client_msg_id)
        retry_after = frame.retry_after / 1000
        entry = (await self.entries([key])).get(key)
        fate = self._outbox.rejected(
            key, time.monotonic(), retryable=frame.retryable, retry_after=retry_after
        )
        self._changed.set()
        if not frame.retryable:
            self._unanswered.pop(key, None)
        if fate is Fate.AGAIN:
            log.info("%s is rejected (%s: %s) and sent again", key, frame.code, frame.reason)
        elif fate is Fate.REFUSED and entry is not None:
            await self._refuse(entry, self._error(frame, entry))

    def _error(self, frame: Rejected, entry: Entry) -> ImqttError:
        content = entry.content
        body = content.text or content.data or content.json or b""
        size = len(body if isinstance(body, bytes) else body.encode())
        limits = self._uplink.limits
        return error_of(frame, size, 0 if limits is None else limits.content)

    async def _refuse(self, entry: Entry, error: ImqttError) -> None:
        self._entries.pop(entry.key, None)
        waiting = [it for it in self._waiting.pop(entry.key, ()) if not it.done()]
        try:
            if waiting:
                await self._store.discard(entry.key)
            else:
                await self._store.refuse(entry.key, error.code, error.reason)
        finally:  # also where the store fails, or the connection ends now: nobody else will tell of it
            if not _tell(waiting, error):
                log.warning("a message to %s is refused: %s: %s", entry.conversation, error.code, error)
                self._notify(Refused(entry, error))


async def _followed(change: "asyncio.Future[T]", follow: Callable[[T], None]) -> T:
    """Waits for a change of the store. It is followed even if whoever waits here is cancelled."""

    def done(change: "asyncio.Future[T]") -> None:
        if not change.cancelled() and change.exception() is None:
            follow(change.result())

    change.add_done_callback(done)
    return await asyncio.shield(change)


def _tell(waiting: "Collection[asyncio.Future[Accepted]]", error: Exception) -> bool:
    """False if nobody waits any more."""
    told = [it for it in waiting if not it.done()]
    for future in told:
        future.set_exception(error)
    return bool(told)
