"""Judges a history: finds the promises that were broken.

It knows the lines of `history` and nothing of imqtt: a checker that asked the code under test what is right
would find that it is right. Truth is what the store had when each epoch ended. Everything else that
anybody saw, held or was told is compared with it, and each epoch's truth with the one before.

It reads the lines once, as they come, and keeps of a million messages some hundreds of megabytes: rows that
are equal are one object, whoever has seen them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from tests.verification.checker.history import (
    Begun,
    Fail,
    Fault,
    Held,
    Info,
    Invoke,
    Line,
    Marked,
    Ok,
    Restored,
    Row,
    Seen,
    Start,
    Stored,
    Taken,
)


class Kind(StrEnum):
    """What can be wrong."""

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


class Finding(NamedTuple):
    """`what` is one sentence that names enough to begin looking: process, seq, id, name."""

    kind: Kind
    conversation: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.conversation}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sent` and `accepted` count messages, not attempts; `stored` the rows at the end.

    `differing`: conversations of which, at the end, a device and the store (and so two devices) do not hold
    the same, for whatever reason. `unseen`: users with conversations of whom no fresh device has said what
    it found, so that nothing is known of what they can still read. No fault of what is tested, but of the
    test: a run that means to prove something has none.
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
    """The verdict on a run's lines, which come merged, in order of time.

    Raises `ValueError` for lines that cannot be a history: an epoch that ended without its `Restored`, or of
    which a conversation was read twice.
    """
    run = _Run()
    for number, line in enumerate(lines, 1):
        run.read(number, line)
    return run.verdict()


# --- what is gathered


@dataclass(slots=True)
class _Sent:
    """A message as one process sent it. `first`, `placed` and `answered` are numbers of lines; 0 is never.

    `placed`: from here on, what the process sends comes behind it. That is its first `Invoke`, unless the
    process died before it was in an outbox (or has none), and sent it in another life as something new.
    """

    values: tuple[str, ...]
    first: int
    placed: int
    life: int
    ordered: bool
    taken: int = 0  # the last line that says so
    kept: bool = False
    answered: int = 0
    put_off: bool = False  # it was answered, and told to try again
    answers: tuple[tuple[int, int], ...] = ()
    refusals: tuple[tuple[str, tuple[str, ...]], ...] = ()  # codes, and the values that it had sent by then


@dataclass(slots=True)
class _Process:
    """`again`: the event that it saw last before it was started again."""

    user: str
    ordered: bool = False
    keeps: bool = False
    life: int = 0
    last: tuple[str, Row] | None = None
    again: tuple[str, Row] | None = None


@dataclass(slots=True)
class _Showing:
    """What a process saw of one log of a conversation, and when it saw the last of it."""

    life: int
    epoch: int
    rows: list[Row] = field(default_factory=list)


class _Top(NamedTuple):
    """The highest marks of a user that were told in an epoch, and to whom."""

    delivered: int = 0
    read: int = 0
    process: str = ""

    def raised(self, line: Marked) -> "_Top":
        if line.delivered <= self.delivered and line.read <= self.read:
            return self
        return _Top(max(self.delivered, line.delivered), max(self.read, line.read), line.process)


class _Truth(NamedTuple):
    """What the store had of a conversation when an epoch ended. `told`: by user, before it was read."""

    rows: tuple[Row, ...] = ()
    marks: tuple[tuple[str, int, int], ...] = ()
    told: Mapping[str, _Top] = {}


class _Cut(NamedTuple):
    """A restore put the log back to what it was in `epoch`, up to `seq`."""

    epoch: int
    seq: int

    @classmethod
    def by(cls, line: Restored, conversation: str) -> "_Cut":
        taken = line.epoch if line.taken is None else line.taken
        return cls(taken, line.heads.get(conversation, 0))


@dataclass(slots=True)
class _Conversation:
    """All that was written of one. Processes go by name."""

    name: str
    members: tuple[str, ...]
    rows: dict[Row, Row] = field(default_factory=dict)
    sent: dict[str, dict[str, _Sent]] = field(default_factory=dict)  # by process and name
    seen: dict[str, list[_Showing]] = field(default_factory=dict)
    held: dict[tuple[str, bool], tuple[int, tuple[Row, ...]]] = field(default_factory=dict)
    begun: list[tuple[str, int]] = field(default_factory=list)  # with the epoch
    marked: dict[tuple[str, str], tuple[int, Marked]] = field(default_factory=dict)  # with the epoch
    told: dict[str, _Top] = field(default_factory=dict)
    truths: dict[int, _Truth] = field(default_factory=dict)

    def one(self, row: Row) -> Row:
        """The one object for all rows that equal this one."""
        return self.rows.setdefault(row, row)


def _members(conversation: str) -> tuple[str, ...]:
    kind, _, rest = conversation.partition(":")
    return tuple(rest.split(":")) if kind in ("d", "u") else ()


class _Run:
    """Takes the lines one by one."""

    def __init__(self) -> None:
        self._conversations: dict[str, _Conversation] = {}
        self._processes: dict[str, _Process] = {}
        self._restores: list[Restored] = []
        self._epoch = 0
        self._forgets = 0  # the last line of a fault that may have a broker forget
        self._findings: dict[Finding, None] = {}
        self._number = 0
        self._readers: dict[type, Callable[..., None]] = {
            Start: self._start,
            Invoke: self._invoke,
            Taken: self._taken,
            Ok: self._ok,
            Fail: self._fail,
            Info: self._info,
            Seen: self._seen,
            Begun: self._begun,
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
            [self._epoch, *(truth for log in self._conversations.values() for truth in log.truths)]
        )
        if epochs > 1 + len(self._restores):
            raise ValueError(f"epoch {self._epoch} ended, but no line says which backup was restored")
        tellers: dict[str, set[tuple[str, bool]]] = {}
        for log in self._conversations.values():
            for process, fresh in log.held:
                tellers.setdefault(_user(process), set()).add((process, fresh))
        sent = accepted = stored = 0
        differing: set[str] = set()
        unseen: set[str] = set()
        for name in sorted(self._conversations):
            log = self._conversations.pop(name)
            case = _Case(log, [_Cut.by(restore, name) for restore in self._restores], forgets=self._forgets)
            case.judge([teller for user in log.members for teller in tellers.get(user, ())])
            self._findings |= case.findings
            if case.differs:
                differing.add(name)
            sent += len(case.messages)
            accepted += sum(any(sent.answers for sent in sents) for sents in case.messages.values())
            stored += len(case.end)
            if case.end:
                unseen.update(
                    member for member in log.members if not any(f for _, f in tellers.get(member, ()))
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
        process.ordered, process.keeps = line.ordered, line.keeps
        process.life += 1
        process.again = process.last

    def _invoke(self, line: Invoke) -> None:
        process = self._process(line.process)
        names = self._conversation(line.conversation).sent.setdefault(line.process, {})
        sent = names.get(line.name)
        if sent is None:
            names[line.name] = _Sent((line.value,), self._number, self._number, process.life, process.ordered)
            return
        if line.value not in sent.values:
            sent.values += (line.value,)
        if sent.life != process.life and not sent.kept and not sent.answered:
            sent.placed, sent.life = self._number, process.life

    def _message(self, line: Taken | Ok | Fail | Info) -> _Sent | None:
        """What the line answers; None, and a finding, if its process never sent such a thing."""
        sent = self._conversation(line.conversation).sent.get(line.process, {}).get(line.name)
        if sent is None:
            said = type(line).__name__.lower()
            what = f"{line.process} was told {said} of {line.name!r}, which it never sent"
            self._find(Kind.PHANTOM, line.conversation, what)
        return sent

    def _taken(self, line: Taken) -> None:
        if (sent := self._message(line)) is not None:
            sent.taken = self._number
            sent.kept |= self._process(line.process).keeps

    def _ok(self, line: Ok) -> None:
        if (sent := self._message(line)) is not None:
            sent.answered = sent.answered or self._number
            if (line.seq, line.id) not in sent.answers:
                sent.answers += ((line.seq, line.id),)

    def _fail(self, line: Fail) -> None:
        if (sent := self._message(line)) is not None:
            sent.refusals += ((line.code, sent.values),)

    def _info(self, line: Info) -> None:
        if line.answered and (sent := self._message(line)) is not None:
            sent.put_off = True

    def _seen(self, line: Seen) -> None:
        process = self._process(line.process)
        log = self._conversation(line.conversation)
        row = log.one(line.row)
        showings = log.seen.setdefault(line.process, [])
        if not showings:
            showings.append(_Showing(process.life, self._epoch))
        showing = showings[-1]
        if showing.rows and showing.rows[-1] is row and process.again == (log.name, row):
            # A device that is killed may not have finished the last event that it was shown.
            process.again = None
        else:
            if showing.life != process.life and self._was_cut(log.name, showing):
                # Begun anew and killed before it could say so.
                showing = _Showing(process.life, self._epoch)
                showings.append(showing)
            showing.rows.append(row)
        showing.life, showing.epoch = process.life, self._epoch
        process.last = log.name, row

    def _was_cut(self, conversation: str, showing: _Showing) -> bool:
        """Whether a restore has taken away some of what was shown, since it was."""
        last = showing.rows[-1].seq if showing.rows else 0
        cuts = [_Cut.by(restore, conversation) for restore in self._restores[showing.epoch :]]
        return any(cut.seq < last or cut.epoch < number for number, cut in enumerate(cuts, showing.epoch))

    def _begun(self, line: Begun) -> None:
        process = self._process(line.process)
        log = self._conversation(line.conversation)
        log.seen.setdefault(line.process, []).append(_Showing(process.life, self._epoch))
        log.begun.append((line.process, self._epoch))
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
        if (
            line.user != self._process(line.process).user
        ):  # its own marks are a device's before they are stored
            log.told[line.user] = log.told.get(line.user, _Top()).raised(line)

    def _held(self, line: Held) -> None:
        log = self._conversation(line.conversation)
        log.held[line.process, line.fresh] = line.base, tuple(map(log.one, line.rows))

    def _stored(self, line: Stored) -> None:
        log = self._conversation(line.conversation)
        if line.epoch in log.truths:
            raise ValueError(f"{log.name} was read twice at the end of epoch {line.epoch}")
        told = log.told if line.epoch == self._epoch else {}
        log.truths[line.epoch] = _Truth(tuple(map(log.one, line.rows)), line.marks, told)
        log.told = {}

    def _restored(self, line: Restored) -> None:
        if line.epoch != self._epoch:
            raise ValueError(f"epoch {line.epoch} is said to end while epoch {self._epoch} lasts")
        if line.taken is not None and not 0 <= line.taken <= line.epoch:
            raise ValueError(f"epoch {line.epoch} ended with a backup of epoch {line.taken}")
        self._restores.append(line)
        self._epoch = line.epoch + 1
        for log in self._conversations.values():
            log.told = {}

    def _fault(self, line: Fault) -> None:
        if line.forgets:
            self._forgets = self._number


# --- what is judged


class _Case:
    """One conversation. `cuts` are what the restores did to it, each of which ended an epoch."""

    def __init__(self, log: _Conversation, cuts: Sequence[_Cut], *, forgets: int) -> None:
        self.findings: dict[Finding, None] = {}
        self.differs = False
        self._log = log
        self._cuts = cuts
        self._forgets = forgets
        self._truths = [log.truths.get(epoch, _Truth()) for epoch in range(len(cuts) + 1)]
        self._logs = [{row.seq: row for row in truth.rows} for truth in self._truths]
        self.end = self._logs[-1]
        self._kept = [
            {seq: row for seq, row in self._logs[cut.epoch].items() if seq <= cut.seq} for cut in cuts
        ]
        # By restore: what the epoch had at its end, and the backup had not.
        self._undone = [
            [row for seq, row in rows.items() if kept.get(seq) is not row]
            for rows, kept in zip(self._logs, self._kept, strict=False)
        ]
        self._top = max((seq for rows in self._logs for seq in rows), default=0)
        self._known: set[Row] = set()  # rows of any epoch
        self._places: dict[tuple[str, str], list[Row]] = {}  # by sender and name
        for truth in self._truths:
            for row in truth.rows:
                if row not in self._known:
                    self._known.add(row)
                    self._places.setdefault((row.sender, row.name), []).append(row)
        self.messages: dict[tuple[str, str], list[_Sent]] = {}  # by user and name
        for process, names in log.sent.items():
            user = _user(process)
            for name, sent in names.items():
                self.messages.setdefault((user, name), []).append(sent)

    def judge(self, tellers: Iterable[tuple[str, bool]]) -> None:
        """`tellers`: the members' devices that have said what they hold, fresh or not."""
        self._judge_stores()
        self._judge_restores()
        self._judge_answers()
        self._judge_own_order()
        self._judge_seen()
        for process, fresh in sorted(tellers):
            if (process, fresh) not in self._log.held and self.end:
                self.differs = True
                whose = _device(process, fresh=fresh)
                self._find(Kind.LOST, f"{whose} does not know it, and the store has {len(self.end)} rows")
        for (process, fresh), (base, rows) in self._log.held.items():
            self._judge_held(process, fresh, base, rows)
        self._judge_marks()

    def _find(self, kind: Kind, what: str) -> None:
        self.findings[Finding(kind, self._log.name, what)] = None

    # --- the store

    def _judge_stores(self) -> None:
        for truth in self._truths:
            rows = sorted(truth.rows, key=lambda row: row.seq)
            self._judge_rows("the store", rows, after=0)
            newest = None
            for row in rows:
                if newest is not None and row.id <= newest.id:
                    self._find(Kind.DISORDER, f"the store has {_at(row)} behind {_at(newest)}: ids grow")
                newest = row
        for row in self._known:
            self._judge_origin("the store", row)

    def _judge_restores(self) -> None:
        """What a backup held is in the store that was put back to it, and in nobody else's place."""
        for cut, kept, after in zip(self._cuts, self._kept, self._logs[1:], strict=True):
            if cut.seq > (end := max(self._logs[cut.epoch], default=0)):
                what = (
                    f"a backup of epoch {cut.epoch} went up to seq {cut.seq}, the store at its end to {end}"
                )
                self._find(Kind.LOST, what)
            for seq, row in kept.items():
                if after.get(seq) is row:
                    continue
                kind = Kind.REWRITTEN if seq in after else Kind.LOST
                now = _at(after[seq]) if seq in after else "nothing"
                self._find(kind, f"a backup had {_at(row)}, and after its restore there is {now}")
        if self._cuts:
            names: dict[tuple[int, int], Row] = {}
            for row in self._known:
                other = names.setdefault((row.seq, row.id), row)
                if other is not row:
                    what = f"{_at(row)} and {_at(other)} have one id, and no cursor tells them apart"
                    self._find(Kind.REWRITTEN, what)

    def _judge_marks(self) -> None:
        earlier: dict[str, tuple[int, int]] = {}
        for truth, rows in zip(self._truths, self._logs, strict=True):
            head = max(rows, default=0)
            marks = {user: (delivered, read) for user, delivered, read in truth.marks}
            for user, (delivered, read) in marks.items():
                if max(delivered, read) > head:
                    what = f"{user}'s marks are {delivered} delivered, {read} read, and the head is {head}"
                    self._find(Kind.MARK_BACK, what)
                if user not in self._log.members:
                    self._find(Kind.PHANTOM, f"{user} has marks, and is no member")
            for user, top in truth.told.items():
                now, old = marks.get(user, (0, 0)), earlier.get(user, (0, 0))
                # Marks of before a restore may be told after it, by a queue or by a device itself.
                if top.delivered > max(now[0], old[0]) or top.read > max(now[1], old[1]):
                    self._find(
                        Kind.MARK_BACK,
                        f"{top.process} was told {user}'s marks {top.delivered} delivered, {top.read} read,"
                        f" and the store has {now[0]}, {now[1]}",
                    )
            for user, (delivered, read) in marks.items():
                old = earlier.get(user, (0, 0))
                earlier[user] = max(old[0], delivered), max(old[1], read)

    # --- rows, wherever they are

    def _judge_rows(self, who: str, rows: Sequence[Row], after: int | None) -> bool:
        """Whether `rows` follow each other (from `after` on, if it is known), and each is there once."""
        before = len(self.findings)
        last = rows[0].seq - 1 if after is None and rows else after or 0
        for row in rows:
            if row.seq > last + 1:
                self._find(Kind.HOLE, f"{who} goes on behind seq {last} with {_at(row)}")
            elif row.seq < last:
                self._find(Kind.DISORDER, f"{who} goes back from seq {last} to {_at(row)}")
            last = max(last, row.seq)
        for row, other in _repeated(rows):
            again = f"{_at(row)} after {_at(other)}" if row is not other else f"{_at(row)} twice"
            self._find(Kind.DOUBLED, f"{who} has {again}")
        return len(self.findings) == before

    def _judge_origin(self, who: str, row: Row) -> None:
        """Whether somebody sent it as it is."""
        sents = self.messages.get((row.sender, row.name), [])
        if not any(row.value in sent.values for sent in sents):
            said = f"sent as {_values(sents)}" if sents else "sent here by nobody"
            self._find(Kind.PHANTOM, f"{who} has {_at(row)}, {row.value!r}: {said}")
        elif row.sender not in self._log.members:
            self._find(Kind.PHANTOM, f"{who} has {_at(row)}, whose sender is no member")

    def _judge_unknown(self, who: str, rows: Iterable[Row]) -> None:
        """Rows that a device has and that no epoch's store had."""
        for row in rows:
            if row in self._known:
                continue
            self._judge_origin(who, row)
            there = self._at_seq(row.seq)
            if there is not None:
                self._find(Kind.REWRITTEN, f"{who} has {_at(row)}, and the store {_at(there)}")
            elif row.seq > self._top:
                what = f"{who} has {_at(row)}, and no store ever had more than seq {self._top}"
                self._find(Kind.PHANTOM, what)
            else:
                self._find(Kind.LOST, f"{who} has {_at(row)}, and the store has nothing there")

    def _at_seq(self, seq: int) -> Row | None:
        return next((rows[seq] for rows in reversed(self._logs) if seq in rows), None)

    # --- answers

    def _judge_answers(self) -> None:
        for process, names in self._log.sent.items():
            user = _user(process)
            for name, sent in names.items():
                places = self._places.get((user, name), [])
                for seq, id in sent.answers:
                    if not any(
                        place.seq == seq and place.id == id and place.value in sent.values for place in places
                    ):
                        self._judge_false_answer(process, name, seq, id, sent)
                for code, values in sent.refusals:
                    self._judge_refusal(process, name, code, values, places)
                if sent.taken and not sent.answers and not sent.refusals:
                    self._judge_taken(process, name, sent, places)
        for (user, name), sents in self.messages.items():
            if len(answers := list(dict.fromkeys(answer for sent in sents for answer in sent.answers))) > 1:
                self._judge_changed(user, name, answers)

    def _judge_false_answer(self, process: str, name: str, seq: int, id: int, sent: _Sent) -> None:
        """An `Accepted` that tells a place where the message is not, and never was."""
        there = self._at_seq(seq)
        told = f"{process} was told that {name!r} is at seq {seq} (id {id})"
        if there is not None:
            self._find(Kind.REWRITTEN, f"{told}, and the store has {_at(there)}")
        elsewhere = [
            place for place in self._places.get((_user(process), name), []) if place.value in sent.values
        ]
        if not elsewhere:
            self._find(Kind.LOST, f"{told}, and no store has {sent.values[-1]!r} anywhere")
        elif there is None:
            kind = Kind.PHANTOM if seq > self._top else Kind.LOST
            self._find(kind, f"{told}, and the store has nothing there, but {_at(elsewhere[0])}")

    def _judge_refusal(
        self, process: str, name: str, code: str, values: tuple[str, ...], places: Sequence[Row]
    ) -> None:
        """A refusal is of one of `values`. If there are several, nobody knows of which."""
        stored = [place for place in places if values == (place.value,)]
        if code == "conflict" and any(value != place.value for place in places for value in values):
            return  # the other value is stored, or was before a restore
        if stored:
            what = f"{process} was refused {name!r} ({code}), and the store has {_at(stored[0])}"
            self._find(Kind.PHANTOM, what)
        elif code == "conflict":
            what = f"{process} was refused {name!r} for a conflict, and no store has anything by that name"
            self._find(Kind.PHANTOM, what)

    def _judge_taken(self, process: str, name: str, sent: _Sent, places: Sequence[Row]) -> None:
        if any(place.value in sent.values for place in places):
            return  # it was carried out, though a restore may have undone that
        if sent.kept:
            self._find(Kind.FORGOTTEN, f"{name!r} was in {process}'s outbox, and is in no store, nor refused")
        elif sent.taken > self._forgets and not (sent.put_off or places):
            what = f"{name!r} of {process} was taken over by a broker, and is in no store, nor refused"
            self._find(Kind.FORGOTTEN, what)

    def _judge_changed(self, user: str, name: str, answers: Sequence[tuple[int, int]]) -> None:
        """Each answer but one must have been the truth of epochs that a restore has ended."""
        epochs: list[int] = []
        for seq, id in answers:
            held = [
                epoch
                for epoch, rows in enumerate(self._logs)
                if (row := rows.get(seq)) is not None and (row.id, row.sender, row.name) == (id, user, name)
            ]
            epochs += held or [-1, -1]
        if len(set(epochs)) < len(epochs):
            told = ", then ".join(f"seq {seq} (id {id})" for seq, id in answers)
            self._find(Kind.CHANGED_ANSWER, f"{user} was told that {name!r} is at {told}")

    # --- order

    def _judge_own_order(self) -> None:
        """A device's own messages, in every epoch's store."""
        # A message that a restore has taken away may be sent again, and then comes behind later ones.
        undone = {(row.sender, row.name) for rows in self._undone for row in rows}
        for truth in self._truths:
            # Of a message that is there twice, which is another finding, the first place counts.
            rows = sorted(truth.rows, reverse=True)
            places = {key: row for row in rows if (key := (row.sender, row.name)) not in undone}
            for process, names in self._log.sent.items():
                self._judge_order_of(process, names, places)

    def _judge_order_of(
        self, process: str, names: Mapping[str, _Sent], places: Mapping[tuple[str, str], Row]
    ) -> None:
        user = _user(process)
        moments: list[tuple[int, bool, Row]] = []
        for name, sent in names.items():
            row = places.get((user, name))
            if row is None or row.value not in sent.values:
                continue
            if sum(row.value in message.values for message in self.messages[user, name]) > 1:
                continue  # another device of the user has sent it, too: whose order it is in, nobody knows
            moments.append((sent.first, False, row))
            if sent.ordered:
                moments.append((sent.placed, True, row))
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

    def _judge_seen(self) -> None:
        for process, showings in self._log.seen.items():
            for showing in showings:
                self._judge_rows(f"what {process} saw", showing.rows, after=None)
                self._judge_unknown(process, showing.rows)
                self._judge_one_log(process, showing.rows)
            self._judge_member(process, any(showing.rows for showing in showings))
        for process, epoch in self._log.begun:
            if not any(self._undone[:epoch]):
                what = f"{process} took the log for another one, and no restore had taken anything away"
                self._find(Kind.REWRITTEN, what)

    def _judge_one_log(self, process: str, rows: Sequence[Row]) -> None:
        """Who does not begin anew sees one log, not the beginning of one and the end of another."""
        if len(self._logs) == 1:
            return
        known = [row for row in rows if row in self._known]
        if not any(all(log.get(row.seq) is row for row in known) for log in reversed(self._logs)):
            what = f"{process} saw {_at(known[0])} to {_at(known[-1])} as one log, and no epoch had that log"
            self._find(Kind.DIFFERS, what)

    def _judge_held(self, process: str, fresh: bool, base: int, rows: Sequence[Row]) -> None:
        who = _device(process, fresh=fresh)
        fine = self._judge_rows(f"what {who} holds", rows, after=base)
        self._judge_unknown(who, rows)
        other = [row for row in rows if self.end.get(row.seq) is not row]
        if other:
            there = self.end.get(other[0].seq)
            truth = "nothing" if there is None else _at(there)
            more = f", and {len(other) - 1} more like it" if other[1:] else ""
            self._find(Kind.DIFFERS, f"{who} holds {_at(other[0])}, the store {truth}{more}")
        head = max(self.end, default=0)
        if base > head:
            self._find(Kind.DIFFERS, f"{who} holds what follows seq {base}, and the store ends at {head}")
        has = {row.seq for row in rows}
        begin = 0 if fresh else base
        lacking = sorted(seq for seq in self.end if seq > begin and seq not in has)
        for first, last in _runs(lacking):
            to = f" to {_at(self.end[last])}" if last > first else ""
            self._find(Kind.LOST, f"{who} does not have {_at(self.end[first])}{to}")
        if other or lacking or base > head or not fine:
            self.differs = True
        self._judge_member(process, bool(rows))

    def _judge_member(self, process: str, has_rows: bool) -> None:
        if has_rows and _user(process) not in self._log.members:
            self._find(Kind.PHANTOM, f"{process} has what its user is no member of")


# --- words


def _user(process: str) -> str:
    return process.partition("@")[0]


def _device(process: str, *, fresh: bool) -> str:
    return f"{process}, fresh," if fresh else process


def _at(row: Row) -> str:
    return f"seq {row.seq} (id {row.id}, {row.name!r} of {row.sender})"


def _values(sents: Iterable[_Sent]) -> str:
    return ", ".join(repr(value) for sent in sents for value in sent.values)


def _runs(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of numbers that follow each other."""
    for _, run in groupby(enumerate(seqs), lambda numbered: numbered[1] - numbered[0]):
        numbers = [seq for _, seq in run]
        yield numbers[0], numbers[-1]


def _repeated(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each row that is at an earlier one's seq, or is the same message, or has the same value."""
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
