"""One device's history: lines that it writes, and the lines of its earlier runs."""

import random
from pathlib import Path
from typing import NamedTuple

from tests.verification.chaos.console import Plan, Progress
from tests.verification.checker import history
from tests.verification.checker.history import History, Line, Row, now, read


class Message(NamedTuple):
    """`at`: when it was first invoked."""

    conversation: str
    name: str
    value: str
    at: float


class Journal:
    """Knows every written line, including those of earlier runs of the device.

    `messages`: by name, in the order of their first invocation. `seen`: the newest event of each conversation
    since its log last restarted. `seen_ids`: the ids of all events that were ever seen.
    """

    def __init__(self, plan: Plan) -> None:
        self.process = plan.process
        self.messages: dict[str, Message] = {}
        self.queued: set[str] = set()
        self.accepted: set[str] = set()
        self.failed: set[str] = set()
        self.seen: dict[str, Row] = {}
        self.seen_ids: set[int] = set()
        self.marks: dict[tuple[str, str], tuple[int, int]] = {}
        self._newest = 0.0
        starts = 0
        path = Path(plan.history)
        if path.exists():
            for line in read(path):
                starts += isinstance(line, history.Start)
                self._note(line)
        self.random = random.Random(f"{plan.seed} {plan.process} {starts}")
        self._number = 1 + max((int(name.rpartition(":")[2]) for name in self.messages), default=0)
        self._history = History(path)

    @property
    def progress(self) -> Progress:
        return Progress(len(self.accepted), self._newest)

    def compose(self, conversation: str) -> Message:
        """A new message with a unique name and value."""
        name = f"{self.process}:{self._number}"
        self._number += 1
        value = f"{name} {self.random.randbytes(self.random.choice((4, 16, 64))).hex()}"
        return Message(conversation, name, value, now())

    # --- lines

    def start(self, *, ordered: bool, durable: bool) -> None:
        self._write(history.Start(self.process, now(), ordered, durable))

    def invoke(self, message: Message) -> None:
        self._write(history.Invoke(self.process, now(), message.conversation, message.name, message.value))

    def queue(self, message: Message) -> None:
        self._write(history.Queued(self.process, now(), message.conversation, message.name))

    def ok(self, conversation: str, name: str, seq: int, id: int) -> None:
        self._write(history.Ok(self.process, now(), conversation, name, seq, int(id)))

    def fail(self, conversation: str, name: str, code: str) -> None:
        self._write(history.Fail(self.process, now(), conversation, name, code))

    def info(self, message: Message, why: str, *, answered: bool = False) -> None:
        self._write(history.Info(self.process, now(), message.conversation, message.name, why, answered))

    def see(self, conversation: str, row: Row) -> None:
        self._write(history.Seen(self.process, now(), conversation, row))

    def restart_log(self, conversation: str) -> None:
        self._write(history.LogRestarted(self.process, now(), conversation))

    def mark(self, conversation: str, user: str, delivered: int, read: int) -> None:
        """Written only if the marks have changed."""
        if self.marks.get((conversation, user)) != (delivered, read):
            self._write(history.Marked(self.process, now(), conversation, user, delivered, read))

    def hold(self, conversation: str, base: int, rows: tuple[Row, ...]) -> None:
        self._write(history.Held(self.process, now(), conversation, base, rows))

    def _write(self, line: Line) -> None:
        self._history.write(line)
        self._note(line)

    def _note(self, line: Line) -> None:
        if isinstance(line, history.Seen):
            self.seen[line.conversation] = line.row
            self.seen_ids.add(line.row.id)
        elif isinstance(line, history.Invoke):
            message = Message(line.conversation, line.name, line.value, line.at)
            self.messages.setdefault(line.name, message)
        elif isinstance(line, history.Queued):
            self.queued.add(line.name)
        elif isinstance(line, history.Ok):
            self.accepted.add(line.name)
            if line.name in self.messages:
                self._newest = max(self._newest, self.messages[line.name].at)
        elif isinstance(line, history.Fail):
            self.failed.add(line.name)
        elif isinstance(line, history.LogRestarted):
            self.seen.pop(line.conversation, None)
            for key in [key for key in self.marks if key[0] == line.conversation]:
                del self.marks[key]
        elif isinstance(line, history.Marked):
            self.marks[line.conversation, line.user] = (line.delivered, line.read)
