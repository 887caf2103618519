"""Builds histories by hand for the checker's tests."""

from collections.abc import Iterable
from itertools import count

from tests.verification.checker import history
from tests.verification.checker.check import Verdict, check
from tests.verification.checker.history import Entry, Line, Row

TALK = "d:alice:bob"
HARNESS = "harness"


def value_of(process: str, name: str, conversation: str = TALK) -> str:
    """A unique text for a message."""
    return f"{process} says {name} in {conversation}"


def shown(rows: Iterable[Row]) -> list[Row]:
    """Rows as a device holds them: a recalled message without its value."""
    rows = list(rows)
    recalled = {history.target_of(row) for row in rows}
    return [row._replace(value="") if (row.seq, row.id) in recalled else row for row in rows]


class HistoryBuilder:
    """`logs` and `marks` are the store's contents. Each line is one second after the previous one."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.logs: dict[str, list[Row]] = {}
        self.marks: dict[str, dict[str, tuple[int, int]]] = {}
        self.epoch = 0
        self._ids = count(100, 7)

    def verdict(self) -> Verdict:
        return check(self.lines)

    def _add(self, line: type[Entry], process: str, /, **fields: object) -> None:
        self.lines.append(line(process=process, at=float(len(self.lines)), **fields))  # type: ignore[arg-type]

    # --- a device sends

    def start(self, process: str, *, ordered: bool = False, durable: bool = False) -> None:
        self._add(history.Start, process, ordered=ordered, durable=durable)

    def invoke(self, process: str, name: str, conversation: str = TALK, value: str = "") -> None:
        value = value or value_of(process, name, conversation)
        self._add(history.Invoke, process, conversation=conversation, name=name, value=value)

    def queue(self, process: str, name: str, conversation: str = TALK) -> None:
        self._add(history.Queued, process, conversation=conversation, name=name)

    def ok(self, process: str, row: Row, conversation: str = TALK) -> None:
        self._add(history.Ok, process, conversation=conversation, name=row.name, seq=row.seq, id=row.id)

    def fail(self, process: str, name: str, code: str = "not_allowed", conversation: str = TALK) -> None:
        self._add(history.Fail, process, conversation=conversation, name=name, code=code)

    def info(self, process: str, name: str, conversation: str = TALK) -> None:
        self._add(history.Info, process, conversation=conversation, name=name, why="timeout")

    def send(self, process: str, name: str, conversation: str = TALK) -> Row:
        """A message that is invoked, queued, stored and accepted."""
        self.invoke(process, name, conversation)
        self.queue(process, name, conversation)
        row = self.store(process, name, conversation)
        self.ok(process, row, conversation)
        return row

    # --- the store

    def make(self, process: str, name: str, seq: int, conversation: str = TALK, value: str = "") -> Row:
        """A row that is not stored."""
        value = value or value_of(process, name, conversation)
        return Row(seq, next(self._ids), process.partition("@")[0], name, value)

    def store(self, process: str, name: str, conversation: str = TALK, value: str = "") -> Row:
        log = self.logs.setdefault(conversation, [])
        log.append(self.make(process, name, len(log) + 1, conversation, value))
        return log[-1]

    def restore(self, heads: dict[str, int], backup_epoch: int | None = None) -> None:
        """Ends the epoch and truncates each log of the store to these seqs."""
        self.read_store()
        self._add(history.Restored, HARNESS, epoch=self.epoch, heads=heads, backup_epoch=backup_epoch)
        self.epoch += 1
        self.logs = {name: log[: heads.get(name, 0)] for name, log in self.logs.items()}
        for name, marks in self.marks.items():
            head = heads.get(name, 0)
            self.marks[name] = {
                user: (min(mark[0], head), min(mark[1], head)) for user, mark in marks.items()
            }

    def read_store(self) -> None:
        for name, log in self.logs.items():
            marks = tuple((user, *its) for user, its in self.marks.get(name, {}).items())
            self._add(
                history.Stored, HARNESS, epoch=self.epoch, conversation=name, rows=tuple(log), marks=marks
            )

    # --- a device receives

    def see(self, process: str, *rows: Row, conversation: str = TALK) -> None:
        for row in rows:
            self._add(history.Seen, process, conversation=conversation, row=row)

    def get_page(
        self, process: str, rows: Iterable[Row], registers: Iterable[Row] = (), known: Iterable[Row] = ()
    ) -> None:
        """A page that was requested when the recalls of `known` messages had arrived."""
        places = tuple((row.seq, row.id) for row in known)
        self._add(
            history.Paged, process, conversation=TALK, rows=tuple(rows), registers=tuple(registers),
            known=places,
        )  # fmt: skip

    def recall(self, process: str, row: Row, name: str = "r1") -> Row:
        """A recall of a row, invoked, stored and accepted."""
        value = history.recall_of(row.seq, row.id)
        self.invoke(process, name, value=value)
        recall = self.store(process, name, value=value)
        self.ok(process, recall)
        return recall

    def restart_log(self, process: str, conversation: str = TALK) -> None:
        self._add(history.LogRestarted, process, conversation=conversation)

    def mark(self, process: str, user: str, delivered: int, read: int, conversation: str = TALK) -> None:
        self._add(
            history.Marked, process, conversation=conversation, user=user, delivered=delivered, read=read
        )

    def hold(
        self,
        process: str,
        rows: Iterable[Row],
        *,
        base: int = 0,
        fresh: bool = False,
        conversation: str = TALK,
    ) -> None:
        self._add(history.Held, process, conversation=conversation, base=base, rows=tuple(rows), fresh=fresh)

    # --- the rest

    def fault(self, kind: str, *, loses_state: bool = False) -> None:
        self._add(history.Fault, HARNESS, kind=kind, target="broker", loses_state=loses_state)

    def end(self) -> Verdict:
        """Syncs a fresh device of every member, reads the store, and checks."""
        for name, log in self.logs.items():
            for user in name.split(":")[1:]:
                self.hold(f"{user}@fresh", shown(log), fresh=True, conversation=name)
        self.read_store()
        return self.verdict()
