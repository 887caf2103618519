"""The text of a chat: the events of one conversation, waiting messages, and delivery marks.

It uses neither a terminal nor a clock: events in, lines of styled text out.
"""

from collections.abc import Iterable
from typing import NamedTuple

from imqtt.cli.formatting import clock, day, words_of, words_of_content
from imqtt.cli.wrapping import columns, unstacked, wrapped
from imqtt.core.overlays import counts_as_unread, overlaid, register_of, target_of
from imqtt.model import Content, Event, Marks

Fragment = tuple[str, str]
"""A style class of prompt_toolkit, and text."""

NAME_COLOURS = 6
MAX_NAME_COLUMNS = 20
WAITING, STORED, DELIVERED, FAILED = "·", "✓", "✓✓", "✗"


class Pending(NamedTuple):
    """A message of this device that is not stored yet."""

    content: Content
    time: int  # milliseconds
    refused: str = ""  # the reason if the server refused it


Line = list[Fragment]
"""One line of the screen."""


class Block(NamedTuple):
    """A message that was laid out: its lines without (`body`) and with its tick."""

    date: str
    indent: int
    body: list[Line]
    room: int  # free columns after the last line
    tick: Fragment
    lines: list[Line]


class Transcript:
    """One conversation as one of its members sees it."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.begins = False  # whether it has the first event of the conversation
        self._events: dict[int, Event] = {}
        self._registers: dict[tuple[str, str], Event] = {}  # the events that change messages
        self.unstored: dict[str, Pending] = {}  # waiting and refused messages by client_msg_id, in order
        self._marks: dict[str, Marks] = {}
        self._names: dict[str, int] = {}
        # A message is laid out once, not at each keystroke: there may be thousands.
        self._width = 0
        self._blocks: dict[int, Block] = {}
        self._waiting_blocks: dict[str, Block] = {}
        self._lines: list[Line] | None = None  # None: to be laid out again

    # --- changes

    def add(self, events: Iterable[Event], *, begins: bool = False) -> None:
        """Adds events of the conversation, in any order. `begins`: there are none before them."""
        self._lines = None
        self.begins = self.begins or begins
        for event in events:
            self._show(event)
            if event.sender == self.user and event.client_msg_id in self.unstored:
                self.discard(event.client_msg_id)
            if event.seq == 1:
                self.begins = True

    def _show(self, event: Event) -> None:
        """Shows the event, and the message that it changes, as the known events change them."""
        shown, _ = overlaid(event, self._registers)
        if self._events.get(event.seq) != shown:
            self._events[event.seq] = shown
            self._blocks.pop(event.seq, None)
        if (target := target_of(event)) is not None:
            self._registers[event.conversation, register_of(event, target)] = event
            if (message := self._events.get(target.seq)) is not None:
                self._show(message)

    def wait(self, client_msg_id: str, content: Content, time: int) -> None:
        """Adds a message that waits to be stored."""
        self._lines = None
        self._waiting_blocks.pop(client_msg_id, None)
        self.unstored[client_msg_id] = Pending(content, time)

    def refuse(self, client_msg_id: str, reason: str) -> None:
        pending = self.unstored.get(client_msg_id)
        if pending is not None:
            self._lines = None
            self.unstored[client_msg_id] = pending._replace(refused=reason)

    def discard(self, client_msg_id: str) -> Pending:
        """Removes and returns a message that is not stored. Raises `KeyError`."""
        self._lines = None
        self._waiting_blocks.pop(client_msg_id, None)
        return self.unstored.pop(client_msg_id)

    def mark(self, marks: Marks) -> None:
        """Sets a member's marks, which only grow."""
        self._lines = None
        known = self._marks.get(marks.user, marks)
        delivered, read = max(marks.delivered, known.delivered), max(marks.read, known.read)
        self._marks[marks.user] = Marks(marks.conversation, marks.user, delivered, read)

    def clear(self) -> None:
        """Removes everything, for another conversation or another log of the server."""
        self._lines = None
        self._blocks.clear()
        self._waiting_blocks.clear()
        self._events.clear()
        self._registers.clear()
        self.unstored.clear()
        self._marks.clear()
        self.begins = False

    # --- queries

    @property
    def own_newest(self) -> Event | None:
        """The user's newest message that is stored and not recalled."""
        own = (event for event in self._events.values() if event.sender == self.user)
        return max(filter(counts_as_unread, own), key=lambda event: event.seq, default=None)

    @property
    def first(self) -> int:
        """The seq of the first event; 0 if there is none."""
        return min(self._events, default=0)

    # --- layout

    def lines(self, width: int) -> list[Line]:
        """All lines, oldest first, each at most `width` columns wide. The caller must not change them."""
        if width != self._width:
            self._width = width
            self._blocks.clear()
            self._waiting_blocks.clear()
            self._lines = None
        if self._lines is None:
            self._lines = self._lay_out()
        return self._lines

    def _lay_out(self) -> list[Line]:
        shown: list[Line] = []
        if self.begins:
            shown.append([("class:note", "  The conversation begins here.")])
        elif self._events:
            shown.append([("class:note", "  PageUp shows older messages.")])
        today = ""
        others = [marks for user, marks in self._marks.items() if user != self.user]
        delivered = max((marks.delivered for marks in others), default=0)
        read = max((marks.read for marks in others), default=0)
        for seq in sorted(self._events):
            event = self._events[seq]
            if event.kind != "message":
                continue  # if it changes a message, that shows it
            tick = ("", "") if event.sender != self.user else _tick(seq, delivered, read)
            block = self._blocks.get(seq)
            if block is None:
                block = self._block(event.sender, event.time, words_of(event))
            if block.tick != tick:
                block = _ticked(block, tick)
            self._blocks[seq] = block
            if block.date != today:
                today = block.date
                shown.append([("class:day", f"  ── {today} ──")])
            shown += block.lines
        for key, pending in self.unstored.items():
            tick = ("class:tick", WAITING)
            if pending.refused:
                tick = ("class:tick.failed", f"{FAILED} not sent: {pending.refused}")
            block = self._waiting_blocks.get(key)
            if block is None:
                block = self._block(self.user, pending.time, words_of_content(pending.content))
            block = self._waiting_blocks[key] = _ticked(block, tick)
            shown += block.lines
        return shown

    def _block(self, sender: str, time: int, words: str) -> Block:
        name = sender if columns(sender) <= MAX_NAME_COLUMNS else sender[: MAX_NAME_COLUMNS - 1] + "…"
        indent = len(f" {clock(time)}  {name}  ")
        room = max(self._width - indent, 10)
        texts = [text for paragraph in unstacked(words).split("\n") for text in wrapped(paragraph, room)]
        head: Line = [("class:time", f" {clock(time)}  "), (self._name_style(sender), name), ("", "  ")]
        lines: list[Line] = [[*head, ("class:text", texts[0])]]
        lines += [[("", " " * indent), ("class:text", text)] for text in texts[1:]]
        return Block(day(time), indent, lines, room - columns(texts[-1]), ("", ""), lines)

    def _name_style(self, name: str) -> str:
        if name == self.user:
            return "class:name.own"
        return f"class:name.{self._names.setdefault(name, len(self._names) % NAME_COLOURS)}"


def _tick(seq: int, delivered: int, read: int) -> Fragment:
    """The tick of an own message, according to the others' marks."""
    if read >= seq:
        return ("class:tick.read", DELIVERED)
    if delivered >= seq:
        return ("class:tick", DELIVERED)
    return ("class:tick", STORED)


def _ticked(block: Block, tick: Fragment) -> Block:
    """The block with another tick after its last line, or on a separate line if it does not fit."""
    style, mark = tick
    if not mark:
        return block._replace(tick=tick, lines=block.body)
    fragment = (style, f" {mark}")
    if 1 + columns(mark) > block.room:
        return block._replace(tick=tick, lines=[*block.body, [("", " " * (block.indent - 1)), fragment]])
    return block._replace(tick=tick, lines=[*block.body[:-1], [*block.body[-1], fragment]])
