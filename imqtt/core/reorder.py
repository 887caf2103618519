"""One conversation's events, put back into their order on a device.

The device's cursor is the last event that it has applied without a hole. Events that come early are kept
aside, up to a bound; what was dropped for the bound stays missing and is asked for like any other hole.
"""

from typing import NamedTuple

from imqtt.model import Event, Id, Position

NOTHING = Position(0, Id(0))


class Step(NamedTuple):
    """What to do about an event: apply `events`, in this order.

    `diverged`: an event cannot belong to the log that the cursor is in, since ids grow with seq, and an
    event may say which one it stands behind (Raft's log matching). The store was restored from a backup,
    or the event is from before that: ask with the cursor. Until then nothing is applied, since what
    follows the cursor by its seq may follow another event; a cursor behind it would be in the server's log
    again, and nobody would notice what is wrong before it.
    """

    events: tuple[Event, ...] = ()
    diverged: bool = False


APPLY_NOTHING = Step()
DIVERGED = Step(diverged=True)


class Reorder:
    """Gives each event of a conversation out once, in order of seq, whatever order they come in."""

    __slots__ = ("_aside", "_highest", "_limit", "cursor", "in_doubt")

    def __init__(self, cursor: Position = NOTHING, limit: int = 1_000) -> None:
        self.cursor = cursor
        self.in_doubt = False
        self._limit = limit
        self._aside: dict[int, Event] = {}
        self._highest = cursor.seq

    @property
    def aside(self) -> int:
        """How many events are kept aside."""
        return len(self._aside)

    @property
    def lowest_aside(self) -> int:
        """The seq of the first event kept aside; 0: there is none."""
        return min(self._aside, default=0)

    @property
    def kept(self) -> list[Event]:
        """The events kept aside, in order of seq."""
        return [self._aside[seq] for seq in sorted(self._aside)]

    def holds(self, seq: int) -> bool:
        """Whether the event of this seq is kept aside."""
        return seq in self._aside

    def offer(self, event: Event, held: int = 0) -> Step:
        """Takes an event that arrived. `held`: see `compare`."""
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
        self._highest = max(self._highest, seq)
        self._aside.pop(seq, None)
        self.cursor = event.position
        return self._follow(event)

    def compare(self, place: Position, held: int) -> Step:
        """Compares an event at or before the cursor with the one held at that seq, whose id is `held`.

        An id that is lower than the cursor's does not show that the event is of the same log: if a clock was
        ahead before the store was restored, all ids of the new log may be lower than those of the old one. If
        the device holds no event there (0), only the server can compare.
        """
        known = self.cursor.id if place.seq == self.cursor.seq else held
        return APPLY_NOTHING if place.id == known or not self.cursor.id else self._doubt()

    def trust(self) -> Step:
        """The server knows the cursor: what made it doubtful was from another time. Tells what follows."""
        self.in_doubt = False
        return self._follow()

    def begin(self, cursor: Position) -> Step:
        """Moves the cursor: a log begun at its head, or begun anew. Tells what can be applied then."""
        self.cursor = cursor
        self.in_doubt = False
        self._aside = {seq: it for seq, it in self._aside.items() if seq > cursor.seq and it.id > cursor.id}
        self._highest = max(self._aside, default=cursor.seq)
        return self._follow()

    def holes(self) -> list[range]:
        """The seqs that are missing up to the highest one seen, as ranges, lowest first."""
        holes: list[range] = []
        expected = self.cursor.seq + 1
        for seq in sorted(self._aside):
            if seq > expected:
                holes.append(range(expected, seq))
            expected = seq + 1
        if expected <= self._highest:
            holes.append(range(expected, self._highest + 1))
        return holes

    def _keep(self, event: Event) -> Step:
        known = self._aside.get(event.seq)
        if known is not None:
            if known.id != event.id:
                if self.cursor.seq:
                    return self._doubt()
                # A cursor of seq 0 is in every log: no answer would end a doubt. The younger event stays.
                self._aside = {event.seq: max(known, event, key=lambda it: it.id)}
                return DIVERGED
            if not known.previous:
                self._aside[event.seq] = event  # it may say more
            return APPLY_NOTHING
        self._highest = max(self._highest, event.seq)
        self._aside[event.seq] = event
        if len(self._aside) > self._limit:
            # The nearest are applied first; the farthest comes again with the pages that fill the hole.
            del self._aside[max(self._aside)]
        return APPLY_NOTHING

    def _doubt(self) -> Step:
        self.in_doubt = True
        return DIVERGED

    def _follow(self, *applied: Event) -> Step:
        """What was `applied`, and what was kept aside and comes behind it."""
        events = list(applied)
        while (event := self._aside.pop(self.cursor.seq + 1, None)) is not None:
            if not _may_follow(event, self.cursor):
                # So may be what stands behind it, one by one: that comes again with the answer to the doubt.
                self._aside.clear()
                self.in_doubt = True
                return Step(tuple(events), diverged=True)
            self.cursor = event.position
            events.append(event)
        return Step(tuple(events))


def _may_follow(event: Event, cursor: Position) -> bool:
    """Whether the event of the next seq may be of the cursor's log, by what it says. 0 says nothing."""
    said = event.previous and cursor.id
    return event.id > cursor.id and (not said or event.previous == cursor.id)
