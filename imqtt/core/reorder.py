"""A reorder buffer for one conversation's events on a device.

The cursor is the last event that the device has applied without a hole. Later events are buffered, up to a
bound. An event dropped for the bound is missing, and is requested like any other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from imqtt.core.view import EMPTY
from imqtt.model import Event, Position


class InOrder(NamedTuple):
    """Apply `events`, in this order.

    `diverged`: an event cannot belong to the cursor's log, since ids grow with seq and an event may name its
    predecessor (Raft's log matching). The store or the event is from before a restore, so the server has to
    be asked about the cursor. Nothing is applied until it answers: a cursor after the next event may be in
    the server's log, and the wrong events before it would stay unnoticed.
    """

    events: tuple[Event, ...] = ()
    diverged: bool = False


APPLY_NOTHING = InOrder()
DIVERGED = InOrder(diverged=True)


class Reorder:
    """Returns each event of a conversation once, in order of seq, in whatever order they arrive."""

    __slots__ = ("_buffer", "_limit", "cursor", "in_doubt")

    def __init__(self, cursor: Position = EMPTY, limit: int = 1_000) -> None:
        self.cursor = cursor
        self.in_doubt = False
        self._limit = limit
        self._buffer: dict[int, Event] = {}

    @property
    def lowest_buffered(self) -> int:
        """The seq of the first buffered event; 0: none."""
        return min(self._buffer, default=0)

    @property
    def buffered(self) -> list[Event]:
        return [self._buffer[seq] for seq in sorted(self._buffer)]

    def holds(self, seq: int) -> bool:
        return seq in self._buffer

    def offer(self, event: Event, held: int = 0) -> InOrder:
        """An event that arrived. `held` is as in `compare`."""
        seq, cursor = event.seq, self.cursor
        if seq <= cursor.seq:
            return self.compare(event.position, held)
        if event.id <= cursor.id:
            return self._doubt()
        if seq > cursor.seq + 1:
            return self._keep(event)
        if not _may_follow(event, cursor):
            return self._doubt()
        if self.in_doubt:
            return self._keep(event)
        self._buffer.pop(seq, None)
        self.cursor = event.position
        return self._follow(event)

    def extend(self, events: Sequence[Event]) -> bool:
        """Moves the cursor over these events if they follow it without a hole and nothing is buffered.

        The result of offering them one by one, each with its predecessor's id, in an eighth of the time.
        """
        if self._buffer or self.in_doubt or not _may_follow(events[0], self.cursor):
            return False
        seq, last = self.cursor.seq, self.cursor.id
        for event in events:
            seq += 1
            if event.seq != seq or event.id <= last:
                return False
            last = event.id
        self.cursor = events[-1].position
        return True

    def compare(self, place: Position, held: int) -> InOrder:
        """Compares an event at or before the cursor with the held one at that seq, whose id is `held`.

        An id lower than the cursor's does not prove that the event belongs to the same log: if a clock was
        ahead before the store was restored, all ids of the new log may be lower than those of the old one. If
        the device holds no event there (0), only the server can compare.
        """
        known = self.cursor.id if place.seq == self.cursor.seq else held
        return APPLY_NOTHING if place.id == known or not self.cursor.id else self._doubt()

    def trust(self) -> InOrder:
        """Ends the doubt, since the server knows the cursor. Returns the events that follow."""
        self.in_doubt = False
        return self._follow()

    def begin(self, cursor: Position) -> InOrder:
        """Moves the cursor to where a log begins. Returns the events that follow."""
        self.cursor = cursor
        self.in_doubt = False
        self._buffer = {
            seq: event for seq, event in self._buffer.items() if seq > cursor.seq and event.id > cursor.id
        }
        return self._follow()

    def _keep(self, event: Event) -> InOrder:
        known = self._buffer.get(event.seq)
        if known is not None:
            if known.id != event.id:
                if self.cursor.seq:
                    return self._doubt()
                # A cursor of seq 0 is in every log, so no answer would end the doubt. Keep the younger event.
                self._buffer = {event.seq: max(known, event, key=lambda event: event.id)}
                return DIVERGED
            if not known.previous:
                self._buffer[event.seq] = event  # it may name its predecessor
            return APPLY_NOTHING
        self._buffer[event.seq] = event
        if len(self._buffer) > self._limit:
            # The nearest are applied first; the pages that fill the hole bring the farthest again.
            del self._buffer[max(self._buffer)]
        return APPLY_NOTHING

    def _doubt(self) -> InOrder:
        self.in_doubt = True
        return DIVERGED

    def _follow(self, *applied: Event) -> InOrder:
        """The `applied` events and the buffered ones that follow them."""
        events = list(applied)
        while (event := self._buffer.pop(self.cursor.seq + 1, None)) is not None:
            if not _may_follow(event, self.cursor):
                # Later buffered events may belong to the other log; the re-sync returns them.
                self._buffer.clear()
                self.in_doubt = True
                return InOrder(tuple(events), diverged=True)
            self.cursor = event.position
            events.append(event)
        return InOrder(tuple(events))


def _may_follow(event: Event, cursor: Position) -> bool:
    """Whether the event of the next seq may belong to the cursor's log. A `previous` of 0 is unknown."""
    is_named = event.previous and cursor.id
    return event.id > cursor.id and (not is_named or event.previous == cursor.id)
