from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.marks import merge
from imqtt.model import Id, Marks, Position

HEADS = {"d:a:b": Position(50, Id(1)), "u:a": Position(7, Id(1))}
marks = st.builds(
    Marks,
    conversation=st.sampled_from(["d:a:b", "u:a", "d:a:nobody"]),
    user=st.sampled_from(["a", "b"]),
    delivered=st.integers(0, 100),
    read=st.integers(0, 100),
)


@given(st.lists(marks), st.randoms())
def test_order_and_repetition_do_not_matter(given_marks: list[Marks], random: object) -> None:
    shuffled = given_marks * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis gives a random.Random
    assert set(merge(given_marks, HEADS)) == set(merge(shuffled, HEADS))


@given(st.lists(marks))
def test_read_marks_do_not_pass_delivered_marks_or_the_head(given_marks: list[Marks]) -> None:
    for merged in merge(given_marks, HEADS):
        assert 0 <= merged.read <= merged.delivered <= HEADS[merged.conversation].seq
        assert merged.delivered > 0


@given(st.lists(marks))
def test_the_greatest_mark_wins(given_marks: list[Marks]) -> None:
    for merged in merge(given_marks, HEADS):
        own = [
            mark
            for mark in given_marks
            if (mark.conversation, mark.user) == (merged.conversation, merged.user)
        ]
        head = HEADS[merged.conversation].seq
        assert merged.read == min(max(mark.read for mark in own), head)
        assert merged.delivered == min(max(max(mark.read, mark.delivered) for mark in own), head)
