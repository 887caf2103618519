"""A device's copy of its conversations: what each frame changes in it. No I/O, no clock.

Frames go in one by one; `take` gives out what they came to: what is to be stored, what is missing, which
marks are to be sent, what is to be told. Nothing of it may be told to anybody before it is stored.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Protocol

from msgspec.structs import replace

from imqtt.bodies import field_of
from imqtt.client.store import Changes, Memory, Place
from imqtt.client.values import NOTHING, LogState, Notice, Restarted, Skipped
from imqtt.core.outbox import OutboxKey, change_of
from imqtt.core.reorder import Reorder
from imqtt.core.reorder import Step as InOrder
from imqtt.model import (
    Accepted,
    AnyFrame,
    AnyLogCommand,
    Device,
    Event,
    Head,
    Id,
    Marks,
    Page,
    Position,
    Slice,
)

MAX_SEQ = 1 << 53
MAX_ID = 1 << 63
TOLD = "told "  # and a conversation: the user's marks that the server is known to have


class Want(Enum):
    """Why a conversation's events are to be asked for."""

    BEHIND = "behind"  # the server has said that there are more: now
    HOLE = "hole"  # later ones arrived: soon, the missing ones may be on their way
    CHECK = "check"  # the server's log may be another one than ours: now


@dataclass(slots=True)
class Log:
    """One conversation's log. It holds the events after `base` up to the cursor.

    `delivered` and `read` are the user's own marks as this device would have them, `told_…` as the server
    is known to have them. A log that is not `begun` only keeps events aside until its head is known.
    """

    conversation: str
    order: Reorder
    base: int = 0
    head: Position = NOTHING
    missing: str = ""
    delivered: int = 0
    read: int = 0
    told_delivered: int = 0
    told_read: int = 0
    begun: bool = True

    @property
    def cursor(self) -> Position:
        return self.order.cursor

    @property
    def is_behind(self) -> bool:
        return self.begun and self.head.seq > self.cursor.seq

    @property
    def is_open(self) -> bool:
        """Whether only the server knows how it goes on: there are more events, or it may have another log."""
        return self.is_behind or self.order.in_doubt

    @property
    def has_marks(self) -> bool:
        """Whether the server does not have this device's marks."""
        return self.delivered > self.told_delivered or self.read > self.told_read

    def state(self) -> LogState:
        return LogState(self.conversation, self.cursor, self.base, self.head, self.missing)


@dataclass(slots=True)
class Step:
    """What some frames came to."""

    changes: Changes = field(default_factory=Changes)
    wanted: dict[str, Want] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)
    accepted: list[Accepted] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


class Questions(Protocol):
    """What was asked with cursors, and is not answered yet."""

    def void(self, conversation: str) -> None:
        """Answers judge a cursor that the log does not have any more."""

    def doubt(self, conversation: str) -> None:
        """Answers that know the cursor may be from before what made the log doubtful."""


