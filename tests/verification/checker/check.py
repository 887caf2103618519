"""Checks a history: finds broken promises.

It knows the lines of `history` and nothing of imqtt: a checker that relied on the code under test would
confirm its errors. The reference is the store's contents at the end of each epoch. Everything that a device
saw, held or was told is compared with it, and each epoch's contents with those of the previous one.

It reads the lines once, in order, and needs some hundreds of megabytes for a million messages: equal rows
share one object.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from tests.verification.checker.history import (
    Fail,
    Fault,
    Held,
    Info,
    Invoke,
    Line,
    LogRestarted,
    Marked,
    Ok,
    Paged,
    Queued,
    Restored,
    Row,
    Seen,
    Start,
    Stored,
    target_of,
)


class Kind(StrEnum):
    """The kinds of findings."""

    LOST = "lost"
    DOUBLED = "doubled"
    DISORDER = "out of order"
    HOLE = "hole"
    DIFFERS = "differs"
    PHANTOM = "phantom"
    REWRITTEN = "rewritten"
    MARK_BACK = "mark went back"
    CHANGED_ANSWER = "answer changed"
    FORGOTTEN = "forgotten"
    WRONG_RECALL = "wrong recall"
    SHOWN = "shown though recalled"


class Finding(NamedTuple):
    """`what` is one sentence that names where to look: process, seq, id, name."""

    kind: Kind
    conversation: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.conversation}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sent` and `accepted` count messages, not attempts; `stored` counts the rows at the end.

    `differing`: conversations of which a device and the store (and so two devices) do not hold the same at
    the end, for whatever reason. `unseen`: users with conversations but without a record of a fresh device,
    so it is unknown what they can still read. That is a fault of the test run, not of the tested system.
    """

    sent: int
    accepted: int
    stored: int
    findings: list[Finding]
    differing: frozenset[str]
    unseen: frozenset[str]

    def count(self, kind: Kind) -> int:
        return sum(finding.kind is kind for finding in self.findings)

    @property
    def ok(self) -> bool:
        return not self.findings


def check(lines: Iterable[Line]) -> Verdict:
    """Checks a run's lines, merged and in order of time.

    Raises `ValueError` for lines that cannot be a history: an epoch that ends without its `Restored`, or a
    conversation that is recorded twice for one epoch.
    """
    run = _HistoryReader()
    for number, line in enumerate(lines, 1):
        run.read(number, line)
    return run.verdict()


# --- reading the lines


@dataclass(slots=True)
class _Sent:
    """A message as one process sent it.

    `first`, `ordered_from` and `answered` are line numbers; 0 means never. Messages that the process sends
    after `ordered_from` must be stored later. It is the first `Invoke`, or a later one if the process was
    killed before the message was in an outbox and then sent it again.
    """

    values: tuple[str, ...]
    first: int
    ordered_from: int
    incarnation: int
    ordered: bool
    queued: int = 0  # line number of the last `Queued`
    durable: bool = False
    answered: int = 0
    told_to_retry: bool = False  # a rejection asked to retry
    answers: tuple[tuple[int, int], ...] = ()
    refusals: tuple[tuple[str, tuple[str, ...], int], ...] = ()  # code, values sent before it, epoch


@dataclass(slots=True)
class _Process:
    """`unfinished`: the last event that it saw before its restart, which it may see again."""

    user: str
    ordered: bool = False
    durable: bool = False
    incarnation: int = 0
    last: tuple[str, Row] | None = None
    unfinished: tuple[str, Row] | None = None


@dataclass(slots=True)
class _SeenLog:
    """Events of one log of a conversation that a process saw between two of its starts.

    `epoch`: that of the first. `continues`: the process was killed, and has recorded no restart of the log.
    """

    incarnation: int
    epoch: int
    continues: bool = False
    rows: list[Row] = field(default_factory=list)


class _HighestMarks(NamedTuple):
    """The highest marks of a user that were sent to devices in an epoch, and a device that got them."""

    delivered: int = 0
    read: int = 0
    process: str = ""

    def raised(self, line: Marked) -> "_HighestMarks":
        if line.delivered <= self.delivered and line.read <= self.read:
            return self
        return _HighestMarks(max(self.delivered, line.delivered), max(self.read, line.read), line.process)


