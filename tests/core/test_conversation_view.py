"""The view of a conversation that a program displays, whatever part of the log the device holds."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.conversation_view import Hole, Message, fold, view_of
from imqtt.core.outbox import Entry
from imqtt.model import Content, Event, Id, Marks, Position, Send

TALK = "d:alice:bob"
USERS = ("alice", "bob", "carol")


def event(seq: int, sender: str = "bob", kind: str = "message") -> Event:
    text = Content(text=f"text {seq}")
    return Event(TALK, seq, Id(seq * 10), seq * 1_000, sender, "phone", f"m{seq}", text, kind)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(["message", "later"])), max_size=30)
    )
    return [event(seq, sender, kind) for seq, (sender, kind) in enumerate(kinds, 1)]


MARKS = st.lists(
    st.builds(Marks, st.just(TALK), st.sampled_from(USERS), st.integers(0, 30), st.integers(0, 30)),
    unique_by=lambda marks: marks.user,
)


@given(logs(), st.integers(0, 30))
def test_folding_a_prefix_and_then_the_rest_is_folding_everything(log: list[Event], length: int) -> None:
    prefix = fold(log[:length])
    before = dict(prefix)
    assert fold(log[length:], prefix) == fold(log)
    assert prefix == before


@given(logs(), st.sets(st.integers(0, 9)), MARKS)
def test_any_pages_show_each_event_as_the_whole_log_does(
    log: list[Event], pages: set[int], marks: list[Marks]
) -> None:
    part = [event for event in log if event.seq // 4 in pages]
    whole = {
        item.position.seq: item for item in view_of(TALK, log, marks=marks).items if isinstance(item, Message)
    }
    shown = view_of(TALK, part, marks=marks, head=len(log)).items
    messages = [item for item in shown if isinstance(item, Message)]
    assert messages == [whole[event.seq] for event in part if event.kind == "message"]


def test_a_register_of_an_unknown_kind_changes_nothing() -> None:
    """A later version wrote it into the device's store."""
    log = [event(1), event(2)]
    assert view_of(TALK, log, registers=[event(9, kind="later")]) == view_of(TALK, log)


@given(logs(), st.sets(st.integers(1, 30)), st.integers(1, 31))
def test_every_seq_is_a_message_a_hole_or_an_event_of_an_unknown_kind(
    log: list[Event], held: set[int], first: int
) -> None:
    part = [event for event in log if event.seq in held and event.seq >= first]
    items = view_of(TALK, part, first=first, head=len(log)).items
    spans = [
        (item.first, item.last) if isinstance(item, Hole) else (item.position.seq,) * 2 for item in items
    ]
    covered = {seq for low, high in spans for seq in range(low, high + 1)}
    unknown = {event.seq for event in part if event.kind != "message"}
    assert covered == set(range(first, len(log) + 1)) - unknown
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert not any(
        isinstance(a, Hole) and isinstance(b, Hole) and a.last + 1 == b.first for a, b in pairwise(items)
    )


@given(logs(), MARKS)
def test_receipts_name_the_other_members_whose_marks_reach_a_message(
    log: list[Event], marks: list[Marks]
) -> None:
    for message in view_of(TALK, log, marks=marks).items:
        assert isinstance(message, Message)
        assert set(message.read) <= set(message.delivered)
        seq = message.position.seq
        for mark in marks:
            is_other = mark.user != message.sender
            assert (mark.user in message.read) == (is_other and mark.read >= seq)
            assert (mark.user in message.delivered) == (is_other and max(mark.delivered, mark.read) >= seq)


def test_a_message_has_the_fields_of_its_event() -> None:
    (message,) = view_of(TALK, [event(1, "alice")]).items
    assert message == Message(Position(1, Id(10)), 1_000, "alice", "phone", "m1", Content(text="text 1"))
    assert not message.recalled


def test_pending_messages_of_the_conversation_keep_their_order_and_state() -> None:
    waiting = Entry(Send(TALK, "m1", Content(text="x")))
    refused = Entry(Send(TALK, "m2", Content(text="y")), "too_large", "too large")
    elsewhere = Entry(Send("u:alice", "m3", Content(text="z")))
    assert view_of(TALK, [], outbox=[waiting, elsewhere, refused]).pending == (waiting, refused)
