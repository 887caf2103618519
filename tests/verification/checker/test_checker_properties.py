"""A correct history has no findings; a history with one mistake has the matching one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.verification.checker.builder import TALK, HistoryBuilder
from tests.verification.checker.check import Kind, check
from tests.verification.checker.history import (
    Fail,
    Held,
    Invoke,
    Line,
    Marked,
    Ok,
    Queued,
    Row,
    Seen,
    Start,
    Stored,
)

PHONES = ("alice@phone", "bob@phone")  # with an outbox and ordered messages
DEVICES = (*PHONES, "alice@plain", "bob@plain")
TALKS = (TALK, "u:alice", "u:bob")


class World(HistoryBuilder):
    """A system that does everything right. Numbers choose among the available options."""

    def __init__(self) -> None:
        super().__init__()
        self._names = 0
        self._sent: dict[tuple[str, str], list[str]] = {}  # by device and conversation
        self._under_way: dict[tuple[str, str], list[str]] = {}
        self._unanswered: list[tuple[str, str, Row]] = []
        self._base: dict[tuple[str, str], int] = {}
        self._copies: dict[tuple[str, str], list[Row]] = {}
        self._last: dict[str, tuple[str, Row]] = {}
        self._backups: list[tuple[int, dict[str, list[Row]]]] = []
        for device in DEVICES:
            self._restart(device)

    def _restart(self, device: str) -> None:
        self.start(device, ordered=device in PHONES, durable=device in PHONES)

    def places(self) -> list[tuple[str, str]]:
        """Every device with each of its conversations."""
        return [
            (device, talk) for device in DEVICES for talk in TALKS if device.split("@")[0] in talk.split(":")
        ]

    # --- events

    def post(self, place: int, _: int) -> None:
        device, talk = self._place(place)
        self._names += 1
        name = f"m{self._names}"
        self._sent.setdefault((device, talk), []).append(name)
        self._under_way.setdefault((device, talk), []).append(name)
        self.invoke(device, name, talk)
        self.queue(device, name, talk)

    def commit(self, place: int, which: int) -> None:
        device, talk = self._place(place)
        names = self._under_way.get((device, talk), [])
        if names:
            name = names.pop(0 if device in PHONES else which % len(names))
            self._unanswered.append((device, talk, self.store(device, name, talk)))

    def answer(self, which: int, again: int) -> None:
        """Answers a stored message, possibly late, and possibly again later."""
        if self._unanswered:
            number = which % len(self._unanswered)
            device, talk, row = self._unanswered[number] if again % 2 else self._unanswered.pop(number)
            self.ok(device, row, talk)

    def repeat(self, place: int, which: int) -> None:
        device, talk = self._place(place)
        names = self._sent.get((device, talk))
        if not names:
            return
        name = names[which % len(names)]
        self.invoke(device, name, talk)
        if name in self._under_way.get((device, talk), []):
            return
        user = device.split("@")[0]
        rows = [row for row in self.logs.get(talk, []) if (row.sender, row.name) == (user, name)]
        row = rows[0] if rows else self.store(device, name, talk)
        self._unanswered.append((device, talk, row))

    def refuse(self, place: int, _: int) -> None:
        device, talk = self._place(place)
        self._names += 1
        self.invoke(device, f"m{self._names}", talk)
        self.queue(device, f"m{self._names}", talk)
        self.fail(device, f"m{self._names}", conversation=talk)

    def conflict(self, place: int, which: int) -> None:
        device, talk = self._place(place)
        user = device.split("@")[0]
        names = [row.name for row in self.logs.get(talk, []) if row.sender == user]
        if names:
            name = names[which % len(names)]
            self._names += 1
            self.invoke(f"{user}@other", name, talk, value=f"another {self._names}")
            self.fail(f"{user}@other", name, "conflict", talk)

    def show(self, place: int, count: int) -> None:
        """Shows a device the next events, restarting its log if the store's was replaced."""
        device, talk = self._place(place)
        log = self.logs.get(talk, [])
        copy = self._copies.setdefault((device, talk), [])
        base = self._base.setdefault((device, talk), 0 if count % 2 else len(log))
        if copy != log[base : base + len(copy)] or base > len(log):
            self.restart_log(device, talk)
            base = self._base[device, talk] = min(count, len(log))
            copy.clear()
        for row in log[base + len(copy) :][: 1 + count]:
            copy.append(row)
            self.see(device, row, conversation=talk)
            self._last[device] = talk, row

    def converse(self, place: int, who: int) -> None:
        """Sends, stores and answers a message, and shows it to a device."""
        self.post(place, 0)
        self.commit(place, 0)
        self.answer(0, 0)
        self.show(who, 99)

    def kill(self, which: int, again: int) -> None:
        device = DEVICES[which % len(DEVICES)]
        self._restart(device)
        if again % 2 and device in self._last:
            talk, row = self._last[device]
            if self._copies[device, talk][-1:] == [row]:
                self.see(device, row, conversation=talk)

    def raise_marks(self, place: int, seq: int) -> None:
        _, talk = self._place(place)
        user = talk.split(":")[1 + place % (talk.count(":"))]
        head = len(self.logs.get(talk, []))
        delivered, read = self.marks.setdefault(talk, {}).get(user, (0, 0))
        self.marks[talk][user] = max(delivered, min(seq + 1, head)), max(read, min(seq, head))

    def tell_marks(self, place: int, _: int) -> None:
        device, talk = self._place(place)
        for user, marks in self.marks.get(talk, {}).items():
            self.mark(device, user, *marks, conversation=talk)

    def back_up(self, _: int, __: int) -> None:
        self._backups.append((self.epoch, {talk: list(log) for talk, log in self.logs.items()}))

    def put_back(self, which: int, _: int) -> None:
        if self._backups:
            epoch, logs = self._backups[which % len(self._backups)]
            self.restore({talk: len(log) for talk, log in logs.items() if log}, epoch)
            self.logs = {talk: list(logs.get(talk, [])) for talk in self.logs}

    def _place(self, number: int) -> tuple[str, str]:
        places = self.places()
        return places[number % len(places)]

    # --- the beginning and the end

    def begin_well(self) -> None:
        """Creates a few messages in each conversation, which every backup contains."""
        for number, (device, talk) in enumerate(self.places()):
            for _ in range(3 if device in PHONES else 1):
                self.post(number, 0)
                self.commit(number, 0)
                self.answer(0, 0)
            self.show(number, 99)
            self.raise_marks(number, 2)
            for other in PHONES:
                if other.split("@")[0] in talk.split(":"):
                    self.tell_marks(self.places().index((other, talk)), 0)
        self.back_up(0, 0)

    def come_to_rest(self) -> None:
        for number, place in enumerate(self.places()):
            while self._under_way.get(place):
                self.commit(number, 0)
        for number, (device, talk) in enumerate(self.places()):
            self.show(number, 99)
            self.hold(
                device,
                self._copies[device, talk],
                base=self._base[device, talk],
                conversation=talk,
            )
        while self._unanswered:
            self.answer(0, 0)