class _StoredLog(NamedTuple):
    """The store's contents of a conversation at the end of an epoch.

    `reported`: by user, the marks that devices got before the store was read.
    """

    rows: tuple[Row, ...] = ()
    marks: tuple[tuple[str, int, int], ...] = ()
    reported: Mapping[str, _HighestMarks] = {}


class _Rollback(NamedTuple):
    """A restore put the log back to its state in `epoch`, up to `seq`."""

    epoch: int
    seq: int

    @classmethod
    def by(cls, line: Restored, conversation: str) -> "_Rollback":
        epoch = line.epoch if line.backup_epoch is None else line.backup_epoch
        return cls(epoch, line.heads.get(conversation, 0))


@dataclass(slots=True)
class _Conversation:
    """All lines about one conversation. Processes are identified by name."""

    name: str
    members: tuple[str, ...]
    rows: dict[Row, Row] = field(default_factory=dict)
    sent: dict[str, dict[str, _Sent]] = field(default_factory=dict)  # by process and name
    seen: dict[str, list[_SeenLog]] = field(default_factory=dict)
    held: dict[tuple[str, bool], tuple[int, tuple[Row, ...]]] = field(default_factory=dict)
    pages: list[Paged] = field(default_factory=list)
    restarted: list[tuple[str, int]] = field(default_factory=list)  # with the epoch
    marked: dict[tuple[str, str], tuple[int, Marked]] = field(default_factory=dict)  # with the epoch
    reported: dict[str, _HighestMarks] = field(default_factory=dict)
    stored_logs: dict[int, _StoredLog] = field(default_factory=dict)

    def intern(self, row: Row) -> Row:
        """The shared object for all equal rows."""
        return self.rows.setdefault(row, row)


def _members(conversation: str) -> tuple[str, ...]:
    kind, _, rest = conversation.partition(":")
    return tuple(rest.split(":")) if kind in ("d", "u") else ()


