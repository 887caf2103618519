"""One conversation's log on a device, and how events, pages and heads change it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from msgspec.structs import replace

from imqtt.core.changes import Held, LogState, Restarted, Skipped, Step, Want
from imqtt.core.outbox import OutboxKey
from imqtt.core.own_marks import OwnMarks
from imqtt.core.reorder import InOrder, Reorder
from imqtt.core.view import EMPTY
from imqtt.model import Accepted, Device, Event, Head, Id, Marks, Position, Slice

SERVER_MARKS = "told "  # and a conversation: the key of the user's marks that the server has


@dataclass(slots=True)
class DeviceLog:
    """Holds the events after `base` up to the cursor. Changes go into the `Step` that is passed in.

    A log that is not `begun` only buffers events until its head is known. Wherever `held` is passed, it has
    the ids of stored events at the places of `Replica.overlaps`.
    """

    conversation: str
    device: Device
    order: Reorder = field(default_factory=Reorder)
    base: int = 0
    head: Position = EMPTY
    missing: str = ""
    marks: OwnMarks = field(default_factory=OwnMarks)
    begun: bool = True
    is_changed: bool = False  # since its state was last stored

    @property
    def cursor(self) -> Position:
        return self.order.cursor

    @property
    def is_behind(self) -> bool:
        return self.begun and self.head.seq > self.cursor.seq

    @property
    def is_open(self) -> bool:
        """Whether to ask the server: it has more events, or may have another log."""
        return self.is_behind or self.order.in_doubt

    def state(self) -> LogState:
        return LogState(self.conversation, self.cursor, self.base, self.head, self.missing)

    def flush(self, step: Step, keep: int | None) -> None:
        """Adds the changed state and marks to `step`. `keep`: about how many events to keep."""
        if self.is_changed and self.begun:
            step.changes.logs[self.conversation] = self.state()
            if keep is not None and self.cursor.seq - self.base > keep + keep // 8:
                step.changes.trim.append((self.conversation, self.cursor.seq - keep))
        marks = self.marks
        if marks.is_raised:
            step.changes.marks.append(Marks(self.conversation, self.device.user, marks.delivered, marks.read))
        if marks.is_ahead:
            step.marked.add(self.conversation)
        if marks.is_server_changed:
            key = SERVER_MARKS + self.conversation
            step.changes.meta[key] = f"{marks.server_delivered} {marks.server_read}"
        self.is_changed = marks.is_raised = marks.is_server_changed = False

    # --- events

    def offer(self, step: Step, event: Event, held: Held) -> None:
        """An event that arrived, in any order."""
        self.begun = self.begun or event.seq == 1
        if not self._advance(step, self.order.offer(event, self._held(step, event.seq, held))):
            return
        self.raise_head(step, event.position)
        self.want(step, Want.HOLE)

    def compare(self, step: Step, position: Position, held: Held) -> None:
        """A position of the server's log, without its event."""
        if position.seq <= self.cursor.seq:
            self._advance(step, self.order.compare(position, self._held(step, position.seq, held)))
        self.raise_head(step, position)
        self.want(step, Want.HOLE)

    def begin(self, step: Step, cursor: Position) -> None:
        """Begins the log after `cursor`, and applies the buffered events that follow."""
        self.begun = True
        self.base = cursor.seq
        self._touch(step)
        self._advance(step, self.order.begin(cursor))
        self.want(step, Want.HOLE)

    def raise_head(self, step: Step, position: Position) -> None:
        if position.seq > self.head.seq:
            self.head = position
            self._touch(step)

    def want(self, step: Step, want: Want) -> None:
        """Requests the log's events. A hole replaces no other reason, and counts only if it stays."""
        if self.begun and (want is not Want.HOLE or self.conversation not in step.wanted):
            step.wanted[self.conversation] = want

    def deliver(self, step: Step, seq: int) -> None:
        self.marks.deliver(seq)
        step.touched.add(self.conversation)

    def set_server_marks(self, step: Step, delivered: int, read: int) -> None:
        """The server has exactly these marks of the user."""
        self.marks.set_server(delivered, read)
        step.touched.add(self.conversation)

    def _advance(self, step: Step, order: InOrder) -> bool:
        """Applies the events in order. False if the server may have another log."""
        self._apply(step, order.events)
        if order.diverged:
            self._doubt(step)
        return not order.diverged

    def _apply(self, step: Step, events: Iterable[Event], *, new: bool = True) -> None:
        """Adds the events that follow the cursor. `new`: consumers receive them; else they are history."""
        for event in events:
            step.ordinal += new
            # Its predecessor has been compared. From here on it equals the event of a page.
            stored = replace(event, previous=Id(0)) if event.previous else event
            step.changes.events[self.conversation, event.seq] = (step.ordinal if new else None, stored)
            if event.sender != self.device.user:
                self.deliver(step, event.seq)
            elif event.device == self.device.device:
                # Even if `Accepted` was lost: the log proves it.
                key = OutboxKey(self.conversation, event.client_msg_id)
                if key not in step.changes.sent:
                    step.changes.sent.append(key)
                    name, previous = event.client_msg_id, event.previous
                    step.accepted.append(
                        Accepted(self.conversation, name, event.seq, event.id, event.time, previous)
                    )
            self._touch(step)
        self.raise_head(step, self.cursor)

    def _doubt(self, step: Step) -> None:
        step.doubted.add(self.conversation)
        self.want(step, Want.CHECK)

    def _held(self, step: Step, seq: int, held: Held) -> int:
        """The id of the event that the device holds at `seq`, stored or not yet; 0: none."""
        place = self.conversation, seq
        unstored = step.changes.events.get(place)
        return held.get(place, 0) if unstored is None else unstored[1].id

    def _touch(self, step: Step) -> None:
        self.is_changed = True
        step.touched.add(self.conversation)

    # --- pages

    def add(self, step: Step, part: Slice, events: list[Event], held: Held) -> None:
        """The usable events of a slice that answers a cursor; at least one."""
        if not self.begun:
            live = {event.seq for event in events if self.order.holds(event.seq)}
            self.base, self.missing = events[0].seq - 1, part.missing
            self.begun = True
            for event in events:
                self._apply(step, (event,), new=event.seq in live)
            self._advance(step, self.order.begin(events[-1].position))
        else:
            expected, first = self.cursor.seq + 1, events[0].seq
            if first > expected and part.missing not in ("", "start"):
                step.notices.append(Skipped(self.conversation, expected, first - 1, part.missing))
                self.missing = part.missing
                self.begin(step, Position(first - 1, Id(0)))
            if self.order.extend(events):
                self._apply(step, events)
                self.want(step, Want.HOLE)
            else:
                for event in _linked(events):
                    self.offer(step, event, held)
        if part.more:
            self.want(step, Want.BEHIND)

    def extend(self, step: Step, part: Slice, events: list[Event]) -> None:
        """The usable events of a slice of history, which precede the log if they meet it."""
        if events and events[-1].seq == self.base and events[0].seq == self.base - len(events) + 1:
            for event in events:
                step.changes.events[self.conversation, event.seq] = (None, event)
            self.base = events[0].seq - 1
        elif part.events or not part.missing:
            return
        self.missing = part.missing
        self._touch(step)

    def trust(self, step: Step) -> None:
        """The server knows the cursor."""
        self._advance(step, self.order.trust())

    def restart(self, step: Step, part: Slice, events: list[Event], held: Held) -> None:
        """Replaces the log with the slice's events: the server does not know the cursor."""
        name, old, changes = self.conversation, self.cursor, step.changes
        ids = {event.seq: self._held(step, event.seq, held) for event in events}
        step.voided.add(name)
        changes.restarted.add(name)
        unstored = {seq: value for (at, seq), value in changes.events.items() if at == name}
        changes.events = {key: value for key, value in changes.events.items() if key[0] != name}
        changes.registers = [event for event in changes.registers if event.conversation != name]
        changes.marks = [marks for marks in changes.marks if marks.conversation != name]
        self.order = Reorder(events[-1].position if events else EMPTY)
        self.base = events[0].seq - 1 if events else 0
        self.missing, self.head = part.missing, self.cursor
        self.marks.bound(self.cursor.seq)
        for event in events:
            self._apply(step, (event,), new=not _was_in(old, event, ids[event.seq]))
            if event.seq in unstored and unstored[event.seq][1].id == event.id:
                changes.events[name, event.seq] = unstored[event.seq]  # it is still as new as before
        self._touch(step)
        step.notices.append(Restarted(name, events[0].seq if events else 0))
        # Buffered events may belong to either log, so everything after these events is requested.
        self.want(step, Want.BEHIND)

    # --- heads

    def see_head(self, step: Step, head: Head, latest: Event | None) -> None:
        """A head of the server's list. `latest`: its newest event, if usable."""
        if not self.begun:
            self._adopt(step, head, latest)
        cursor = self.cursor
        if head.seq > cursor.seq:
            self.raise_head(step, Position(head.seq, head.id))
            self.want(step, Want.BEHIND)
        elif head.seq < cursor.seq or (cursor.id and head.id != cursor.id):
            # Events overtook the page, or the store was restored: the server can tell.
            self.order.in_doubt = True
            self._doubt(step)
        step.changes.marks += head.marks
        user = self.device.user
        known = (marks for marks in reversed(head.marks) if marks.user == user)
        own = next(known, Marks(self.conversation, user))
        self.set_server_marks(step, own.delivered, own.read)
        self.marks.merge(own.delivered, own.read)

    def begin_at_first_known(self, step: Step) -> None:
        """No head has shown this log: it moved to the front of the list while the device read it."""
        first = min(seq for seq in (self.order.lowest_buffered, self.head.seq, 1 << 53) if seq)
        self.begin(step, Position(first - 1, Id(0)))

    def _adopt(self, step: Step, head: Head, latest: Event | None) -> None:
        """Begins at the head, or before it if events arrived since the device's `Hello`."""
        lowest = self.order.lowest_buffered
        if 0 < lowest <= head.seq:
            self.begin(step, Position(lowest - 1, Id(0)))
        elif latest is None or latest.seq != head.seq:
            self.begin(step, Position(head.seq, head.id))
        else:
            self.begun = True
            self.base = head.seq - 1
            following = self.order.begin(latest.position)
            self._apply(step, (latest,), new=False)
            self._advance(step, following)


def _linked(events: list[Event]) -> Iterable[Event]:
    """A slice's events, each but the first with its predecessor's id, which follows from the slice.

    While a log is in doubt, they are buffered beside events that may belong to another log.
    """
    yield from events[:1]
    for before, event in pairwise(events):
        yield replace(event, previous=before.id) if event.seq == before.seq + 1 else event


def _was_in(end: Position, event: Event, held: int) -> bool:
    """Whether a log that ended at `end` had the event. `held`: the id of the log's event at that seq, or 0.

    If that id is unknown (0), the order of ids decides. If a clock was ahead, new events may then count as
    history, but only those before the first event that the device held.
    """
    return event.id == held if held else event.seq <= end.seq and event.id < end.id
