"""What a chat shows of one conversation: its events in order, what waits to be sent, and how far it got.

No terminal and no clock here: it takes what has happened and returns lines of styled text.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imqtt.cli.wording import clock, columns, day, words_of, words_of_content, wrapped
from imqtt.model import Content, Event, Marks

Fragment = tuple[str, str]
"""A style's class, as prompt_toolkit names it, and text."""

NAME_COLOURS = 6
MAX_NAME_COLUMNS = 20
WAITING, STORED, DELIVERED, FAILED = "·", "✓", "✓✓", "✗"


class Pending(NamedTuple):
    """A message of this device that has no place in the conversation yet."""

    content: Content
    time: int  # milliseconds
    refused: str = ""  # why, if it will not get one


Line = list[Fragment]
"""One line of the screen."""


class Transcript:
    """One conversation as one of its members sees it."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.begins = False  # whether the first event is the conversation's first
        self._events: dict[int, Event] = {}
        self._pending: dict[str, Pending] = {}
        self._marks: dict[str, Marks] = {}
        self._names: dict[str, int] = {}

    # --- what happens

    def add(self, events: Iterable[Event]) -> None:
        """Events of the conversation, in any order; those that it has are passed over."""
        for event in events:
            self._events[event.seq] = event
            if event.sender == self.user:
                self._pending.pop(event.client_msg_id, None)
            if event.seq == 1:
                self.begins = True

    def wait(self, client_msg_id: str, content: Content, time: int) -> None:
        """A message was handed over for sending."""
        self._pending[client_msg_id] = Pending(content, time)

    def refuse(self, client_msg_id: str, reason: str) -> None:
        pending = self._pending.get(client_msg_id)
        if pending is not None:
            self._pending[client_msg_id] = pending._replace(refused=reason)

    def mark(self, marks: Marks) -> None:
        """How far a member has got. Marks only grow."""
        known = self._marks.get(marks.user, marks)
        self._marks[marks.user] = Marks(
            marks.conversation,
            marks.user,
            max(marks.delivered, known.delivered),
            max(marks.read, known.read),
        )

    def clear(self) -> None:
        """Begins with nothing: another conversation, or the server's log is another one."""
        self._events.clear()
        self._pending.clear()
        self._marks.clear()
        self.begins = False

    # --- what is known

    @property
    def first(self) -> int:
        """The seq of the first event; 0 if there is none."""
        return min(self._events, default=0)

    @property
    def last(self) -> int:
        return max(self._events, default=0)

    def __len__(self) -> int:
        return len(self._events)

    # --- what is shown

    def lines(self, width: int) -> list[Line]:
        """Everything, oldest first, each line at most `width` columns wide."""
        shown: list[Line] = []
        if self.begins:
            shown.append([("class:note", "  This is where it begins.")])
        elif self._events:
            shown.append([("class:note", "  PageUp brings what was before.")])
        today = ""
        for event in (self._events[seq] for seq in sorted(self._events)):
            if (date := day(event.time)) != today:
                today = date
                shown.append([("class:day", f"  ── {date} ──")])
            shown.extend(self._message(event.sender, event.time, words_of(event), self._tick(event), width))
        for pending in self._pending.values():
            tick = ("class:tick", WAITING)
            if pending.refused:
                tick = ("class:tick.failed", f"{FAILED} not sent: {pending.refused}")
            shown.extend(
                self._message(self.user, pending.time, words_of_content(pending.content), tick, width)
            )
        return shown

    def _message(self, sender: str, time: int, words: str, tick: Fragment, width: int) -> Iterator[Line]:
        name = sender if columns(sender) <= MAX_NAME_COLUMNS else sender[: MAX_NAME_COLUMNS - 1] + "…"
        indent = len(f" {clock(time)}  {name}  ")
        room = max(width - indent, 10)
        texts = [text for paragraph in words.split("\n") for text in wrapped(paragraph, room)]
        head: Line = [("class:time", f" {clock(time)}  "), (self._name_style(sender), name), ("", "  ")]
        lines: list[Line] = [[*head, ("class:text", texts[0])]]
        lines += [[("", " " * indent), ("class:text", text)] for text in texts[1:]]
        style, mark = tick
        if mark:
            if columns(texts[-1]) + 1 + columns(mark) > room:
                lines.append([("", " " * (indent - 1))])
            lines[-1].append((style, f" {mark}"))
        return iter(lines)

    def _tick(self, event: Event) -> Fragment:
        if event.sender != self.user:
            return ("", "")
        others = [marks for user, marks in self._marks.items() if user != self.user]
        if any(marks.read >= event.seq for marks in others):
            return ("class:tick.read", DELIVERED)
        if any(marks.delivered >= event.seq for marks in others):
            return ("class:tick", DELIVERED)
        return ("class:tick", STORED)

    def _name_style(self, name: str) -> str:
        if name == self.user:
            return "class:name.own"
        return f"class:name.{self._names.setdefault(name, len(self._names) % NAME_COLOURS)}"
