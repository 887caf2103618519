"""One device's history: what it writes, and what it finds there when it is started again."""

import random
from pathlib import Path
from typing import NamedTuple

from tests.verification.chaos.console import Plan, Progress
from tests.verification.checker.history import (
    Begun,
    Fail,
    Held,
    History,
    Info,
    Invoke,
    Line,
    Marked,
    Ok,
    Row,
    Seen,
    Start,
    Taken,
    now,
    read,
)


class Message(NamedTuple):
    """`at`: when it was first invoked."""

    conversation: str
    name: str
    value: str
    at: float


class Journal:
    """Every line that is written is known here, whichever life of the device wrote it.

    `messages`: by name, in the order in which they were first invoked. `seen`: the newest event of each
    conversation, since it was last begun.
    """

    def __init__(self, plan: Plan) -> None:
        self.process = plan.process
        self.messages: dict[str, Message] = {}
        self.taken: set[str] = set()
        self.accepted: set[str] = set()
        self.failed: set[str] = set()
        self.seen: dict[str, Row] = {}
        self.marks: dict[tuple[str, str], tuple[int, int]] = {}
        self._newest = 0.0
        lives = 0
        path = Path(plan.history)
        if path.exists():
            for line in read(path):
                lives += isinstance(line, Start)
                self._note(line)
        self.random = random.Random(f"{plan.seed} {plan.process} {lives}")
        self._number = 1 + max((int(name.rpartition(":")[2]) for name in self.messages), default=0)
        self._history = History(path)

    @property
    def progress(self) -> Progress:
        return Progress(len(self.accepted), self._newest)

    def compose(self, conversation: str) -> Message:
        """A new message, of a name and value that no other has."""
        name = f"{self.process}:{self._number}"
        self._number += 1
        value = f"{name} {self.random.randbytes(self.random.choice((4, 16, 64))).hex()}"
        return Message(conversation, name, value, now())

    # --- lines

    def start(self, *, ordered: bool, keeps: bool) -> None:
        self._write(Start(self.process, now(), ordered, keeps))

    def invoke(self, message: Message) -> None:
        self._write(Invoke(self.process, now(), message.conversation, message.name, message.value))

    def take(self, message: Message) -> None:
        self._write(Taken(self.process, now(), message.conversation, message.name))

    def ok(self, conversation: str, name: str, seq: int, id: int) -> None:
        self._write(Ok(self.process, now(), conversation, name, seq, int(id)))

    def fail(self, conversation: str, name: str, code: str) -> None:
        self._write(Fail(self.process, now(), conversation, name, code))

    def info(self, message: Message, why: str, *, answered: bool = False) -> None:
        self._write(Info(self.process, now(), message.conversation, message.name, why, answered))

    def see(self, conversation: str, row: Row) -> None:
        self._write(Seen(self.process, now(), conversation, row))

    def begin(self, conversation: str) -> None:
        self._write(Begun(self.process, now(), conversation))

    def mark(self, conversation: str, user: str, delivered: int, read: int) -> None:
        """Written if it is news."""
        if self.marks.get((conversation, user)) != (delivered, read):
            self._write(Marked(self.process, now(), conversation, user, delivered, read))

    def hold(self, conversation: str, base: int, rows: tuple[Row, ...]) -> None:
        self._write(Held(self.process, now(), conversation, base, rows))

    def _write(self, line: Line) -> None:
        self._history.write(line)
        self._note(line)

    def _note(self, line: Line) -> None:
        if isinstance(line, Seen):
            self.seen[line.conversation] = line.row
        elif isinstance(line, Invoke):
            message = Message(line.conversation, line.name, line.value, line.at)
            self.messages.setdefault(line.name, message)
        elif isinstance(line, Taken):
            self.taken.add(line.name)
        elif isinstance(line, Ok):
            self.accepted.add(line.name)
            if line.name in self.messages:
                self._newest = max(self._newest, self.messages[line.name].at)
        elif isinstance(line, Fail):
            self.failed.add(line.name)
        elif isinstance(line, Begun):
            self.seen.pop(line.conversation, None)
            for key in [key for key in self.marks if key[0] == line.conversation]:
                del self.marks[key]
        elif isinstance(line, Marked):
            self.marks[line.conversation, line.user] = (line.delivered, line.read)
