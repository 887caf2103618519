"""A device's outbox: log commands that are not stored yet, and when each is sent.

One command per conversation is in flight at a time, so a sender's order survives losses and rejections;
conversations are independent. A command is sent again, with the same client_msg_id, until it is accepted or
refused for good. Sending it often is safe: the server stores it once.

Times are in seconds of a monotonic clock.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import NamedTuple

from imqtt.core.backoff import backoff, untaken
from imqtt.model import NO_CONTENT, AnyLogCommand, Content, Send, Value


class OutboxKey(NamedTuple):
    """Identifies one log command of a user."""

    conversation: str
    client_msg_id: str


class Entry(Value, frozen=True):
    """A log command in the outbox. One that the server `refused`, with this code, is not sent again."""

    command: AnyLogCommand
    refused: str = ""  # the error's code
    reason: str = ""

    @property
    def key(self) -> OutboxKey:
        """The conversation and the client_msg_id, which together identify a command in the outbox."""
        return OutboxKey(self.conversation, self.client_msg_id)

    @property
    def conversation(self) -> str:
        """The id of the conversation."""
        return self.command.conversation

    @property
    def client_msg_id(self) -> str:
        """The command's client_msg_id."""
        return self.command.client_msg_id

    @property
    def client_time(self) -> int:
        """When the program gave the command, in milliseconds since the Unix epoch."""
        return self.command.client_time

    @property
    def content(self) -> Content:
        """A message's content. Other commands have an empty one."""
        return self.command.content if isinstance(self.command, Send) else NO_CONTENT


class Fate(Enum):
    """The consequence of a rejection for a command."""

    UNKNOWN = "unknown"  # not in the outbox: answered before
    AGAIN = "again"
    REFUSED = "refused"


@dataclass(slots=True)
class _Queue:
    """A conversation's commands in the order in which they were put. Only the first is in flight."""

    keys: deque[str] = field(default_factory=deque)
    due: float = 0.0  # when to send the first (again), unless it is in flight
    tries: int = 0  # of the first
    refusals: int = 0  # how often in a row the first met no subscriber


@dataclass(eq=False, repr=False)
class Outbox:
    """Schedules commands by their keys."""

    chance: Callable[[], float]  # draws from 0 to 1
    answer_within: float = 5.0  # the wait for an answer to the first try; later tries wait longer
    patience: float = 60.0  # the longest of these waits
    untaken_within: float = 2.0  # before a command that met no subscriber is repeated
    window: int = 64  # commands in flight at most

    def __post_init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._in_flight: dict[str, float] = {}  # conversation: when the wait for its answer ends
        # A heap; items that differ from a queue's `due` are void.
        self._schedule: list[tuple[float, str]] = []

    def __contains__(self, key: OutboxKey) -> bool:
        queue = self._queues.get(key.conversation)
        return queue is not None and key.client_msg_id in queue.keys

    def __len__(self) -> int:
        return sum(len(queue.keys) for queue in self._queues.values())

    def put(self, key: OutboxKey, now: float) -> None:
        """Adds a command behind those of its conversation."""
        queue = self._queues.get(key.conversation)
        if queue is None:
            queue = self._queues[key.conversation] = _Queue()
            self._plan(key.conversation, now)
        queue.keys.append(key.client_msg_id)

    def take(self, now: float) -> list[OutboxKey]:
        """The commands to send now. Each is in flight until it is answered or its time is over."""
        for overdue in [name for name, until in self._in_flight.items() if until <= now]:
            # Commands that are already waiting go first, so a silent partition does not fill the window.
            del self._in_flight[overdue]
            self._plan(overdue, now)
        sent: list[OutboxKey] = []
        while len(self._in_flight) < self.window and (conversation := self._next()) is not None:
            queue = self._queues[conversation]
            if queue.due > now:
                break
            heappop(self._schedule)
            queue.tries += 1
            wait = min(self.patience, self.answer_within * 2.0 ** min(queue.tries - 1, 30))
            self._in_flight[conversation] = now + wait * (1 + 0.2 * self.chance())
            sent.append(OutboxKey(conversation, queue.keys[0]))
        return sent

    def next_at(self) -> float | None:
        """When `take` may next return something; None: not before something changes."""
        times = list(self._in_flight.values())
        if len(self._in_flight) < self.window and (conversation := self._next()) is not None:
            times.append(self._queues[conversation].due)
        return min(times, default=None)

    def discard(self, key: OutboxKey, now: float) -> bool:
        """Removes a command; False if it is not there. If it was sent, its event may be stored anyway."""
        conversation, name = key
        queue = self._queues.get(conversation)
        if queue is None or name not in queue.keys:
            return False
        first = queue.keys[0] == name
        queue.keys.remove(name)
        if first:
            self._in_flight.pop(conversation, None)
            queue.tries = queue.refusals = 0
        if not queue.keys:
            del self._queues[conversation]
        elif first:
            self._plan(conversation, now)
        return True

    def rejected(self, key: OutboxKey, now: float, *, retryable: bool, retry_after: float = 0.0) -> Fate:
        """Removes a refused command, or sends it again after at least `retry_after` seconds."""
        if key not in self:
            return Fate.UNKNOWN
        if not retryable:
            self.discard(key, now)
            return Fate.REFUSED
        conversation, queue = key.conversation, self._queues[key.conversation]
        if queue.keys[0] == key.client_msg_id:
            # Even if it is no longer in flight: the answer may be late, or the connection was lost.
            self._in_flight.pop(conversation, None)
            wait = backoff(queue.tries, self.chance(), base=0.2, cap=30.0)
            # Many devices may get the same `retry_after`; the backoff spreads them.
            self._plan(conversation, now + retry_after + wait)
        return Fate.AGAIN

    def untaken(self, key: OutboxKey, now: float) -> None:
        """The command met no subscriber. No answer will come, so it is sent again soon."""
        conversation, queue = key.conversation, self._queues.get(key.conversation)
        if queue is None or queue.keys[0] != key.client_msg_id or conversation not in self._in_flight:
            return
        del self._in_flight[conversation]
        queue.tries -= 1
        queue.refusals += 1
        wait = untaken(queue.refusals, self.chance(), most=self.untaken_within)
        self._plan(conversation, now + wait)

    def lost(self, now: float) -> None:
        """The connection is lost. Commands in flight are sent again on the next one."""
        for conversation in self._in_flight:
            tries = self._queues[conversation].tries
            # A command that makes the broker disconnect must not block the others.
            self._plan(conversation, now + (0.0 if tries == 1 else backoff(tries - 1, self.chance())))
        self._in_flight.clear()

    def _next(self) -> str | None:
        """The conversation that is due first, of those with nothing in flight."""
        while self._schedule:
            due, conversation = self._schedule[0]
            queue = self._queues.get(conversation)
            if queue is not None and queue.due == due and conversation not in self._in_flight:
                return conversation
            heappop(self._schedule)
        return None

    def _plan(self, conversation: str, due: float) -> None:
        self._queues[conversation].due = due
        heappush(self._schedule, (due, conversation))
