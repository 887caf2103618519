"""A device's stored part of its conversations, and the changes that received frames make to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from imqtt.core.outbox import OutboxKey
from imqtt.core.overlays import target_of
from imqtt.model import Accepted, Event, Id, Marks, Position, Value

Place = tuple[str, int]  # a conversation and a seq
Held = Mapping[Place, Id]  # the ids of the events that the device's store has at some places


class LogState(msgspec.Struct, frozen=True):
    """Which part of a conversation a device holds: the events after `base` up to `cursor`, without holes.

    `missing`: why the server has nothing before `base` either. `head`: the newest known event.
    """

    conversation: str
    cursor: Position
    base: int
    head: Position
    missing: str = ""


class Memory(msgspec.Struct, frozen=True):
    """The state that a client loads when it starts: everything but events and commands."""

    logs: tuple[LogState, ...]
    own_marks: tuple[Marks, ...]
    unsent: tuple[OutboxKey, ...]  # in the order of putting
    meta: dict[str, str]


class Restarted(Value, frozen=True):
    """The device dropped its log of a conversation, because the server's log was restored from a backup.

    `begins` is the seq of the first event that the device holds now; 0: none.
    """

    conversation: str
    begins: int


class Skipped(Value, frozen=True):
    """Events that the server does not provide, from seq `first` to `last`.

    `missing` says why: `archived` or `before_joined`.
    """

    conversation: str
    first: int
    last: int
    missing: str


class Want(Enum):
    """Why to request a conversation's events."""

    BEHIND = "behind"  # the server said that there are more: at once
    HOLE = "hole"  # later events arrived: soon, since the missing ones may be on their way
    CHECK = "check"  # the server may have another log: at once


@dataclass(slots=True)
class Changes:
    """The changes of a batch of frames to the store: one transaction, in the order of the fields.

    `events` are by place, each with its ordinal: a number over all conversations for events that are new to
    the device, None for history.
    """

    restarted: set[str] = field(default_factory=set)
    events: dict[Place, tuple[int | None, Event]] = field(default_factory=dict)
    registers: list[Event] = field(default_factory=list)  # events ahead of their place, see `Slice`
    logs: dict[str, LogState] = field(default_factory=dict)
    marks: list[Marks] = field(default_factory=list)
    sent: list[OutboxKey] = field(default_factory=list)
    trim: list[tuple[str, int]] = field(default_factory=list)  # up to which seq
    wanted_after: int | None = None  # an iterator has not read the events after this ordinal
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def overlays(self) -> list[Event]:
        """The events that change how earlier ones are shown."""
        events = (*self.registers, *(event for _, event in self.events.values() if event.kind != "message"))
        return [event for event in events if target_of(event) is not None]

    def __bool__(self) -> bool:
        rows = (self.events, self.registers, self.logs, self.marks, self.sent)
        return any(rows) or any((self.restarted, self.trim, self.meta))


@dataclass(slots=True)
class Step:
    """The result of a batch of frames. Nothing of it is reported before `changes` are stored.

    `doubted`: logs of which earlier answers may not be trusted. `voided`: logs of which earlier answers judge
    a cursor that no longer exists.
    """

    ordinal: int  # of the newest event
    changes: Changes = field(default_factory=Changes)
    wanted: dict[str, Want] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)  # conversations whose marks the server lacks
    accepted: list[Accepted] = field(default_factory=list)
    notices: list[Marks | Restarted | Skipped] = field(default_factory=list)
    doubted: set[str] = field(default_factory=set)
    voided: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)  # logs that have something to add to `changes`