class Replica:
    """All logs of one device.

    While it is `adopting`, conversations that it does not know begin at their head: it is new, and what
    was stored before it came is history. Afterwards they begin at seq 1, so that nothing is missed.
    """

    def __init__(
        self,
        device: Device,
        memory: Memory,
        *,
        adopting: bool,
        questions: Questions,
        keep: int | None = None,
    ) -> None:
        self.device = device
        self.adopting = adopting
        self.odd = 0  # events that no server sends
        self.logs: dict[str, Log] = {}
        self.stored: Mapping[Place, Id] = {}  # the ids that the store has at `overlaps`
        # The user's own marks that came before the page that shows their conversation. The page may have been
        # read before they were raised, and the server sends them only once.
        self._early: dict[str, Marks] = {}
        self.ordinal = int(memory.meta.get("ordinal", 0))
        self._questions = questions
        self._keep = keep
        self._step = Step()
        self._touched: set[str] = set()
        self._remarked: set[str] = set()  # logs whose own marks rose
        self._told: set[str] = set()  # logs of which it has changed what the server has
        for state in memory.logs:
            log = Log(state.conversation, Reorder(state.cursor), state.base, state.head, state.missing)
            self.logs[state.conversation] = log
            if log.is_behind:
                self._want(log, Want.BEHIND)
        for marks in memory.own_marks:
            if (known := self.logs.get(marks.conversation)) is not None:
                known.delivered, known.read = marks.delivered, marks.read
                told = memory.meta.get(TOLD + marks.conversation)
                known.told_delivered, known.told_read = (
                    map(int, told.split()) if told else (marks.delivered, marks.read)
                )
                if known.has_marks:
                    self._remarked.add(marks.conversation)

    def take(self) -> Step:
        """What has come together since the last call."""
        step, self._step = self._step, Step()
        step.wanted = {
            name: want
            for name, want in step.wanted.items()
            if want is not Want.HOLE or self.logs[name].is_behind
        }
        for name in self._touched:
            log = self.logs[name]
            if not log.begun:
                continue
            step.changes.logs[name] = log.state()
            if self._keep is not None and log.cursor.seq - log.base > self._keep + self._keep // 8:
                step.changes.trim.append((name, log.cursor.seq - self._keep))
        self._touched.clear()
        for name in self._remarked:
            log = self.logs[name]
            step.changes.marks.append(Marks(name, self.device.user, log.delivered, log.read))
            if log.has_marks:
                step.marked.add(name)
        self._remarked.clear()
        for name in self._told:
            log = self.logs[name]
            step.changes.meta[TOLD + name] = f"{log.told_delivered} {log.told_read}"
        self._told.clear()
        if step.changes.events:
            step.changes.meta["ordinal"] = str(self.ordinal)
        return step

    # --- frames

    def overlaps(self, frames: Iterable[AnyFrame]) -> list[Place]:
        """The places of these frames' events at which the device already holds one.

        The caller sets `stored` to the ids there before it hands in the frames.
        """
        return [
            (it.conversation, it.seq)
            for it in _placed(frames)
            if (log := self.logs.get(it.conversation)) is not None and log.base < it.seq <= log.cursor.seq
        ]

    def event(self, event: Event) -> None:
        """An event that came by itself."""
        if self._plausible(event):
            self._offer(self._log(event.conversation), event)

    def accepted(self, frame: Accepted, command: AnyLogCommand | None) -> None:
        """A command's event is stored. `command`: the command itself, if it is still in the outbox."""
        key = OutboxKey(frame.conversation, frame.client_msg_id)
        self._step.changes.sent.append(key)
        self._step.accepted.append(frame)
        if not (0 < frame.seq < MAX_SEQ and 0 < frame.id < MAX_ID):
            self.odd += 1
        elif command is not None:
            self._offer(self._log(frame.conversation), _own_event(self.device, frame, command))
        else:
            log, place = self._log(frame.conversation), Position(frame.seq, frame.id)
            if place.seq <= log.cursor.seq:
                self._go_on(log, log.order.compare(place, self._held(log, place.seq)))
            self._raise_head(log, place)
            if log.is_behind:
                self._want(log, Want.HOLE)

    def marks(self, frame: Marks) -> None:
        """A member's marks."""
        self._step.changes.marks.append(frame)
        self._step.notices.append(frame)
        if frame.user != self.device.user:
            return
        log = self.logs.get(frame.conversation)
        if log is None:
            early = self._early.get(frame.conversation, frame)
            self._early[frame.conversation] = replace(
                frame, delivered=max(early.delivered, frame.delivered), read=max(early.read, frame.read)
            )
        else:
            self.told(frame.conversation, frame.delivered, frame.read)
            log.delivered, log.read = max(log.delivered, frame.delivered), max(log.read, frame.read)

    def page(self, page: Page, asked: Mapping[str, bool]) -> None:
        """The answer to a `Hello` or `Sync` that had cursors of the conversations `asked`.

        Those that are true have not become doubtful since. That the server knows a cursor ends a doubt only
        of before the question; that it does not know one is so whenever it said it.
        """
        self._trust(page, asked)
        for part in page.slices:
            if part.history:
                continue
            events = [
                it for it in part.events if it.conversation == part.conversation and self._plausible(it)
            ]
            log = self.logs.get(part.conversation)
            if not part.restart:
                self._slice(part, events)
            elif log is not None and part.conversation in asked:
                # Our log has the cursor that was judged, even if events have come after it since.
                self._restart(log, part, events)
        for head in page.heads:
            self._head(head)

    # --- what the device itself decides

    def end_adoption(self) -> None:
        """Every head has been seen. What is not known now was begun after this device came."""
        self.adopting = False
        for log in self.logs.values():
            if not log.begun:
                # It moved to the front of the list of heads while that was read.
                first = min(seq for seq in (log.order.lowest_aside, log.head.seq, MAX_SEQ) if seq)
                self._begin(log, Position(first - 1, Id(0)))

    def mark_read(self, conversation: str, seq: int | None) -> bool:
        """Raises the user's own marks, up to `seq` or the cursor. False if they were there already."""
        log = self.logs.get(conversation)
        if log is None:
            return False
        read = log.cursor.seq if seq is None else min(seq, max(log.head.seq, log.cursor.seq))
        if read <= log.read:
            return False
        log.read = read
        self._mark_delivered(log, read)
        return True

    def told(self, conversation: str, delivered: int, read: int) -> None:
        """The server has these marks of the user. It is stored with whatever is stored next."""
        log = self.logs[conversation]
        self._tell(log, max(log.told_delivered, delivered), max(log.told_read, read))

    def extend(self, conversation: str, part: Slice) -> None:
        """Puts a page of history in front of the log, where it meets it."""
        log = self.logs.get(conversation)
        if log is None or not log.begun or self._keep is not None:
            return
        fits = [event for event in part.events if event.seq <= log.base and self._plausible(event)]
        if fits and fits[-1].seq == log.base and fits[0].seq == log.base - len(fits) + 1:
            for event in fits:
                self._step.changes.events[conversation, event.seq] = (None, event)
            log.base = fits[0].seq - 1
            log.missing = part.missing
            self._touched.add(conversation)
        elif not part.events and part.missing:
            log.missing = part.missing
            self._touched.add(conversation)

    def trimmed(self, bases: Mapping[str, int]) -> None:
        """The store has removed what was before these seqs."""
        for conversation, base in bases.items():
            log = self.logs[conversation]
            if base > log.base:
                log.base, log.missing = base, ""

    def known(self) -> set[str]:
        """The conversations of which it has an event, or had."""
        return {name for name, log in self.logs.items() if log.begun and log.cursor.seq}

    def newest(self, limit: int, before: int = MAX_ID) -> list[Log]:
        """The logs with the newest events, of those before this id."""
        known = [log for log in self.logs.values() if 0 < log.cursor.id < before]
        return sorted(known, key=lambda log: -log.cursor.id)[:limit]

    # --- the log

    def _log(self, conversation: str) -> Log:
        log = self.logs.get(conversation)
        if log is None:
            log = self.logs[conversation] = Log(conversation, Reorder(), begun=not self.adopting)
            if (early := self._early.pop(conversation, None)) is not None:
                log.delivered, log.read = early.delivered, early.read
        return log

    def _offer(self, log: Log, event: Event) -> None:
        if not log.begun and event.seq == 1:
            log.begun = True
        if not self._go_on(log, log.order.offer(event, self._held(log, event.seq))):
            return
        self._raise_head(log, event.position)
        if log.is_behind:
            self._want(log, Want.HOLE)

    def _held(self, log: Log, seq: int) -> int:
        """The id of the event that the device holds at `seq`; 0: it holds none."""
        place = log.conversation, seq
        unstored = self._step.changes.events.get(place)
        return self.stored.get(place, 0) if unstored is None else unstored[1].id

    def _go_on(self, log: Log, order: InOrder) -> bool:
        """Applies what can be. False if an event showed that the server's log may be another one."""
        self._apply(log, order.events)
        if order.diverged:
            self._doubt(log)
        return not order.diverged

    def _apply(self, log: Log, events: Iterable[Event], *, new: bool = True) -> None:
        """These follow the log's last event. `new`: not history, but what a consumer waits for."""
        changes = self._step.changes
        for event in events:
            ordinal = None
            if new:
                self.ordinal += 1
                ordinal = self.ordinal
            # What it stood behind has been compared. From here on it is the event that a page has, too.
            changes.events[log.conversation, event.seq] = (ordinal, replace(event, previous=Id(0)))
            if event.sender != self.device.user:
                self._mark_delivered(log, event.seq)
            elif event.device == self.device.device:
                # Also where `Accepted` got lost and the log itself tells.
                key = OutboxKey(log.conversation, event.client_msg_id)
                if key not in changes.sent:
                    changes.sent.append(key)
                    self._step.accepted.append(_accepted(event))
            self._touched.add(log.conversation)
        self._raise_head(log, log.cursor)

    def _begin(self, log: Log, cursor: Position) -> None:
        log.begun = True
        log.base = cursor.seq
        self._touched.add(log.conversation)
        self._go_on(log, log.order.begin(cursor))
        if log.is_behind:
            self._want(log, Want.HOLE)

    def _raise_head(self, log: Log, position: Position) -> None:
        if position.seq > log.head.seq:
            log.head = position
            self._touched.add(log.conversation)

    # --- pages

    def _slice(self, part: Slice, events: list[Event]) -> None:
        if not events:
            return
        log = self._log(part.conversation)
        if not log.begun:
            live = {event.seq for event in events if log.order.holds(event.seq)}
            log.base, log.missing = events[0].seq - 1, part.missing
            log.begun = True
            for event in events:
                self._apply(log, (event,), new=event.seq in live)
            self._go_on(log, log.order.begin(events[-1].position))
        else:
            expected = log.cursor.seq + 1
            if events[0].seq > expected and part.missing not in ("", "start"):
                self._step.notices.append(
                    Skipped(part.conversation, expected, events[0].seq - 1, part.missing)
                )
                log.missing = part.missing
                self._begin(log, Position(events[0].seq - 1, Id(0)))
            for event in _linked(events):
                self._offer(log, event)
        if part.more:
            self._want(log, Want.BEHIND)

    def _trust(self, page: Page, asked: Mapping[str, bool]) -> None:
        """Goes on with doubtful logs of which the server has looked at the cursor, and knows it."""
        told = {part.conversation: part.restart for part in page.slices if not part.history}
        for name, undoubted in asked.items():
            log = self.logs.get(name)
            looked_at = name in told or not page.more
            known = undoubted and looked_at and not told.get(name, False)
            if log is not None and log.order.in_doubt and known:
                self._go_on(log, log.order.trust())

    def _restart(self, log: Log, part: Slice, events: list[Event]) -> None:
        name, old = log.conversation, log.cursor
        held = {event.seq: self._held(log, event.seq) for event in events}
        self._questions.void(name)
        changes = self._step.changes
        changes.restarted.add(name)
        unstored = {seq: value for (at, seq), value in changes.events.items() if at == name}
        changes.events = {key: value for key, value in changes.events.items() if key[0] != name}
        changes.marks = [marks for marks in changes.marks if marks.conversation != name]
        log.order = Reorder(events[-1].position if events else NOTHING)
        log.base = events[0].seq - 1 if events else 0
        log.missing, log.head = part.missing, log.cursor
        log.delivered, log.read = (min(it, log.cursor.seq) for it in (log.delivered, log.read))
        self._tell(log, 0, 0)
        for event in events:
            self._apply(log, (event,), new=not _was_in(old, event, held[event.seq]))
            if event.seq in unstored and unstored[event.seq][1].id == event.id:
                changes.events[name, event.seq] = unstored[event.seq]  # it is as new as it was
        self._mark_delivered(log, log.delivered)
        self._touched.add(name)
        self._step.notices.append(Restarted(name, events[0].seq if events else 0))
        # What was kept aside may have been of either log: whatever came after these events is asked for.
        self._want(log, Want.BEHIND)

    def _head(self, head: Head) -> None:
        position = Position(head.seq, head.id)
        if not (0 < head.seq < MAX_SEQ and 0 < head.id < MAX_ID):
            self.odd += 1
            return
        log = self._log(head.conversation)
        if not log.begun:
            self._adopt(log, head)
        cursor = log.cursor
        if head.seq > cursor.seq:
            self._raise_head(log, position)
            self._want(log, Want.BEHIND)
        elif head.seq < cursor.seq or (cursor.id and head.id != cursor.id):
            # A page that was overtaken by events, or a restored store: the server can tell.
            log.order.in_doubt = True
            self._doubt(log)
        own = Marks(head.conversation, self.device.user)
        for marks in head.marks:
            self._step.changes.marks.append(marks)
            if marks.user == self.device.user:
                own = marks
        self._tell(log, own.delivered, own.read)
        log.delivered, log.read = max(log.delivered, own.delivered), max(log.read, own.read)
        if log.has_marks:
            self._step.marked.add(log.conversation)

    def _adopt(self, log: Log, head: Head) -> None:
        """Begins a log at its head, or before it where events after this device's `Hello` have come."""
        latest, lowest = head.latest, log.order.lowest_aside
        if 0 < lowest <= head.seq:
            self._begin(log, Position(lowest - 1, Id(0)))
        elif latest is None or latest.seq != head.seq or not self._plausible(latest):
            self._begin(log, Position(head.seq, head.id))
        else:
            log.begun = True
            log.base = head.seq - 1
            following = log.order.begin(latest.position)
            self._apply(log, (latest,), new=False)
            self._go_on(log, following)

    # --- what is to be done

    def _doubt(self, log: Log) -> None:
        self._questions.doubt(log.conversation)
        self._want(log, Want.CHECK)

    def _want(self, log: Log, want: Want) -> None:
        if log.begun and (want is not Want.HOLE or log.conversation not in self._step.wanted):
            self._step.wanted[log.conversation] = want

    def _tell(self, log: Log, delivered: int, read: int) -> None:
        if (delivered, read) != (log.told_delivered, log.told_read):
            log.told_delivered, log.told_read = delivered, read
            self._told.add(log.conversation)

    def _mark_delivered(self, log: Log, seq: int) -> None:
        log.delivered = max(log.delivered, seq)
        self._remarked.add(log.conversation)

    def _plausible(self, event: Event) -> bool:
        fine = 0 < event.seq < MAX_SEQ and 0 < event.id < MAX_ID
        self.odd += not fine
        return fine


def _placed(frames: Iterable[AnyFrame]) -> Iterator[Event | Accepted]:
    """Everything in these frames that has a place at or near the end of a log; not history."""
    for frame in frames:
        if isinstance(frame, Event | Accepted):
            yield frame
        elif isinstance(frame, Page):
            for part in frame.slices:
                if not part.history:
                    yield from part.events


def _linked(events: list[Event]) -> Iterable[Event]:
    """A slice's events, each but the first with what it stands behind: the slice itself says that.

    While a log is in doubt they are kept aside with events of another log perhaps.
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


def _own_event(device: Device, frame: Accepted, command: AnyLogCommand) -> Event:
    change = change_of(command)
    return Event(
        conversation=frame.conversation,
        seq=frame.seq,
        id=frame.id,
        time=frame.time,
        sender=device.user,
        device=device.device,
        client_msg_id=frame.client_msg_id,
        kind=change.kind,
        client_time=command.client_time,
        previous=frame.previous,
        **field_of(change),
    )


def _accepted(event: Event) -> Accepted:
    return Accepted(
        event.conversation, event.client_msg_id, event.seq, event.id, event.time, previous=event.previous
    )