class _HistoryReader:
    """Reads the lines one by one."""

    def __init__(self) -> None:
        self._conversations: dict[str, _Conversation] = {}
        self._processes: dict[str, _Process] = {}
        self._restores: list[Restored] = []
        self._epoch = 0
        self._state_lost_at = 0  # line number of the last fault that may lose the broker's state
        self._findings: dict[Finding, None] = {}
        self._number = 0
        self._readers: dict[type, Callable[..., None]] = {
            Start: self._start,
            Invoke: self._invoke,
            Queued: self._queued,
            Ok: self._ok,
            Fail: self._fail,
            Info: self._info,
            Seen: self._seen,
            Paged: self._paged,
            LogRestarted: self._restarted,
            Marked: self._marked,
            Held: self._held,
            Stored: self._stored,
            Restored: self._restored,
            Fault: self._fault,
        }

    def read(self, number: int, line: Line) -> None:
        self._number = number
        self._readers[type(line)](line)

    def verdict(self) -> Verdict:
        epochs = 1 + max(
            [self._epoch, *(stored for log in self._conversations.values() for stored in log.stored_logs)]
        )
        if epochs > 1 + len(self._restores):
            raise ValueError(f"epoch {self._epoch} ended without a line that names the restored backup")
        reporters: dict[str, set[tuple[str, bool]]] = {}
        for log in self._conversations.values():
            for process, fresh in log.held:
                reporters.setdefault(_user(process), set()).add((process, fresh))
        sent = accepted = stored = 0
        differing: set[str] = set()
        unseen: set[str] = set()
        for name in sorted(self._conversations):
            log = self._conversations.pop(name)
            rollbacks = [_Rollback.by(restore, name) for restore in self._restores]
            checker = _ConversationCheck(log, rollbacks, self._state_lost_at)
            checker.check([reporter for user in log.members for reporter in reporters.get(user, ())])
            self._findings |= checker.findings
            if checker.differs:
                differing.add(name)
            sent += len(checker.messages)
            accepted += sum(any(sent.answers for sent in sents) for sents in checker.messages.values())
            stored += len(checker.end)
            if checker.end:
                unseen.update(
                    member for member in log.members if not any(f for _, f in reporters.get(member, ()))
                )
        return Verdict(sent, accepted, stored, list(self._findings), frozenset(differing), frozenset(unseen))

    # --- lines

    def _conversation(self, name: str) -> _Conversation:
        log = self._conversations.get(name)
        if log is None:
            log = self._conversations[name] = _Conversation(name, _members(name))
        return log

    def _process(self, name: str) -> _Process:
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Process(_user(name))
        return process

    def _find(self, kind: Kind, conversation: str, what: str) -> None:
        self._findings[Finding(kind, conversation, what)] = None

    def _start(self, line: Start) -> None:
        process = self._process(line.process)
        process.ordered, process.durable = line.ordered, line.durable
        process.incarnation += 1
        process.unfinished = process.last

    def _invoke(self, line: Invoke) -> None:
        process = self._process(line.process)
        names = self._conversation(line.conversation).sent.setdefault(line.process, {})
        sent = names.get(line.name)
        if sent is None:
            names[line.name] = _Sent(
                (line.value,), self._number, self._number, process.incarnation, process.ordered
            )
            return
        if line.value not in sent.values:
            sent.values += (line.value,)
        if sent.incarnation != process.incarnation and not sent.durable and not sent.answered:
            sent.ordered_from, sent.incarnation = self._number, process.incarnation

    def _message(self, line: Queued | Ok | Fail | Info) -> _Sent | None:
        """The message that the line answers; None and a finding if its process never sent it."""
        sent = self._conversation(line.conversation).sent.get(line.process, {}).get(line.name)
        if sent is None:
            answer = type(line).__name__.lower()
            what = f"{line.process} got {answer} for {line.name!r}, which it never sent"
            self._find(Kind.PHANTOM, line.conversation, what)
        return sent

    def _queued(self, line: Queued) -> None:
        if (sent := self._message(line)) is not None:
            sent.queued = self._number
            sent.durable |= self._process(line.process).durable

    def _ok(self, line: Ok) -> None:
        if (sent := self._message(line)) is not None:
            sent.answered = sent.answered or self._number
            if (line.seq, line.id) not in sent.answers:
                sent.answers += ((line.seq, line.id),)

    def _fail(self, line: Fail) -> None:
        if (sent := self._message(line)) is not None:
            sent.refusals += ((line.code, sent.values, self._epoch),)

    def _info(self, line: Info) -> None:
        if line.answered and (sent := self._message(line)) is not None:
            sent.told_to_retry = True

    def _seen(self, line: Seen) -> None:
        process = self._process(line.process)
        log = self._conversation(line.conversation)
        row = log.intern(line.row)
        seen_logs = log.seen.setdefault(line.process, [])
        if not seen_logs:
            seen_logs.append(_SeenLog(process.incarnation, self._epoch))
        seen_log = seen_logs[-1]
        last = process.unfinished
        if seen_log.rows and last == (log.name, seen_log.rows[-1]) and last[1][:4] == row[:4]:
            # A killed device may not have finished the last event, and sees it again, perhaps recalled.
            process.unfinished = None
        else:
            if seen_log.incarnation != process.incarnation:
                seen_log = _SeenLog(process.incarnation, self._epoch, continues=True)
                seen_logs.append(seen_log)
            seen_log.rows.append(row)
        process.last = log.name, row

    def _paged(self, line: Paged) -> None:
        self._conversation(line.conversation).pages.append(line)

    def _restarted(self, line: LogRestarted) -> None:
        process = self._process(line.process)
        log = self._conversation(line.conversation)
        log.seen.setdefault(line.process, []).append(_SeenLog(process.incarnation, self._epoch))
        log.restarted.append((line.process, self._epoch))
        for key in [mark_key for mark_key in log.marked if mark_key[0] == line.process]:
            del log.marked[key]

    def _marked(self, line: Marked) -> None:
        log = self._conversation(line.conversation)
        key = line.process, line.user
        epoch, before = log.marked.get(key, (self._epoch, line))
        if epoch == self._epoch and (line.delivered < before.delivered or line.read < before.read):
            self._find(
                Kind.MARK_BACK,
                log.name,
                f"{line.process} had {line.user}'s marks at {before.delivered} delivered, {before.read} read,"
                f" and then at {line.delivered}, {line.read}",
            )
        log.marked[key] = self._epoch, line
        # A device may have its own user's marks before the store.
        if line.user != self._process(line.process).user:
            log.reported[line.user] = log.reported.get(line.user, _HighestMarks()).raised(line)

    def _held(self, line: Held) -> None:
        log = self._conversation(line.conversation)
        log.held[line.process, line.fresh] = line.base, tuple(map(log.intern, line.rows))

    def _stored(self, line: Stored) -> None:
        log = self._conversation(line.conversation)
        if line.epoch in log.stored_logs:
            raise ValueError(f"{log.name} was read twice at the end of epoch {line.epoch}")
        reported = log.reported if line.epoch == self._epoch else {}
        log.stored_logs[line.epoch] = _StoredLog(tuple(map(log.intern, line.rows)), line.marks, reported)
        log.reported = {}

    def _restored(self, line: Restored) -> None:
        if line.epoch != self._epoch:
            raise ValueError(f"epoch {line.epoch} ends during epoch {self._epoch}")
        if line.backup_epoch is not None and not 0 <= line.backup_epoch <= line.epoch:
            raise ValueError(f"epoch {line.epoch} ended with a backup of epoch {line.backup_epoch}")
        self._restores.append(line)
        self._epoch = line.epoch + 1
        for log in self._conversations.values():
            log.reported = {}

    def _fault(self, line: Fault) -> None:
        if line.loses_state:
            self._state_lost_at = self._number


