"""Sends the commands in the outbox, and tells their waiting callers whether they were stored."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from random import random
from typing import TypeVar, cast

from imqtt.client.settings import Timing
from imqtt.client.store import LocalStore
from imqtt.client.transport import Untaken
from imqtt.client.uplink import Uplink
from imqtt.client.values import Notice, Refused, error_of
from imqtt.core.outbox import Entry, Fate, Outbox, OutboxKey
from imqtt.core.rules import change_of
from imqtt.errors import Conflict, Discarded, ImqttError, TooLarge
from imqtt.model import Accepted, AnyLogCommand, Rejected
from imqtt.protocol import Bounds, Format, check, decode_command, encode_command

log = logging.getLogger(__name__)

MAX_ENTRIES = 256  # kept in memory; others are read again when they are answered
UNBOUNDED = Bounds(content=1 << 28, command=1 << 28)  # until the server has reported its limits

T = TypeVar("T")


class Sender:
    """Outlives connections. An entry is durable before it is sent, and stays until it is answered.

    The store puts and discards entries first, and the sender follows in the order of the store's operations.
    So both always have the same entries, whatever happens while the store is writing.
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
        self._entries: dict[OutboxKey, Entry] = {}  # a cache of those that are in flight
        self._unanswered: dict[OutboxKey, int] = {}  # hashes of published changes, even if discarded
        self._leaving: set[OutboxKey] = set()  # the store is discarding these
        self._waiting: dict[OutboxKey, list[asyncio.Future[Accepted]]] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        for key in unsent:
            self._outbox.put(key, time.monotonic())

    def check(self, command: AnyLogCommand) -> None:
        """Raises the error with which the server would reject the command, by the limits that it reported.

        The broker disconnects a device that publishes more than it accepts, and no rejection comes. It
        accepts four times the largest command (deploy/mosquitto/mosquitto.conf).
        """
        limits = self._uplink.limits
        if limits is None:
            check(command, UNBOUNDED)
            return
        check(command, Bounds(limits.content, limits.command, limits.cursors))
        size = len(self._uplink.encode(command))
        if size > limits.command:
            raise TooLarge.of("a command", size, limits.command)

    async def send(self, command: AnyLogCommand) -> Accepted:
        """Puts the command into the outbox and returns when its event is stored."""
        key = OutboxKey(command.conversation, command.client_msg_id)
        stored: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        if self._failure is None:
            self._waiting.setdefault(key, []).append(stored)  # before `put`, so that no answer is missed
        else:
            stored.set_exception(self._failure)
        try:
            await self.put(command)
            return await stored
        finally:
            waiting = self._waiting.get(key, [])
            if stored in waiting:
                waiting.remove(stored)
            if not waiting:
                self._waiting.pop(key, None)
            if stored.done() and not stored.cancelled():
                stored.exception()  # retrieved, in case `put` has raised another one

    async def put(self, command: AnyLogCommand) -> None:
        """Returns when the command is durable; it is then sent. Raises `Conflict`, and as `check`.

        Raises `Malformed` for values of other types than declared.

        A cancellation does not stop it: the command would be in the outbox and not be sent.
        """
        self.check(command)
        entry = Entry(_as_read(command))
        published = self._unanswered.get(entry.key)
        if published is not None and published != hash(change_of(entry.command)):
            # Its answer would be taken for this one's.
            raise Conflict(f"the client_msg_id {entry.client_msg_id} was sent with other content")

        def follow(is_new: bool) -> None:
            if is_new:
                self._outbox.put(entry.key, time.monotonic())
                self._changed.set()

        await _followed(self._store.put(entry), follow)

    def fail(self, error: Exception) -> None:
        """Nothing more will be sent by this client. The outbox keeps its entries."""
        self._failure = error
        for futures in self._waiting.values():
            _tell(futures, error)
        self._waiting.clear()

    async def discard(self, key: OutboxKey) -> bool:
        """Removes a command, which may have been sent, from the outbox. Waiting callers get `Discarded`."""
        waiting = list(self._waiting.get(key, ()))  # without those that put it again meanwhile

        def follow(_: bool) -> None:
            self._outbox.discard(key, time.monotonic())
            self._entries.pop(key, None)
            self._changed.set()
            _tell(waiting, Discarded("the command was discarded; if it was sent, it may be stored anyway"))

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
                            tasks.create_task(self._publish(entry), name="imqtt-publish")
                    due = self._outbox.next_at()
                    wait = None if due is None else max(0.0, due - time.monotonic())
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._changed.wait()
        finally:
            self._outbox.lost(time.monotonic())

    async def _load(self, keys: Collection[OutboxKey]) -> list[Entry]:
        if len(self._entries) > MAX_ENTRIES:
            self._entries.clear()
        found = await self._store.entries([key for key in keys if key not in self._entries])
        # A key that has left the outbox meanwhile may be put again with another command.
        self._entries.update((key, entry) for key, entry in found.items() if key in self._outbox)
        entries: list[Entry] = []
        for key in keys:
            entry = self._entries.get(key)
            if entry is None:  # answered or discarded meanwhile
                self._outbox.discard(key, time.monotonic())
            elif key not in self._leaving:
                entries.append(entry)
        return entries

    async def _publish(self, entry: Entry) -> None:
        try:
            self.check(entry.command)
        except ImqttError as error:  # the limits were unknown or different when it was put
            self._unanswered.pop(entry.key, None)
            if self._outbox.rejected(entry.key, time.monotonic(), retryable=False) is Fate.REFUSED:
                self._changed.set()
                await self._refuse(entry, error)
            return
        if self._uplink.mqtt is not None:
            self._unanswered[entry.key] = hash(change_of(entry.command))
        try:
            await self._uplink.publish(entry.command)
        except Untaken as error:
            log.debug("%s", error)
            self._outbox.untaken(entry.key, time.monotonic())
            self._changed.set()

    async def entries(self, keys: Collection[OutboxKey]) -> dict[OutboxKey, Entry]:
        """The entries with these keys that are in the outbox."""
        known = {key: self._entries[key] for key in keys if key in self._entries}
        unknown = [key for key in keys if key not in known and key in self._outbox]
        return known | (await self._store.entries(unknown) if unknown else {})

    def accepted(self, frame: Accepted) -> None:
        """The command's event is in the device's log, and the command is no longer in the outbox."""
        key = OutboxKey(frame.conversation, frame.client_msg_id)
        self._outbox.discard(key, time.monotonic())
        self._entries.pop(key, None)
        self._unanswered.pop(key, None)
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(frame)
        self._changed.set()

    async def rejected(self, frame: Rejected) -> None:
        """Sends again if that may help. Else waiting callers get the error, or the outbox keeps it."""
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
        waiting = [future for future in self._waiting.pop(entry.key, ()) if not future.done()]
        try:
            if waiting:
                await self._store.discard(entry.key)
            else:
                await self._store.refuse(entry.key, error.code, error.reason)
        finally:  # even if the store fails or the connection ends now: nothing else will report it
            if not _tell(waiting, error):
                log.warning("a command in %s is refused: %s: %s", entry.conversation, error.code, error)
                self._notify(Refused(entry, error))


def _as_read(command: AnyLogCommand) -> AnyLogCommand:
    """The command as it will be read from the store, which must not be given what it cannot read.

    A program may spell JSON in another way, or give values of other types.
    """
    return cast("AnyLogCommand", decode_command(encode_command(command, Format.JSON), UNBOUNDED))


async def _followed(change: "asyncio.Future[T]", follow: Callable[[T], None]) -> T:
    """Waits for a change of the store. Follows it even if this call is cancelled."""

    def done(change: "asyncio.Future[T]") -> None:
        if not change.cancelled() and change.exception() is None:
            follow(change.result())

    change.add_done_callback(done)
    return await asyncio.shield(change)


def _tell(waiting: "Collection[asyncio.Future[Accepted]]", error: Exception) -> bool:
    """False if nobody waits."""
    unanswered = [future for future in waiting if not future.done()]
    for future in unanswered:
        future.set_exception(error)
    return bool(unanswered)
