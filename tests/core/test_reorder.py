"""Whatever order events come in, each is applied once and in order, and what is missing is known exactly."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.reorder import Reorder
from imqtt.model import Content, Event, Id, Position


def event(seq: int, id_: int = 0) -> Event:
    return Event("d:alice:bob", seq, Id(id_ or seq * 10), 0, "bob", "phone", f"m{seq}", Content(text="hi"))


def log(length: int) -> list[Event]:
    return [event(seq) for seq in range(1, length + 1)]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A log's length, and its seqs in any order, some of them several times."""
    length = draw(st.integers(1, 30))
    seqs = list(range(1, length + 1))
    repeated = draw(st.lists(st.sampled_from(seqs), max_size=30))
    return length, draw(st.permutations(seqs + repeated))


@given(arrivals())
def test_any_permutation_with_duplicates_is_applied_once_in_order(arrived: tuple[int, list[int]]) -> None:
    length, seqs = arrived
    order = Reorder()
    applied = [it for seq in seqs for it in order.offer(event(seq)).events]
    assert applied == log(length)
    assert order.cursor == Position(length, Id(length * 10))
    assert order.holes() == []
    assert order.aside == 0


@given(st.sets(st.integers(1, 40)), st.integers(0, 10), st.randoms())
def test_holes_are_reported_exactly(arrived: set[int], start: int, random: object) -> None:
    seqs = sorted(arrived)
    random.shuffle(seqs)  # type: ignore[attr-defined]
    order = Reorder(Position(start, Id(start * 10)))
    for seq in seqs:
        order.offer(event(seq))
    expected = set(range(start + 1, max([start, *arrived]) + 1)) - arrived
    holes = order.holes()
    assert {seq for hole in holes for seq in hole} == expected
    assert all(before.stop < after.start for before, after in pairwise(holes))


@given(arrivals(), st.integers(1, 5))
def test_with_little_room_asking_for_the_holes_brings_the_rest(
    arrived: tuple[int, list[int]], limit: int
) -> None:
    length, seqs = arrived
    order = Reorder(limit=limit)
    applied: list[Event] = []
    for seq in seqs:
        applied += order.offer(event(seq)).events
        assert order.aside <= limit
    while holes := order.holes():
        for seq in holes[0]:
            applied += order.offer(event(seq)).events
    assert applied == log(length)


def test_an_event_with_another_id_at_a_known_seq_shows_another_log() -> None:
    order = Reorder(Position(5, Id(50)))
    assert not order.offer(event(5)).diverged
    assert not order.offer(event(3)).diverged
    assert order.offer(event(5, 51)).diverged
    assert order.offer(event(3, 60)).diverged  # younger than our last, yet earlier in its log
    assert order.offer(event(6, 40)).diverged  # older than our last, yet later in its log
    assert order.cursor == Position(5, Id(50))


def test_a_doubtful_log_does_not_grow_until_the_server_has_been_asked() -> None:
    order = Reorder(Position(5, Id(50)))
    order.offer(event(5, 51))
    assert order.in_doubt
    assert order.offer(event(6)).events == ()
    assert order.trust() == (event(6),)
    order.offer(event(6, 61))
    order.offer(event(7))
    assert order.begin(Position(6, Id(61))) == (event(7),)
    assert not order.in_doubt


def test_two_logs_kept_aside_show_too() -> None:
    order = Reorder()
    order.offer(event(3))
    assert order.offer(event(3, 35)).diverged


def test_a_cursor_without_an_id_is_not_compared() -> None:
    order = Reorder(Position(5, Id(0)))
    assert not order.offer(event(5)).diverged
    assert order.offer(event(6)).events == (event(6),)


def test_a_log_begun_at_its_head_gives_out_what_had_come_after_it() -> None:
    order = Reorder()
    for seq in (4, 7, 8, 10):
        order.offer(event(seq))
    assert order.lowest_aside == 4
    assert order.begin(Position(6, Id(60))) == (event(7), event(8))
    assert order.holes() == [range(9, 10)]