# --- checking


class _ConversationCheck:
    """One conversation. Each of `rollbacks` is the effect of one restore, which ended an epoch."""

    def __init__(self, log: _Conversation, rollbacks: Sequence[_Rollback], state_lost_at: int) -> None:
        self.findings: dict[Finding, None] = {}
        self.differs = False
        self._log = log
        self._rollbacks = rollbacks
        self._state_lost_at = state_lost_at
        self._stored_logs = [log.stored_logs.get(epoch, _StoredLog()) for epoch in range(len(rollbacks) + 1)]
        self._logs = [{row.seq: row for row in stored.rows} for stored in self._stored_logs]
        self.end = self._logs[-1]
        self._restored_rows = [
            {seq: row for seq, row in self._logs[rollback.epoch].items() if seq <= rollback.seq}
            for rollback in rollbacks
        ]
        # For each restore: the rows of the ended epoch that the backup lacked.
        self._rolled_back = [
            [row for seq, row in rows.items() if kept.get(seq) is not row]
            for rows, kept in zip(self._logs, self._restored_rows, strict=False)
        ]
        self._highest_seq = max((seq for rows in self._logs for seq in rows), default=0)
        self._known: set[Row] = set()  # rows of any epoch
        self._places: dict[tuple[str, str], list[Row]] = {}  # by sender and name
        for stored in self._stored_logs:
            for row in stored.rows:
                if row not in self._known:
                    self._known.add(row)
                    self._places.setdefault((row.sender, row.name), []).append(row)
        # By (seq, id): every message, and the recalls of every epoch and of the last one.
        self._messages_at = {(row.seq, row.id): row for row in self._known}
        self._recalled = [
            {target for row in rows.values() if (target := target_of(row)) is not None} for rows in self._logs
        ]
        self.messages: dict[tuple[str, str], list[_Sent]] = {}  # by user and name
        for process, names in log.sent.items():
            user = _user(process)
            for name, sent in names.items():
                self.messages.setdefault((user, name), []).append(sent)

    def check(self, reporters: Iterable[tuple[str, bool]]) -> None:
        """`reporters`: the members' devices that recorded what they hold, fresh or not."""
        self._check_stores()
        self._check_restores()
        self._check_answers()
        self._check_own_order()
        self._check_recalls()
        self._check_pages()
        self._check_seen()
        for process, fresh in sorted(reporters):
            if (process, fresh) not in self._log.held and self.end:
                self.differs = True
                whose = _device(process, fresh=fresh)
                self._find(Kind.LOST, f"{whose} does not know the conversation of {len(self.end)} rows")
        for (process, fresh), (base, rows) in self._log.held.items():
            self._check_held(process, fresh, base, rows)
        self._check_marks()

    def _find(self, kind: Kind, what: str) -> None:
        self.findings[Finding(kind, self._log.name, what)] = None

    # --- the store

    def _check_stores(self) -> None:
        for stored in self._stored_logs:
            rows = sorted(stored.rows, key=lambda row: row.seq)
            self._check_rows("the store", rows, after=0)
            newest = None
            for row in rows:
                if newest is not None and row.id <= newest.id:
                    self._find(
                        Kind.DISORDER, f"the store has {_at(row)} after {_at(newest)}, whose id is not lower"
                    )
                newest = row
        for row in self._known:
            self._check_origin("the store", row)

    def _check_restores(self) -> None:
        """A backup's rows must be in the store after its restore, and each (seq, id) must be unique."""
        for rollback, kept, after in zip(self._rollbacks, self._restored_rows, self._logs[1:], strict=True):
            if rollback.seq > (end := max(self._logs[rollback.epoch], default=0)):
                what = f"a backup of epoch {rollback.epoch} reached seq {rollback.seq}, its end only {end}"
                self._find(Kind.LOST, what)
            for seq, row in kept.items():
                if after.get(seq) is row:
                    continue
                kind = Kind.REWRITTEN if seq in after else Kind.LOST
                now = _at(after[seq]) if seq in after else "nothing"
                self._find(kind, f"a backup had {_at(row)}, and its restore left {now}")
        if self._rollbacks:
            names: dict[tuple[int, int], Row] = {}
            for row in self._known:
                other = names.setdefault((row.seq, row.id), row)
                if other is not row:
                    what = f"{_at(row)} and {_at(other)} have the same id, so no cursor distinguishes them"
                    self._find(Kind.REWRITTEN, what)

    def _check_marks(self) -> None:
        earlier: dict[str, tuple[int, int]] = {}
        for stored, rows in zip(self._stored_logs, self._logs, strict=True):
            head = max(rows, default=0)
            marks = {user: (delivered, read) for user, delivered, read in stored.marks}
            for user, (delivered, read) in marks.items():
                if max(delivered, read) > head:
                    what = f"{user}'s marks are {delivered} delivered, {read} read, beyond the head {head}"
                    self._find(Kind.MARK_BACK, what)
                if user not in self._log.members:
                    self._find(Kind.PHANTOM, f"{user} has marks but is not a member")
            for user, top in stored.reported.items():
                now, old = marks.get(user, (0, 0)), earlier.get(user, (0, 0))
                # Marks from before a restore may be reported after it, by a queue or by a device.
                if top.delivered > max(now[0], old[0]) or top.read > max(now[1], old[1]):
                    self._find(
                        Kind.MARK_BACK,
                        f"{top.process} was told {user}'s marks {top.delivered} delivered, {top.read} read,"
                        f" and the store has {now[0]}, {now[1]}",
                    )
            for user, (delivered, read) in marks.items():
                old = earlier.get(user, (0, 0))
                earlier[user] = max(old[0], delivered), max(old[1], read)

    # --- rows

    def _check_rows(self, who: str, rows: Sequence[Row], after: int | None) -> bool:
        """Whether `rows` are contiguous (starting after `after`, if given) and each occurs once."""
        before = len(self.findings)
        last = rows[0].seq - 1 if after is None and rows else after or 0
        for row in rows:
            if row.seq > last + 1:
                self._find(Kind.HOLE, f"{who} continues after seq {last} with {_at(row)}")
            elif row.seq < last:
                self._find(Kind.DISORDER, f"{who} goes back from seq {last} to {_at(row)}")
            last = max(last, row.seq)
        for row, other in _repeated(rows):
            again = f"{_at(row)} after {_at(other)}" if row is not other else f"{_at(row)} twice"
            self._find(Kind.DOUBLED, f"{who} has {again}")
        return len(self.findings) == before

    def _check_origin(self, who: str, row: Row) -> None:
        """Whether a device sent the row as it is."""
        sents = self.messages.get((row.sender, row.name), [])
        if not any(row.value in sent.values for sent in sents):
            origin = f"sent as {_values(sents)}" if sents else "never sent here"
            self._find(Kind.PHANTOM, f"{who} has {_at(row)}, {row.value!r}: {origin}")
        elif row.sender not in self._log.members:
            self._find(Kind.PHANTOM, f"{who} has {_at(row)}, whose sender is not a member")

    def _check_unknown(self, who: str, rows: Iterable[Row]) -> None:
        """Rows that a device has and that the store did not have in any epoch."""
        for row in rows:
            if row in self._known:
                continue
            self._check_origin(who, row)
            there = self._at_seq(row.seq)
            if there is not None:
                self._find(Kind.REWRITTEN, f"{who} has {_at(row)}, but the store has {_at(there)}")
            elif row.seq > self._highest_seq:
                what = f"{who} has {_at(row)}, but no log ever passed seq {self._highest_seq}"
                self._find(Kind.PHANTOM, what)
            else:
                self._find(Kind.LOST, f"{who} has {_at(row)}, but the store has nothing there")

    def _at_seq(self, seq: int) -> Row | None:
        return next((rows[seq] for rows in reversed(self._logs) if seq in rows), None)

    # --- recalls

    def _check_recalls(self) -> None:
        """A recall follows a message of its sender, and each message has one at most."""
        for rows in self._logs:
            recalls: dict[tuple[int, int], Row] = {}
            for row in sorted(rows.values()):
                if (target := target_of(row)) is None:
                    continue
                message = rows.get(target[0])
                if message is None or (message.seq, message.id) != target or message.seq >= row.seq:
                    self._find(Kind.WRONG_RECALL, f"{_at(row)} recalls seq {target[0]}, where no message was")
                elif message.sender != row.sender or target_of(message) is not None:
                    self._find(Kind.WRONG_RECALL, f"{_at(row)} recalls {_at(message)}")
                if (other := recalls.setdefault(target, row)) is not row:
                    self._find(Kind.WRONG_RECALL, f"{_at(row)} recalls what {_at(other)} has recalled")

    def _check_pages(self) -> None:
        """A page shows no content of a message whose recall the device knew, and has the recall."""
        if self._rollbacks:
            return  # the page may be of a log without the recall
        for page in self._log.pages:
            recalled = {target_of(row) for row in (*page.rows, *page.registers)}
            for row in page.rows:
                if row.value and (row.seq, row.id) in page.known:
                    self._find(Kind.SHOWN, f"{page.process} got {_at(row)} in a page after its recall")
                if not row.value and (row.seq, row.id) not in recalled:
                    self._find(Kind.SHOWN, f"{page.process} got {_at(row)} without the recall of it")

    def _whole(self, row: Row, recalled: Iterable[set[tuple[int, int]]]) -> Row:
        """The stored row of a message that a device shows without its content, if it is recalled there."""
        place = row.seq, row.id
        if not row.value and any(place in places for places in recalled):
            return self._messages_at.get(place, row)
        return row

    # --- answers

    def _check_answers(self) -> None:
        for process, names in self._log.sent.items():
            user = _user(process)
            for name, sent in names.items():
                places = self._places.get((user, name), [])
                for seq, id in sent.answers:
                    if not any(
                        place.seq == seq and place.id == id and place.value in sent.values for place in places
                    ):
                        self._check_false_answer(process, name, seq, id, sent)
                for code, values, epoch in sent.refusals:
                    self._check_refusal(process, name, code, values, places, epoch)
                if sent.queued and not sent.answers and not sent.refusals:
                    self._check_queued(process, name, sent, places)
        for (user, name), sents in self.messages.items():
            if len(answers := list(dict.fromkeys(answer for sent in sents for answer in sent.answers))) > 1:
                self._check_changed(user, name, answers)

    def _check_false_answer(self, process: str, name: str, seq: int, id: int, sent: _Sent) -> None:
        """An `Accepted` that names a place where the message never was."""
        there = self._at_seq(seq)
        claim = f"{process} was told that {name!r} is at seq {seq} (id {id})"
        if there is not None:
            self._find(Kind.REWRITTEN, f"{claim}, but the store has {_at(there)}")
        elsewhere = [
            place for place in self._places.get((_user(process), name), []) if place.value in sent.values
        ]
        if not elsewhere:
            self._find(Kind.LOST, f"{claim}, but no store has {sent.values[-1]!r} anywhere")
        elif there is None:
            kind = Kind.PHANTOM if seq > self._highest_seq else Kind.LOST
            self._find(kind, f"{claim}, but the store has {_at(elsewhere[0])} instead")

    def _check_refusal(
        self,
        process: str,
        name: str,
        code: str,
        values: tuple[str, ...],
        places: Sequence[Row],
        epoch: int,
    ) -> None:
        """A rejection is of one of `values`; with several, it is unknown which."""
        stored = [
            place
            for place in places
            if values == (place.value,) and (code == "conflict" or not self._was_removed(place, epoch))
        ]
        if code == "conflict" and any(value != place.value for place in places for value in values):
            return  # another value is stored, or was before a restore
        if stored:
            what = f"{process} had {name!r} rejected ({code}), but the store has {_at(stored[0])}"
            self._find(Kind.PHANTOM, what)
        elif code == "conflict":
            what = f"{process} had {name!r} rejected as a conflict, but no store has that name"
            self._find(Kind.PHANTOM, what)

    def _was_removed(self, row: Row, epoch: int) -> bool:
        """Whether the row was stored before the epoch, and a restore had removed it by then."""
        held = [number for number, rows in enumerate(self._logs) if rows.get(row.seq) is row]
        return bool(held) and held[0] < epoch and epoch not in held

    def _check_queued(self, process: str, name: str, sent: _Sent, places: Sequence[Row]) -> None:
        if any(place.value in sent.values for place in places):
            return  # it was stored; a restore may have removed it
        if sent.durable:
            what = f"{name!r} was in the outbox of {process} and was neither stored nor rejected"
            self._find(Kind.FORGOTTEN, what)
        elif sent.queued > self._state_lost_at and not (sent.told_to_retry or places):
            what = f"the broker acked {name!r} of {process}, and it was neither stored nor rejected"
            self._find(Kind.FORGOTTEN, what)

    def _check_changed(self, user: str, name: str, answers: Sequence[tuple[int, int]]) -> None:
        """Several answers are allowed only if each was correct in another epoch."""
        epochs: list[int] = []
        for seq, id in answers:
            held = [
                epoch
                for epoch, rows in enumerate(self._logs)
                if (row := rows.get(seq)) is not None and (row.id, row.sender, row.name) == (id, user, name)
            ]
            epochs += held or [-1, -1]
        if len(set(epochs)) < len(epochs):
            positions = ", then ".join(f"seq {seq} (id {id})" for seq, id in answers)
            self._find(Kind.CHANGED_ANSWER, f"{user} was told that {name!r} is at {positions}")

    # --- order

    def _check_own_order(self) -> None:
        """Each device's own messages must be in order in every epoch."""
        # A message that a restore removed may be sent again and then follows later ones.
        rolled_back = {(row.sender, row.name) for rows in self._rolled_back for row in rows}
        for stored in self._stored_logs:
            # A message that is stored twice, which is a finding of its own, counts at its first place.
            rows = sorted(stored.rows, reverse=True)
            places = {key: row for row in rows if (key := (row.sender, row.name)) not in rolled_back}
            for process, names in self._log.sent.items():
                self._check_order_of(process, names, places)

    def _check_order_of(
        self, process: str, names: Mapping[str, _Sent], places: Mapping[tuple[str, str], Row]
    ) -> None:
        user = _user(process)
        moments: list[tuple[int, bool, Row]] = []
        for name, sent in names.items():
            row = places.get((user, name))
            if row is None or row.value not in sent.values:
                continue
            if sum(row.value in message.values for message in self.messages[user, name]) > 1:
                continue  # another device of the user sent it too, so its order is unknown
            moments.append((sent.first, False, row))
            if sent.ordered:
                moments.append((sent.ordered_from, True, row))
            elif sent.answered:
                moments.append((sent.answered, True, row))
        moments.sort()
        floor: Row | None = None
        for _, is_placed, row in moments:
            if is_placed:
                floor = row if floor is None else max(floor, row)
            elif floor is not None and row.seq < floor.seq:
                self._find(Kind.DISORDER, f"{process} sent {_at(row)} after {_at(floor)}")

    # --- devices

    def _check_seen(self) -> None:
        for process, seen_logs in self._log.seen.items():
            for rows in self._joined(seen_logs):
                self._check_rows(f"what {process} saw", rows, after=None)
                self._check_unknown(process, rows)
                self._check_one_log(process, rows)
            self._check_member(process, any(seen_log.rows for seen_log in seen_logs))
        for process, epoch in self._log.restarted:
            if not any(self._rolled_back[:epoch]):
                what = f"{process} restarted the log, but no restore had removed anything"
                self._find(Kind.REWRITTEN, what)

    def _joined(self, seen_logs: Sequence[_SeenLog]) -> Iterable[list[Row]]:
        """The rows of each log, across kills of the process.

        A device may restart its log and be killed before it can record that. This is assumed if a restore
        had removed the last event that it saw before: it may have seen that after the restore, from a queue.
        """
        joined: list[Row] = []
        for seen_log in seen_logs:
            removed = self._rolled_back[: seen_log.epoch]
            if joined and (not seen_log.continues or any(joined[-1] in rows for rows in removed)):
                yield joined
                joined = []
            joined += [self._whole(row, self._recalled) for row in seen_log.rows]
        yield joined

    def _check_one_log(self, process: str, rows: Sequence[Row]) -> None:
        """Without a restart of the log, the rows must come from one log, not from two."""
        if len(self._logs) == 1:
            return
        known = [row for row in rows if row in self._known]
        if not any(all(log.get(row.seq) is row for row in known) for log in reversed(self._logs)):
            what = f"{process} saw {_at(known[0])} to {_at(known[-1])} as one log, but no epoch had that log"
            self._find(Kind.DIFFERS, what)

    def _check_held(self, process: str, fresh: bool, base: int, rows: Sequence[Row]) -> None:
        who = _device(process, fresh=fresh)
        for row in rows:
            if row.value and (row.seq, row.id) in self._recalled[-1] and self.end.get(row.seq) is row:
                self._find(Kind.SHOWN, f"{who} holds the content of {_at(row)}, which is recalled")
        rows = [self._whole(row, self._recalled[-1:]) for row in rows]
        fine = self._check_rows(f"what {who} holds", rows, after=base)
        self._check_unknown(who, rows)
        other = [row for row in rows if self.end.get(row.seq) is not row]
        if other:
            there = self.end.get(other[0].seq)
            stored = "nothing" if there is None else _at(there)
            more = f", and {len(other) - 1} more like it" if other[1:] else ""
            self._find(Kind.DIFFERS, f"{who} holds {_at(other[0])}, the store {stored}{more}")
        head = max(self.end, default=0)
        if base > head:
            self._find(Kind.DIFFERS, f"{who} holds the log after seq {base}, but the store ends at {head}")
        has = {row.seq for row in rows}
        begin = 0 if fresh else base
        lacking = sorted(seq for seq in self.end if seq > begin and seq not in has)
        for first, last in _runs(lacking):
            to = f" to {_at(self.end[last])}" if last > first else ""
            self._find(Kind.LOST, f"{who} does not have {_at(self.end[first])}{to}")
        if other or lacking or base > head or not fine:
            self.differs = True
        self._check_member(process, bool(rows))

    def _check_member(self, process: str, has_rows: bool) -> None:
        if has_rows and _user(process) not in self._log.members:
            self._find(Kind.PHANTOM, f"{process} has events, but its user is not a member")