ACTS = (
    World.post, World.post, World.commit, World.commit, World.answer, World.answer, World.repeat,
    World.refuse, World.conflict, World.show, World.show, World.converse, World.converse, World.converse,
    World.kill, World.raise_marks, World.tell_marks, World.back_up, World.put_back, World.put_back,
)  # fmt: skip

number = st.integers(0, 11)


@st.composite
def histories(draw: st.DrawFn) -> list[Line]:
    world = World()
    world.begin_well()
    for act, one, other in draw(st.lists(st.tuples(st.sampled_from(ACTS), number, number), max_size=50)):
        act(world, one, other)
    world.come_to_rest()
    world.end()
    return world.lines


# --- changes


def last_stored(lines: list[Line]) -> dict[str, int]:
    """The index of each conversation's last `Stored` line."""
    return {line.conversation: at for at, line in enumerate(lines) if isinstance(line, Stored)}


def with_rows(lines: list[Line], talk: str, change: Callable[[tuple[Row, ...]], tuple[Row, ...]]) -> None:
    """Changes the final rows of a conversation in the store."""
    at = last_stored(lines)[talk]
    line = lines[at]
    assert isinstance(line, Stored)
    lines[at] = replace(line, rows=change(line.rows))


def neighbours(lines: list[Line]) -> Iterator[tuple[int, int]]:
    """Indexes of two consecutive `Seen` lines of a process, of consecutive events."""
    before: dict[str, int] = {}
    for at, line in enumerate(lines):
        if isinstance(line, Seen):
            last = lines[before[line.process]] if line.process in before else None
            if (
                isinstance(last, Seen)
                and last.conversation == line.conversation
                and last.row.seq + 1 == line.row.seq
            ):
                yield before[line.process], at
        before[line.process] = at


