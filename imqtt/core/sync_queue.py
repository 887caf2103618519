"""The conversations whose missing events are to be requested, and when, in seconds of a monotonic clock."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from imqtt.core.backoff import backoff


@dataclass(slots=True)
class _Item:
    due: float
    tries: int = 0


class SyncQueue:
    """Holds each conversation at most once. `chance` draws from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._items: dict[str, _Item] = {}
        self._schedule: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, conversation: str, due: float, *, firm: bool = False) -> None:
        """Adds a conversation, due at `due` or earlier. After failed requests, its backoff stays.

        `firm`: the server reported something new, so the backoff is that of a first failure.
        """
        item = self._items.get(conversation)
        if item is None or (due < item.due and not item.tries):
            self._plan(conversation, _Item(due))
        elif firm and item.tries > 1:
            soon = due + self._backoff(1)
            self._plan(conversation, _Item(min(soon, item.due), 1))

    def due(self, now: float, limit: int) -> list[str]:
        """The conversations to request now. Each stays until `done`, `again` or `retry`."""
        found: list[str] = []
        while len(found) < limit and (at := self.next_at()) is not None and at <= now:
            found.append(heappop(self._schedule)[1])
        for conversation in found:
            self._items[conversation].due = float("inf")
        return found

    def next_at(self) -> float | None:
        while self._schedule:
            due, conversation = self._schedule[0]
            item = self._items.get(conversation)
            if item is not None and item.due == due:
                return due
            heappop(self._schedule)
        return None

    def done(self, conversation: str) -> None:
        """The conversation is up to date."""
        self._items.pop(conversation, None)

    def again(self, conversation: str, now: float, *, helped: bool) -> None:
        """Requests more at once if the request `helped`, else after a longer wait each time."""
        item = self._items.get(conversation, _Item(now))
        tries = 0 if helped else item.tries + 1
        self._plan(conversation, _Item(now + (0.0 if helped else self._backoff(tries)), tries))

    def retry(self, conversations: list[str], now: float) -> None:
        """The request itself failed: requests these again at once."""
        for conversation in conversations:
            self._plan(conversation, _Item(now))

    def _backoff(self, tries: int) -> float:
        return backoff(tries, self._chance(), base=0.5, cap=300.0)

    def _plan(self, conversation: str, item: _Item) -> None:
        self._items[conversation] = item
        heappush(self._schedule, (item.due, conversation))
