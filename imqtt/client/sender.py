"""The outbox at work: messages leave the device, and whoever waits for one is told what became of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from random import random

from imqtt.client.settings import Timing
from imqtt.client.store import LocalStore
from imqtt.client.uplink import Uplink
from imqtt.client.values import Entry, Notice, Refused, error_of
from imqtt.core.outbox import Fate, Key, Outbox
from imqtt.errors import ImqttError
from imqtt.model import Accepted, Rejected, Send

log = logging.getLogger(__name__)

MAX_ENTRIES = 256  # messages whose contents are kept in memory; others are read again when answered


class Sender:
    """Outlives connections. An entry is durable before it is sent, and stays until it is answered."""

    def __init__(
        self,
        uplink: Uplink,
        store: LocalStore,
        timing: Timing,
        unsent: Sequence[Key],
        notify: Callable[[Notice], None],
    ) -> None:
        self._uplink = uplink
        self._store = store
        self._notify = notify
        self._outbox = Outbox(random, answer_within=timing.answer, patience=timing.patience)
        self._entries: dict[Key, Entry] = {}  # a cache of those that are under way
        self._waiting: dict[Key, list[asyncio.Future[Accepted]]] = {}
        self._changed = asyncio.Event()
        for key in unsent:
            self._outbox.put(key, time.monotonic())

    def __len__(self) -> int:
        return len(self._outbox)

    async def put(self, entry: Entry) -> None:
        """Durable when it returns, and then sent by itself. Raises `Conflict`."""
        if await self._store.put(entry):
            self._outbox.put(entry.key, time.monotonic())
            self._changed.set()

    def wait(self, key: Key) -> "asyncio.Future[Accepted]":
        """What becomes of the message. To be called before `put`, so that no answer is missed."""
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        return future

    def forget(self, key: Key, future: "asyncio.Future[Accepted]") -> None:
        """Nobody waits any more."""
        waiting = self._waiting.get(key, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(key, None)

    def fail(self, error: Exception) -> None:
        """Nothing will be sent any more by this client. The outbox keeps what it has."""
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        self._waiting.clear()

    async def discard(self, key: Key) -> bool:
        """Takes a message out of the outbox. It may have been sent."""
        self._outbox.discard(key, time.monotonic())
        self._entries.pop(key, None)
        self._changed.set()
        return await self._store.discard(key)

    async def run(self) -> None:
        """Sends while there is a connection. Ends with `mqtt.Lost` or `NotConnected`."""
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

    async def _load(self, keys: Collection[Key]) -> list[Entry]:
        if len(self._entries) > MAX_ENTRIES:
            self._entries.clear()
        found = await self._store.entries([key for key in keys if key not in self._entries])
        self._entries.update(found)
        entries: list[Entry] = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                entries.append(entry)
            else:  # discarded in the meantime
                self._outbox.discard(key, time.monotonic())
        return entries

    async def _publish(self, entry: Entry) -> None:
        send = Send(entry.conversation, entry.client_msg_id, entry.content, entry.client_time)
        await self._uplink.publish(send, entry.conversation)

    # --- answers

    async def entries(self, keys: Collection[Key]) -> dict[Key, Entry]:
        """The messages of these keys that are in the outbox."""
        known = {key: self._entries[key] for key in keys if key in self._entries}
        unknown = [key for key in keys if key not in known and key in self._outbox]
        return known | (await self._store.entries(unknown) if unknown else {})

    def accepted(self, frame: Accepted) -> None:
        """The message is in the device's log, and out of the outbox."""
        key = Key(frame.conversation, frame.client_msg_id)
        self._outbox.accepted(key, time.monotonic())
        self._entries.pop(key, None)
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(frame)
        self._changed.set()

    async def rejected(self, frame: Rejected) -> None:
        """Sends again if that may help. Else whoever waits is told; if nobody does, the outbox keeps it."""
        key = Key(frame.conversation, frame.client_msg_id)
        retry_after = frame.retry_after / 1000
        entry = (await self.entries([key])).get(key)
        fate = self._outbox.rejected(
            key, time.monotonic(), retryable=frame.retryable, retry_after=retry_after
        )
        self._changed.set()
        if fate is not Fate.REFUSED or entry is None:
            log.info("%s is rejected (%s: %s) and sent again", key, frame.code, frame.reason)
            return
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
        if waiting:
            await self._store.discard(entry.key)
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        log.warning("a message to %s is refused: %s: %s", entry.conversation, error.code, error)
        await self._store.refuse(entry.key, error.code, error.reason)
        self._notify(Refused(entry, error))