# --- descriptions


def _user(process: str) -> str:
    return process.partition("@")[0]


def _device(process: str, *, fresh: bool) -> str:
    return f"{process}, fresh," if fresh else process


def _at(row: Row) -> str:
    return f"seq {row.seq} (id {row.id}, {row.name!r} of {row.sender})"


def _values(sents: Iterable[_Sent]) -> str:
    return ", ".join(repr(value) for sent in sents for value in sent.values)


def _runs(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last number of each run of consecutive numbers."""
    for _, run in groupby(enumerate(seqs), lambda numbered: numbered[1] - numbered[0]):
        numbers = [seq for _, seq in run]
        yield numbers[0], numbers[-1]


def _repeated(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each row that shares a seq, a message or a value with an earlier row, and that row."""
    if (
        len({row.seq for row in rows})
        == len({(row.sender, row.name) for row in rows})
        == len({row.value for row in rows})
        == len(rows)
    ):
        return
    seqs: dict[int, Row] = {}
    keys: dict[tuple[str, str], Row] = {}
    values: dict[str, Row] = {}
    for row in rows:
        key = row.sender, row.name
        other = seqs.get(row.seq) or keys.get(key) or values.get(row.value)
        if other is not None:
            yield row, other
        seqs.setdefault(row.seq, row)
        keys.setdefault(key, row)
        values.setdefault(row.value, row)
