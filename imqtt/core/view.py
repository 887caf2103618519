"""The part of the log that a batch of commands is decided against."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from imqtt.bodies import Change
from imqtt.model import Event, Id, Key, Position, Stored

EMPTY = Position(0, Id(0))

Place = tuple[str, int]  # conversation and seq
Register = tuple[str, str]  # conversation and the register's name
Members = Callable[[str], tuple[str, ...]]


class Needs(NamedTuple):
    """What a rule reads beside the head, the members and duplicates of its command."""

    targets: tuple[Place, ...] = ()
    registers: tuple[Register, ...] = ()


class View:
    """What is known of the log, loaded once for a batch. Each decision advances it for those that follow.

    `heads` has each conversation's newest position (absent: empty), `stored` the position and digest of
    keys known to be stored, `targets` the events at places that rules asked for, and `registers` the events
    that set the registers that they asked for. `members` raises what makes a conversation unusable. If any of
    these is stale, the store's indexes refuse the append, and everything is decided again.
    """

    def __init__(
        self,
        heads: Mapping[str, Position],
        stored: Mapping[Key, Stored],
        members: Members,
        targets: Mapping[Place, Event] | None = None,
        registers: Mapping[Register, Event] | None = None,
    ) -> None:
        self.members = members
        self._heads = dict(heads)
        self._stored = dict(stored)
        self._targets = dict(targets or {})
        self._registers = dict(registers or {})

    def head(self, conversation: str) -> Position:
        return self._heads.get(conversation, EMPTY)

    def stored(self, key: Key) -> Stored | None:
        return self._stored.get(key)

    def target(self, conversation: str, position: Position) -> Event | None:
        """The event at this position; None if the log has none there, or another one."""
        event = self._targets.get((conversation, position.seq))
        return event if event is not None and event.id == position.id else None

    def register(self, conversation: str, name: str) -> Event | None:
        """The event that sets the register's current value; None if it was never set."""
        return self._registers.get((conversation, name))

    def advance(self, key: Key, event: Event, change: Change, digest: bytes) -> None:
        """Adds an event that the batch appends."""
        conversation, position = event.conversation, event.position
        self._heads[conversation] = position
        self._stored[key] = Stored(position, digest)
        self._targets[conversation, position.seq] = event
        if change.register:
            self._registers[conversation, change.register] = event
