"""The part of the log that a batch of commands is decided against."""

from collections.abc import Mapping
from typing import NamedTuple

from imqtt.core.conversations import Members
from imqtt.model import Event, Id, Key, Position, Stored

EMPTY = Position(0, Id(0))  # the head of an empty log


class Needs(NamedTuple):
    """The parts of the view that a rule reads: events by (conversation, seq), (conversation, register)."""

    events: tuple[tuple[str, int], ...] = ()
    registers: tuple[tuple[str, str], ...] = ()


NOTHING = Needs()


class View:
    """The known part of the log, loaded once for a batch. Each decision advances it for the next ones.

    `heads` has each conversation's newest position (absent: empty), `stored` the position and digest of
    keys known to be stored, `events` and `registers` those that the rules need. If any of these is stale, the
    store's indexes refuse the append, and everything is decided again.
    """

    def __init__(
        self,
        heads: Mapping[str, Position],
        stored: Mapping[Key, Stored],
        members: Members,
        events: Mapping[tuple[str, int], Event] | None = None,
        registers: Mapping[tuple[str, str], Event] | None = None,
    ) -> None:
        self._heads = dict(heads)
        self._stored = dict(stored)
        self._members = members
        self._events = events or {}
        self._registers = dict(registers or {})

    def head(self, conversation: str) -> Position:
        return self._heads.get(conversation, EMPTY)

    def stored(self, key: Key) -> Stored | None:
        return self._stored.get(key)

    def members(self, conversation: str, user: str) -> tuple[str, ...]:
        """The members, `user` among them. Raises `NotAllowed`, or the conversation's own error."""
        return self._members.check(conversation, user)

    def event(self, conversation: str, seq: int) -> Event | None:
        """An event that the rule needs; None: there is none."""
        return self._events.get((conversation, seq))

    def register(self, conversation: str, name: str) -> Event | None:
        """The event that sets a register that the rule needs; None: it is not set."""
        return self._registers.get((conversation, name))

    def advance(self, key: Key, stored: Stored, event: Event, register: str) -> None:
        """Adds an event that the batch appends. `register`: the register that it sets, or ""."""
        self._heads[event.conversation] = stored.position
        self._stored[key] = stored
        if register:
            self._registers[event.conversation, register] = event