def lose(lines: list[Line], talk: str) -> None:
    with_rows(lines, talk, lambda rows: rows[:-1])


def lose_on_a_device(lines: list[Line], talk: str) -> None:
    at = next(
        at
        for at, line in enumerate(lines)
        if isinstance(line, Held) and line.conversation == talk and line.rows
    )
    line = lines[at]
    assert isinstance(line, Held)
    lines[at] = replace(line, rows=line.rows[:-1])


def forget_on_a_device(lines: list[Line], talk: str) -> None:
    lines[:] = [
        line for line in lines if not (isinstance(line, Held) and line.fresh and line.conversation == talk)
    ]
    if talk != TALK:  # a device without any record does not count
        user = talk.split(":")[1]
        assert any(isinstance(line, Held) and line.fresh and line.process.startswith(user) for line in lines)


def store_twice(lines: list[Line], talk: str) -> None:
    def change(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return (*rows, rows[0]._replace(seq=rows[-1].seq + 1, id=rows[-1].id + 1))

    with_rows(lines, talk, change)


def see_twice(lines: list[Line], talk: str) -> None:
    at = next(at for at, _ in neighbours(lines) if lines[at].conversation == talk)  # type: ignore[union-attr]
    lines[at:at] = [lines[at]] * 2


def see_the_wrong_way_round(lines: list[Line], talk: str) -> None:
    one, other = next(pair for pair in neighbours(lines) if lines[pair[0]].conversation == talk)  # type: ignore[union-attr]
    lines[one], lines[other] = lines[other], lines[one]


def draw_ids_badly(lines: list[Line], talk: str) -> None:
    with_rows(lines, talk, lambda rows: (rows[0]._replace(id=rows[1].id + 1), *rows[1:]))


def overtake(lines: list[Line], talk: str) -> None:
    """Swaps the first two messages, which a phone sent and every backup has."""

    def change(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        one, other = rows[:2]
        return (other._replace(seq=one.seq, id=one.id), one._replace(seq=other.seq, id=other.id), *rows[2:])

    with_rows(lines, talk, change)


def leave_a_hole(lines: list[Line], talk: str) -> None:
    with_rows(lines, talk, lambda rows: (rows[0], *rows[2:]))


def pass_over(lines: list[Line], talk: str) -> None:
    pairs = list(neighbours(lines))
    first = next(
        other
        for one, other in pairs
        if lines[one].conversation == talk and any(pair[0] == other for pair in pairs)  # type: ignore[union-attr]
    )
    del lines[first]


def hold_another(lines: list[Line], talk: str) -> None:
    at = next(
        at
        for at, line in enumerate(lines)
        if isinstance(line, Held) and line.conversation == talk and line.rows
    )
    line = lines[at]
    assert isinstance(line, Held)
    last = line.rows[-1]
    lines[at] = replace(line, rows=(*line.rows[:-1], last._replace(id=last.id + 1)))


def invent(lines: list[Line], talk: str) -> None:
    """Removes all invocations of the last message."""
    line = lines[last_stored(lines)[talk]]
    assert isinstance(line, Stored)
    row = line.rows[-1]
    lines[:] = [line for line in lines if not (isinstance(line, Invoke) and line.value == row.value)]


def refuse_what_is_stored(lines: list[Line], talk: str) -> None:
    at, sent = next(
        (at, line) for at, line in enumerate(lines) if isinstance(line, Invoke) and line.conversation == talk
    )
    lines.insert(at + 1, Fail(sent.process, sent.at, talk, sent.name, "invalid"))


def rewrite(lines: list[Line], talk: str) -> None:
    at, line = next(
        (at, line) for at, line in enumerate(lines) if isinstance(line, Seen) and line.conversation == talk
    )
    lines[at] = replace(line, row=line.row._replace(id=line.row.id + 1))


def put_marks_back(lines: list[Line], talk: str) -> None:
    at, line = next(
        (at, line)
        for at, line in enumerate(lines)
        if isinstance(line, Marked) and line.conversation == talk and line.delivered
    )
    lines.insert(at + 1, replace(line, delivered=line.delivered - 1))


def mark_what_does_not_exist(lines: list[Line], talk: str) -> None:
    at = last_stored(lines)[talk]
    line = lines[at]
    assert isinstance(line, Stored)
    lines[at] = replace(line, marks=((talk.split(":")[1], len(line.rows) + 1, 0),))


def answer_otherwise(lines: list[Line], talk: str) -> None:
    at, line = next(
        (at, line) for at, line in enumerate(lines) if isinstance(line, Ok) and line.conversation == talk
    )
    lines.insert(at, replace(line, id=line.id + 1))


def forget(lines: list[Line], talk: str) -> None:
    phone = f"{talk.split(':')[1]}/old"
    lines[:0] = [
        Start(phone, 0.0, ordered=True, durable=True),
        Invoke(phone, 0.0, talk, "old", "an old message"),
        Queued(phone, 0.0, talk, "old"),
    ]


class Change(NamedTuple):
    make: Callable[[list[Line], str], None]
    kind: Kind


CHANGES = (
    Change(lose, Kind.LOST),
    Change(lose_on_a_device, Kind.LOST),
    Change(forget_on_a_device, Kind.LOST),
    Change(store_twice, Kind.DOUBLED),
    Change(see_twice, Kind.DOUBLED),
    Change(see_the_wrong_way_round, Kind.DISORDER),
    Change(draw_ids_badly, Kind.DISORDER),
    Change(overtake, Kind.DISORDER),
    Change(leave_a_hole, Kind.HOLE),
    Change(pass_over, Kind.HOLE),
    Change(hold_another, Kind.DIFFERS),
    Change(invent, Kind.PHANTOM),
    Change(refuse_what_is_stored, Kind.PHANTOM),
    Change(rewrite, Kind.REWRITTEN),
    Change(put_marks_back, Kind.MARK_BACK),
    Change(mark_what_does_not_exist, Kind.MARK_BACK),
    Change(answer_otherwise, Kind.CHANGED_ANSWER),
    Change(forget, Kind.FORGOTTEN),
)


def written(lines: list[Line]) -> str:
    return "\n".join(map(str, lines))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_a_correct_history_has_no_findings(lines: list[Line]) -> None:
    verdict = check(lines)
    assert not verdict.findings, written(lines)
    assert not verdict.unseen
    assert not verdict.differing


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.make.__name__.replace("_", " "))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines=histories(), talk=st.sampled_from(TALKS))
def test_a_single_mistake_in_a_correct_history_is_found(change: Change, lines: list[Line], talk: str) -> None:
    change.make(lines, talk)
    found = {finding.kind for finding in check(lines).findings if finding.conversation == talk}
    assert change.kind in found, written(lines)
