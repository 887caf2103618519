"""What a device sends when: the decisions of its outbox.

One message of a conversation is under way at a time, so a sender's own order survives drops and
rejections; conversations go side by side. A message is sent again, under the same client_msg_id, until it
is accepted or refused for good: how often does not matter, since the server stores it once.

Times are in seconds on any clock that does not step back.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import NamedTuple

from imqtt.core.backoff import backoff, untaken


class OutboxKey(NamedTuple):
    """What makes a user's message one message."""

    conversation: str
    client_msg_id: str


class Fate(Enum):
    """What a rejection means for a message."""

    UNKNOWN = "unknown"  # not in the outbox: answered before
    AGAIN = "again"
    REFUSED = "refused"


@dataclass(slots=True)
class _Queue:
    """A conversation's messages in the order in which they were given. Only the first is under way."""

    keys: deque[str] = field(default_factory=deque)
    due: float = 0.0  # when the first is to be sent (again), unless it is under way
    tries: int = 0  # of the first
    refusals: int = 0  # how often in a row the first met no subscriber


class Outbox:
    """Knows the keys of what is unsent, not the contents.

    `chance` draws from 0 to 1. `answer_within` is how long an answer to the first try may take; later
    tries wait longer, up to `patience`. At most `window` messages are under way. `untaken_within` is how soon
    a message that met no subscriber is sent again.
    """

    def __init__(
        self,
        chance: Callable[[], float],
        *,
        answer_within: float = 5.0,
        patience: float = 60.0,
        untaken_within: float = 2.0,
        window: int = 64,
    ) -> None:
        self._chance = chance
        self._answer_within = answer_within
        self._patience = patience
        self._untaken_within = untaken_within
        self._window = window
        self._queues: dict[str, _Queue] = {}
        self._under_way: dict[str, float] = {}  # conversation: until when its answer is waited for
        self._schedule: list[
            tuple[float, str]
        ] = []  # a heap; entries that a queue's `due` contradicts are void

    def __contains__(self, key: OutboxKey) -> bool:
        queue = self._queues.get(key.conversation)
        return queue is not None and key.client_msg_id in queue.keys

    def __len__(self) -> int:
        return sum(len(queue.keys) for queue in self._queues.values())

    def put(self, key: OutboxKey, now: float) -> None:
        """Adds a message behind those of its conversation."""
        queue = self._queues.get(key.conversation)
        if queue is None:
            queue = self._queues[key.conversation] = _Queue()
            self._plan(key.conversation, now)
        queue.keys.append(key.client_msg_id)

    def take(self, now: float) -> list[OutboxKey]:
        """What to send now. Each then counts as under way until it is answered or its time is over."""
        for overdue in [it for it, until in self._under_way.items() if until <= now]:
            # Unanswered: others that wait already go first, so a silent partition does not fill the window.
            del self._under_way[overdue]
            self._plan(overdue, now)
        sent: list[OutboxKey] = []
        while len(self._under_way) < self._window and (conversation := self._next()) is not None:
            queue = self._queues[conversation]
            if queue.due > now:
                break
            heappop(self._schedule)
            queue.tries += 1
            wait = min(self._patience, self._answer_within * 2.0 ** min(queue.tries - 1, 30))
            self._under_way[conversation] = now + wait * (1 + 0.2 * self._chance())
            sent.append(OutboxKey(conversation, queue.keys[0]))
        return sent

    def next_at(self) -> float | None:
        """When `take` may next have something; None: not before something changes."""
        times = list(self._under_way.values())
        if len(self._under_way) < self._window and (conversation := self._next()) is not None:
            times.append(self._queues[conversation].due)
        return min(times, default=None)

    def accepted(self, key: OutboxKey, now: float) -> bool:
        """The message is stored. False if it is not in the outbox: it was answered before."""
        return self._remove(key, now)

    def discard(self, key: OutboxKey, now: float) -> bool:
        """Takes a message out; one that was sent may be stored nevertheless."""
        return self._remove(key, now)

    def rejected(self, key: OutboxKey, now: float, *, retryable: bool, retry_after: float = 0.0) -> Fate:
        """Refused messages leave the outbox; others are sent again, not before `retry_after` seconds."""
        if key not in self:
            return Fate.UNKNOWN
        if not retryable:
            self._remove(key, now)
            return Fate.REFUSED
        conversation, queue = key.conversation, self._queues[key.conversation]
        if queue.keys[0] == key.client_msg_id:
            # Also if it is under way no more: the answer may be late, or the connection lost since.
            self._under_way.pop(conversation, None)
            wait = backoff(queue.tries, self._chance(), base=0.2, cap=30.0)
            # Many devices may have been told the same `retry_after`: they do not come back as one.
            self._plan(conversation, now + retry_after + wait)
        return Fate.AGAIN

    def untaken(self, key: OutboxKey, now: float) -> None:
        """The message met no subscriber. No answer will come, so it is sent again soon."""
        conversation, queue = key.conversation, self._queues.get(key.conversation)
        if queue is None or queue.keys[0] != key.client_msg_id or conversation not in self._under_way:
            return
        del self._under_way[conversation]
        queue.tries -= 1
        queue.refusals += 1
        wait = untaken(queue.refusals, self._chance(), most=self._untaken_within)
        self._plan(conversation, now + wait)

    def lost(self, now: float) -> None:
        """The connection is gone, and whatever was under way with it: sent again on the next one."""
        for conversation in self._under_way:
            tries = self._queues[conversation].tries
            # A message on which the broker hangs up must not keep the others from being sent.
            self._plan(conversation, now + (0.0 if tries == 1 else backoff(tries - 1, self._chance())))
        self._under_way.clear()

    def _remove(self, key: OutboxKey, now: float) -> bool:
        conversation, name = key
        queue = self._queues.get(conversation)
        if queue is None or name not in queue.keys:
            return False
        first = queue.keys[0] == name
        queue.keys.remove(name)
        if first:
            self._under_way.pop(conversation, None)
            queue.tries = queue.refusals = 0
        if not queue.keys:
            del self._queues[conversation]
        elif first:
            self._plan(conversation, now)
        return True

    def _next(self) -> str | None:
        """The conversation that is due first, of those with nothing under way."""
        while self._schedule:
            due, conversation = self._schedule[0]
            queue = self._queues.get(conversation)
            if queue is not None and queue.due == due and conversation not in self._under_way:
                return conversation
            heappop(self._schedule)
        return None

    def _plan(self, conversation: str, due: float) -> None:
        self._queues[conversation].due = due
        heappush(self._schedule, (due, conversation))
