"""A device's copy of its conversations: takes received frames, and returns their changes."""

from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from imqtt.core.changes import Held, Memory, Place, Step, Want
from imqtt.core.device_log import SERVER_MARKS, DeviceLog
from imqtt.core.outbox import OutboxKey
from imqtt.core.own_marks import OwnMarks
from imqtt.core.reorder import Reorder
from imqtt.core.rules import change_of, event_of
from imqtt.fields import MAX_ID, MAX_SEQ
from imqtt.model import Accepted, AnyFrame, AnyLogCommand, Device, Event, Head, Marks, Page, Position, Slice


class Replica:
    """All logs of one device.

    While it is `adopting`, unknown conversations begin at their head: the device is new, and earlier events
    are history. Afterwards they begin at seq 1, so that nothing is missed. Wherever `held` is passed,
    it has the ids of the events that the store holds at the places of `overlaps`.
    """

    def __init__(self, device: Device, memory: Memory, *, adopting: bool, keep: int | None = None) -> None:
        self.device = device
        self.adopting = adopting
        self.odd = 0  # events that no server sends
        self.logs: dict[str, DeviceLog] = {}
        # The user's own marks that arrived before the page that shows their conversation. The page may have
        # been read before they were raised, and the server sends them only once.
        self._early: dict[str, Marks] = {}
        self._keep = keep
        self._step = Step(int(memory.meta.get("ordinal", 0)))
        for state in memory.logs:
            log = DeviceLog(
                state.conversation, device, Reorder(state.cursor), state.base, state.head, state.missing
            )
            self.logs[state.conversation] = log
            if log.is_behind:
                log.want(self._step, Want.BEHIND)
        for marks in memory.own_marks:
            if (known := self.logs.get(marks.conversation)) is not None:
                stored = memory.meta.get(SERVER_MARKS + marks.conversation)
                own = (marks.delivered, marks.read)
                known.marks = OwnMarks(*own, *(map(int, stored.split()) if stored else own))
                self._step.touched.add(marks.conversation)

    @property
    def ordinal(self) -> int:
        return self._step.ordinal

    def take(self) -> Step:
        """The result of the frames since the last call."""
        step, self._step = self._step, Step(self._step.ordinal)
        step.wanted = {
            name: want
            for name, want in step.wanted.items()
            if want is not Want.HOLE or self.logs[name].is_behind
        }
        for name in step.touched:
            self.logs[name].flush(step, self._keep)
        if step.changes.events:
            step.changes.meta["ordinal"] = str(step.ordinal)
        return step

    # --- frames

    def overlaps(self, frames: Iterable[AnyFrame]) -> list[Place]:
        """The places of these frames' events at which the device already holds one."""
        return [
            (placed.conversation, placed.seq)
            for placed in _placed(frames)
            if (log := self.logs.get(placed.conversation)) is not None
            and log.base < placed.seq <= log.order.cursor.seq
        ]

    def event(self, event: Event, held: Held) -> None:
        """An event that was not requested."""
        if self._plausible(event):
            self._log(event.conversation).offer(self._step, event, held)

    def accepted(self, frame: Accepted, command: AnyLogCommand | None, held: Held) -> None:
        """A command's event is stored. `command`: the command itself, if it is still in the outbox."""
        self._step.changes.sent.append(OutboxKey(frame.conversation, frame.client_msg_id))
        self._step.accepted.append(frame)
        if not self._plausible(frame):
            return
        log = self._log(frame.conversation)
        position = Position(frame.seq, frame.id)
        if command is None:
            log.compare(self._step, position, held)
        else:
            event = event_of(self.device, command, change_of(command), position, frame.previous)
            log.offer(self._step, event, held)

    def marks(self, frame: Marks) -> None:
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
            self.server_has(frame.conversation, frame.delivered, frame.read)
            log.marks.merge(frame.delivered, frame.read)

    def page(self, page: Page, asked: Mapping[str, bool], held: Held) -> None:
        """The answer to a `Hello` or `Sync` that had cursors of the conversations `asked`.

        The value is true if no doubt about the log arose since. Only then does a cursor that the server knows
        end the doubt; a cursor that it does not know always restarts the log.
        """
        asked = {
            name: undoubted and name not in self._step.doubted
            for name, undoubted in asked.items()
            if name not in self._step.voided
        }
        self._trust(page, asked)
        for part in page.slices:
            if part.history:
                continue
            name = part.conversation
            events = [new for new in part.events if new.conversation == name and self._plausible(new)]
            log = self.logs.get(name)
            if not part.restart:
                if events:
                    self._log(name).add(self._step, part, events, held)
            elif log is not None and name in asked:
                # The log has the cursor that was judged, even if events were added since.
                log.restart(self._step, part, events, held)
            else:
                continue
            self._step.changes.registers += part.registers
        for head in page.heads:
            if self._plausible(head):
                latest = head.latest if head.latest is not None and self._plausible(head.latest) else None
                self._log(head.conversation).see_head(self._step, head, latest)

    def extend(self, conversation: str, part: Slice) -> None:
        """Adds a page of history before the log, if it meets the log."""
        log = self.logs.get(conversation)
        if log is not None and log.begun and self._keep is None:
            self._step.changes.registers += part.registers
            events = [new for new in part.events if new.seq <= log.base and self._plausible(new)]
            log.extend(self._step, part, events)

    def _trust(self, page: Page, asked: Mapping[str, bool]) -> None:
        """Ends the doubt about logs whose cursor the server has looked at and knows."""
        restarts = {part.conversation: part.restart for part in page.slices if not part.history}
        for name, undoubted in asked.items():
            log = self.logs.get(name)
            was_looked_at = name in restarts or not page.more
            is_known = undoubted and was_looked_at and not restarts.get(name, False)
            if log is not None and log.order.in_doubt and is_known:
                log.trust(self._step)

    def _log(self, conversation: str) -> DeviceLog:
        log = self.logs.get(conversation)
        if log is None:
            log = self.logs[conversation] = DeviceLog(conversation, self.device, begun=not self.adopting)
            if (early := self._early.pop(conversation, None)) is not None:
                log.marks.merge(early.delivered, early.read)
        return log

    def _plausible(self, of: Event | Accepted | Head) -> bool:
        """Whether a server can send this seq and id. Counts those that it cannot."""
        fine = 0 < of.seq <= MAX_SEQ and 0 < of.id <= MAX_ID
        self.odd += not fine
        return fine

    # --- the device's own changes

    def end_adoption(self) -> None:
        """All heads were read. Conversations that are unknown now began after this device did."""
        self.adopting = False
        for log in self.logs.values():
            if not log.begun:
                log.begin_at_first_known(self._step)

    def mark_read(self, conversation: str, seq: int | None) -> bool:
        """Raises the user's marks up to `seq` or the cursor. False if they were not lower."""
        log = self.logs.get(conversation)
        if log is None:
            return False
        read = log.cursor.seq if seq is None else min(seq, max(log.head.seq, log.cursor.seq))
        if read <= log.marks.read:
            return False
        log.marks.read = read
        log.deliver(self._step, read)
        return True

    def server_has(self, conversation: str, delivered: int, read: int) -> None:
        """The server has these marks of the user. That is stored with the next changes."""
        log = self.logs[conversation]
        delivered = max(log.marks.server_delivered, delivered)
        log.set_server_marks(self._step, delivered, max(log.marks.server_read, read))

    def trimmed(self, bases: Mapping[str, int]) -> None:
        """The store has removed the events up to these seqs."""
        for conversation, base in bases.items():
            log = self.logs[conversation]
            if base > log.base:
                log.base, log.missing = base, ""

    def known(self) -> set[str]:
        """The conversations of which the device holds or held an event."""
        return {name for name, log in self.logs.items() if log.begun and log.cursor.seq}

    def newest(self, limit: int, before: int = MAX_ID + 1) -> list[DeviceLog]:
        """The logs with the newest events, of those before this id."""
        known = [log for log in self.logs.values() if 0 < log.cursor.id < before]
        return sorted(known, key=lambda log: -log.cursor.id)[:limit]


def _placed(frames: Iterable[AnyFrame]) -> Iterator[Event | Accepted]:
    """The frames' events and answers that have a place at or near the end of a log; no history."""
    for frame in frames:
        if isinstance(frame, Event | Accepted):
            yield frame
        elif isinstance(frame, Page):
            for part in frame.slices:
                if not part.history:
                    yield from part.events
