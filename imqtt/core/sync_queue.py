"""Which conversations are to be asked for, and when. No I/O.

Times are in seconds on any clock that does not step back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from imqtt.core.backoff import backoff


@dataclass(slots=True)
class _Wish:
    due: float
    tries: int = 0


class SyncQueue:
    """At most one wish per conversation. `chance` draws from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._wishes: dict[str, _Wish] = {}
        self._schedule: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._wishes)

    def add(self, conversation: str, due: float, *, firm: bool = False) -> None:
        """Asks not later than at `due`; one that failed before keeps its patience.

        `firm`: the server has said something new, so only as much patience as after a first failure.
        """
        wish = self._wishes.get(conversation)
        if wish is None or (due < wish.due and not wish.tries):
            self._plan(conversation, _Wish(due))
        elif firm and wish.tries > 1:
            soon = due + self._patience(1)
            self._plan(conversation, _Wish(min(soon, wish.due), 1))

    def due(self, now: float, limit: int) -> list[str]:
        """The conversations to ask for now. Each stays until it is settled."""
        found: list[str] = []
        while len(found) < limit and (at := self.next_at()) is not None and at <= now:
            found.append(heappop(self._schedule)[1])
        for conversation in found:
            # Until it is settled, it is not due.
            self._wishes[conversation].due = float("inf")
        return found

    def next_at(self) -> float | None:
        """When the next is due."""
        while self._schedule:
            due, conversation = self._schedule[0]
            wish = self._wishes.get(conversation)
            if wish is not None and wish.due == due:
                return due
            heappop(self._schedule)
        return None

    def done(self, conversation: str) -> None:
        """It is up to date."""
        self._wishes.pop(conversation, None)

    def again(self, conversation: str, now: float, *, helped: bool) -> None:
        """There is more to come, if asking `helped`; else it is left in peace for longer each time."""
        wish = self._wishes.get(conversation, _Wish(now))
        tries = 0 if helped else wish.tries + 1
        self._plan(conversation, _Wish(now + (0.0 if helped else self._patience(tries)), tries))

    def retry(self, conversations: list[str], now: float) -> None:
        """The question itself failed: they are asked for as before."""
        for conversation in conversations:
            self._plan(conversation, _Wish(now))

    def _patience(self, tries: int) -> float:
        return backoff(tries, self._chance(), base=0.5, cap=300.0)

    def _plan(self, conversation: str, wish: _Wish) -> None:
        self._wishes[conversation] = wish
        heappush(self._schedule, (wish.due, conversation))
