"""A client's output as async iterators: events in order, notices, and the connection's states."""

import asyncio
from collections import deque
from typing import Generic, Self, TypeVar
from weakref import WeakSet

from imqtt.client.store import LocalStore
from imqtt.errors import DeviceStoreError
from imqtt.model import Event

T = TypeVar("T")

READ_AHEAD = 100  # events that an iterator reads from the store at once


class Notifier:
    """Wakes all waiting iterators, and tells them when the client has ended."""

    def __init__(self) -> None:
        self.ended = False
        self.failure: Exception | None = None
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def end(self, failure: Exception | None) -> None:
        """Iterators return their remaining items, then stop or raise `failure`."""
        self.ended, self.failure = True, failure
        self.notify()

    def watch(self) -> asyncio.Event:
        """Get the event before looking and await it afterwards, so that no change in between is missed."""
        return self._event

    def stop(self) -> Exception:
        """The exception with which an iterator ends."""
        return self.failure or StopAsyncIteration()


class Feed:
    """The new events of a device, in order of their ordinals."""

    def __init__(self, ordinal: int) -> None:
        self.notifier = Notifier()
        self.ordinal = ordinal  # of the newest stored event
        self.invalidations = 0  # events in the store were changed or removed: events read ahead are void
        self.iterators: WeakSet[Events] = WeakSet()  # an iterator may be dropped without `close`

    def advance(self, ordinal: int) -> None:
        """Events up to this one are stored."""
        if ordinal > self.ordinal:
            self.ordinal = ordinal
            self.notifier.notify()

    @property
    def wanted_after(self) -> int | None:
        """The ordinal after which some iterator has not read yet."""
        return min((events.position for events in self.iterators), default=None)


class Events:
    """An async iterator of events, each conversation's in order of seq, made by `client.events`.

    It reads a few events at a time from the device's store, so a slow program costs no memory and does not
    block the connection. The store keeps a named consumer's position: asking for the next event marks the
    previous one as processed. If the client is closed before that, the previous one is returned again.
    """

    def __init__(self, feed: Feed, store: LocalStore, consumer: str | None, conversation: str | None) -> None:
        self.position = feed.ordinal  # of the last event that was returned
        self._feed = feed
        self._store = store
        self._consumer = consumer
        self._conversation = conversation
        self._begun = False
        self._unfinished = False
        self._ahead: deque[tuple[int, Event]] = deque()
        self._invalidations = feed.invalidations  # when `_ahead` was read
        self._read_to = self.position
        if consumer is None:
            feed.iterators.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            await self._begin()
            await self.finish()
            await self._look_ahead()
        except DeviceStoreError:
            if not self._feed.notifier.ended:
                raise
            self.close()
            raise self._feed.notifier.stop() from None  # the client ended and closed the store
        self.position, event = self._ahead.popleft()
        self._unfinished = True
        return event

    async def finish(self) -> None:
        """Marks the last event as processed, for a consumer that does not ask for another."""
        if self._unfinished and self._consumer is not None:
            await self._store.finish(self._consumer, self.position)
        self._unfinished = False

    def close(self) -> None:
        """Ends the iteration, so that the store may trim the events it has not read."""
        self._feed.iterators.discard(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _begin(self) -> None:
        if not self._begun and self._consumer is not None:
            self.position = self._read_to = await self._store.consumer(self._consumer)
        self._begun = True  # only now: the await above may be cancelled

    async def _look_ahead(self) -> None:
        """Returns when an event is available. Raises the exception that ends the iteration."""
        notifier = self._feed.notifier
        while not self._still_ahead():
            changed = notifier.watch()
            if self._read_to < self._feed.ordinal:
                await self._read()
            elif notifier.ended:
                self.close()
                raise notifier.stop()
            else:
                await changed.wait()

    def _still_ahead(self) -> deque[tuple[int, Event]]:
        """The events read ahead that are still valid. `Feed` does not know iterators of named consumers."""
        if self._invalidations != self._feed.invalidations:
            self._invalidations = self._feed.invalidations
            self._ahead.clear()
            self._read_to = self.position
        return self._ahead

    async def _read(self) -> None:
        known = self._feed.ordinal
        found = await self._store.new_events(self._read_to, READ_AHEAD, self._conversation)
        self._ahead.extend(found)
        last = found[-1][0] if found else 0
        self._read_to = last if len(found) == READ_AHEAD else max(known, last)
        if not found:
            self.position = self._read_to


class Queue(Generic[T]):
    """An async iterator of items that are not stored.

    If more wait than it holds, the oldest are dropped; `dropped` counts them.
    """

    def __init__(self, broadcast: "Broadcast[T]", size: int) -> None:
        self.dropped = 0
        self.waiting: deque[T] = deque(maxlen=size)
        self._broadcast = broadcast

    def put(self, item: T) -> None:
        self.dropped += len(self.waiting) == self.waiting.maxlen
        self.waiting.append(item)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        notifier = self._broadcast.notifier
        while not self.waiting:
            changed = notifier.watch()
            if notifier.ended:
                self.close()
                raise StopAsyncIteration
            await changed.wait()
        return self.waiting.popleft()

    def close(self) -> None:
        """Ends the iteration."""
        self._broadcast.queues.discard(self)


class Broadcast(Generic[T]):
    """Passes each item to all of its iterators."""

    def __init__(self, size: int) -> None:
        self.notifier = Notifier()
        self.queues: WeakSet[Queue[T]] = WeakSet()  # an iterator may be dropped without `close`
        self._size = size

    def tell(self, item: T) -> None:
        for queue in self.queues:
            queue.put(item)
        self.notifier.notify()

    def iterate(self, *first: T) -> Queue[T]:
        queue = Queue(self, self._size)
        for item in first:
            queue.put(item)
        self.queues.add(queue)
        return queue
