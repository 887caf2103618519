"""Each event is applied once and in order, in whatever order events arrive."""

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.reorder import DIVERGED, InOrder, Reorder
from imqtt.core.view import EMPTY
from imqtt.model import Content, Event, Id, Position


def event(seq: int, id_: int = 0) -> Event:
    return Event("d:alice:bob", seq, Id(id_ or seq * 10), 0, "bob", "phone", f"m{seq}", Content(text="hi"))


def behind(seq: int, id_: int, previous: int) -> Event:
    """A live event, which names the previous one."""
    return msgspec.structs.replace(event(seq, id_), previous=Id(previous))


def live(log: list[Event]) -> list[Event]:
    """The events of a log as they are sent live."""
    return [behind(now.seq, now.id, before.id) for before, now in pairwise([event(0), *log])]


def log(length: int) -> list[Event]:
    return [event(seq) for seq in range(1, length + 1)]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[int]]:
    """The length of a log, and its seqs in any order, with repetitions."""
    length = draw(st.integers(1, 30))
    seqs = list(range(1, length + 1))
    repeated = draw(st.lists(st.sampled_from(seqs), max_size=30))
    return length, draw(st.permutations(seqs + repeated))


@given(arrivals())
def test_any_permutation_with_duplicates_is_applied_once_in_order(arrived: tuple[int, list[int]]) -> None:
    length, seqs = arrived
    order = Reorder()
    applied = [new for seq in seqs for new in order.offer(event(seq), held=seq * 10).events]
    assert applied == log(length)
    assert order.cursor == Position(length, Id(length * 10))
    assert not order.buffered


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 2), st.integers(-10, 20)), min_size=1), st.data())
def test_extending_equals_offering_each_event_with_its_predecessor(
    start: int, steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    seq, last = start, start * 10
    events: list[Event] = []
    for by, more in steps:
        seq, last = seq + by, max(1, last + more)
        events.append(event(seq, last))
    events[0] = behind(events[0].seq, events[0].id, data.draw(st.sampled_from([0, start * 10, 99])))
    extended, offered = (Reorder(Position(start, Id(start * 10))) for _ in range(2))
    if data.draw(st.booleans(), "an event waits"):
        extended.offer(event(start + 2))
        offered.offer(event(start + 2))
    before, waiting = extended.cursor, extended.buffered
    linked = [events[0], *(behind(now.seq, now.id, then.id) for then, now in pairwise(events))]
    applied = [new for each in linked for new in offered.offer(each).events]
    if extended.extend(events):
        assert applied == linked
        assert (extended.cursor, extended.buffered) == (offered.cursor, offered.buffered)
        assert not offered.in_doubt
    else:
        assert (extended.cursor, extended.buffered) == (before, waiting)


@given(arrivals())
def test_a_log_is_extended_by_the_events_after_its_cursor(arrived: tuple[int, list[int]]) -> None:
    events = log(arrived[0])
    order = Reorder()
    assert all(order.extend(part) for part in (events[:2], events[2:]) if part)
    assert order.cursor == events[-1].position


@given(st.sets(st.integers(1, 40)), st.integers(0, 10), st.randoms())
def test_the_buffer_holds_the_events_after_the_first_missing_one(
    arrived: set[int], start: int, random: object
) -> None:
    seqs = sorted(arrived)
    random.shuffle(seqs)  # type: ignore[attr-defined]
    order = Reorder(Position(start, Id(start * 10)))
    for seq in seqs:
        order.offer(event(seq), held=seq * 10)
    missing = min(set(range(start + 1, 43)) - arrived)
    assert order.cursor.seq == missing - 1
    assert order.buffered == [event(seq) for seq in sorted(arrived) if seq > missing]


@given(arrivals(), st.integers(1, 5))
def test_with_a_small_buffer_a_sync_from_the_cursor_returns_the_rest(
    arrived: tuple[int, list[int]], limit: int
) -> None:
    length, seqs = arrived
    order = Reorder(limit=limit)
    applied: list[Event] = []
    for seq in seqs:
        applied += order.offer(event(seq), held=seq * 10).events
        assert len(order.buffered) <= limit
    for seq in range(order.cursor.seq + 1, length + 1):
        applied += order.offer(event(seq), held=seq * 10).events
    assert applied == log(length)


def test_another_id_at_a_known_seq_reveals_another_log() -> None:
    order = Reorder(Position(5, Id(50)))
    assert not order.offer(event(5)).diverged
    assert not order.offer(event(3), held=30).diverged
    assert order.offer(event(5, 51)).diverged
    assert order.offer(event(3, 60), held=30).diverged  # newer than our last, but earlier in its log
    assert order.offer(event(3, 29), held=30).diverged  # older, from a log whose ids are all lower
    assert order.offer(event(6, 40)).diverged  # older than our last, but later in its log
    assert order.cursor == Position(5, Id(50))


def test_an_event_before_the_devices_base_is_left_to_the_server_to_compare() -> None:
    order = Reorder(Position(5, Id(50)))
    assert order.offer(event(3)) == DIVERGED
    assert order.trust() == InOrder()


def test_a_doubtful_log_does_not_grow_before_the_server_was_asked() -> None:
    order = Reorder(Position(5, Id(50)))
    order.offer(event(5, 51))
    assert order.in_doubt
    assert order.offer(event(6)).events == ()
    assert order.trust() == InOrder((event(6),))
    order.offer(event(6, 61))
    order.offer(event(7))
    assert order.begin(Position(6, Id(61))) == InOrder((event(7),))
    assert not order.in_doubt


def test_buffered_events_of_two_logs_show_the_difference() -> None:
    order = Reorder()
    order.offer(event(3))
    assert order.offer(event(3, 35)).diverged


def test_a_cursor_without_an_id_is_not_compared() -> None:
    order = Reorder(Position(5, Id(0)))
    assert not order.offer(event(5)).diverged
    assert order.offer(event(6)).events == (event(6),)


def test_a_log_begun_at_its_head_returns_the_buffered_events_after_it() -> None:
    order = Reorder()
    for seq in (4, 7, 8, 10):
        order.offer(event(seq))
    assert order.lowest_buffered == 4
    assert order.begin(Position(6, Id(60))) == InOrder((event(7), event(8)))
    assert order.buffered == [event(10)]


def test_an_event_whose_previous_is_not_the_cursor_is_not_applied() -> None:
    order = Reorder(Position(5, Id(50)))
    assert order.offer(behind(6, 61, 51)) == DIVERGED
    assert order.in_doubt
    assert order.cursor == Position(5, Id(50))
    assert order.trust() == InOrder()  # also not later, if the server knows the cursor
    assert order.offer(behind(6, 60, 50)).events == (behind(6, 60, 50),)


def test_an_event_without_previous_is_applied() -> None:
    order = Reorder(Position(5, Id(50)))
    assert order.offer(event(6)).events == (event(6),)
    unplaced = Reorder(Position(5, Id(0)))
    assert unplaced.offer(behind(6, 60, 51)).events == (behind(6, 60, 51),)


def test_a_buffered_event_is_compared_with_its_predecessor() -> None:
    order = Reorder(Position(5, Id(50)))
    for early in (behind(8, 81, 71), behind(7, 71, 61), behind(10, 100, 91)):
        assert order.offer(early) == InOrder()
    assert order.offer(behind(6, 60, 50)) == InOrder((behind(6, 60, 50),), diverged=True)
    assert order.cursor == Position(6, Id(60))
    assert not order.buffered  # later events may belong to the other log too


def test_a_buffered_event_is_compared_if_either_copy_names_its_predecessor() -> None:
    for twice in ([event(7), behind(7, 70, 61)], [behind(7, 70, 61), event(7)]):
        order = Reorder(Position(5, Id(50)))
        for early in twice:
            assert order.offer(early) == InOrder()
        assert order.offer(event(6)) == InOrder((event(6),), diverged=True)


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """A log, and another that replaced it after a restore. Ids alone cannot distinguish them.

    If a clock was ahead in the first, the ids of the second are lower.
    """
    kept, later = draw(st.integers(0, 6)), draw(st.sampled_from([5, -5]))
    lengths = st.integers(kept, 12)
    first = log(draw(lengths))
    new = (event(seq, seq * 10 + later) for seq in range(kept + 1, draw(lengths) + 1))
    return first, [*first[:kept], *new]


@given(two_logs(), st.data())
def test_events_of_two_logs_are_never_combined(
    logs: tuple[list[Event], list[Event]], data: st.DataObject
) -> None:
    """Events of either log arrive early, late, twice or never. None: the server is asked and answers."""
    first, restored = logs
    mine = first[: data.draw(st.integers(0, len(first)), "the device's cursor")]
    order = Reorder(end_of(mine))
    arriving = st.sampled_from([None, *live(first), *live(restored)])
    for arrived in data.draw(st.lists(arriving, max_size=40), "what arrives"):
        if arrived is not None:
            held = mine[arrived.seq - 1].id if arrived.seq <= len(mine) else 0
            step = order.offer(arrived, held)
            assert step.diverged or held in (0, arrived.id), "events at one seq are of different logs"
        elif mine == restored[: len(mine)]:
            step = order.trust()
        else:
            mine, step = list(restored), InOrder()
            order = Reorder(end_of(mine))
        mine += [msgspec.structs.replace(applied, previous=Id(0)) for applied in step.events]
        assert mine in (first[: len(mine)], restored[: len(mine)])
        assert order.cursor == end_of(mine)


def end_of(log: list[Event]) -> Position:
    return log[-1].position if log else EMPTY
