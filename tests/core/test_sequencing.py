"""Sequencing decides for each command of a batch whether it is appended, known or refused."""

from collections.abc import Sequence
from gc import collect
from itertools import count
from weakref import ref

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.conversations import members_from_ids, members_of
from imqtt.core.sequencing import Append, Decision, Incoming, Known, Refuse, decide, receive
from imqtt.core.view import View
from imqtt.errors import ClockWrong, Conflict, ImqttError, Invalid, NotAllowed, RateLimited
from imqtt.model import Content, Device, Id, Key, Position, Send, Stored

ALICE = Device("alice", "phone")
BOB = Device("bob", "laptop")


def message(sender: Device, conversation: str, name: str, text: str = "hi") -> Incoming:
    return receive(sender, Send(conversation, name, Content(text=text)))


def run(
    messages: Sequence[Incoming],
    heads: dict[str, Position] | None = None,
    stored: dict[Key, Stored] | None = None,
    tokens: int = 1_000,
) -> list[Decision]:
    numbers = count(100)
    left = count(tokens, -1)
    return decide(
        messages,
        View(
            heads or {}, stored or {}, members_from_ids(message.command.conversation for message in messages)
        ),
        lambda _, after: Id(max(next(numbers), after + 1)),
        lambda _: next(left) > 0,
    )


def test_messages_take_the_seqs_after_the_head() -> None:
    decisions = run(
        [
            message(ALICE, "d:alice:bob", "1"),
            message(BOB, "d:alice:bob", "1"),
            message(ALICE, "u:alice", "1"),
        ],
        heads={"d:alice:bob": Position(7, Id(5))},
    )
    assert [decision.event.seq for decision in decisions if isinstance(decision, Append)] == [8, 9, 1]


def test_an_append_has_the_id_of_the_previous_event_and_the_stored_event_does_not() -> None:
    sent = [message(ALICE, "d:alice:bob", name) for name in ("1", "2", "1", "3")]
    sent += [message(ALICE, "u:alice", name) for name in ("1", "2")]
    decisions = run(sent, heads={"d:alice:bob": Position(7, Id(5))})
    appends = [decision for decision in decisions if isinstance(decision, Append)]
    first, second, _, begun, _ = (append.event.id for append in appends)
    assert [append.previous for append in appends] == [5, first, second, 0, begun]
    assert not any(append.event.previous for append in appends)


def test_a_message_twice_in_a_batch_is_stored_once() -> None:
    first, again = run([message(ALICE, "u:alice", "1"), message(ALICE, "u:alice", "1")])
    assert isinstance(first, Append)
    assert again == Known(again.incoming, first.event.position)


def test_a_stored_message_keeps_its_position() -> None:
    sent = message(ALICE, "u:alice", "1")
    place = Position(3, Id(9))
    assert run([sent], stored={sent.key: Stored(place, sent.digest)}) == [Known(sent, place)]


def test_the_same_client_msg_id_for_other_content_is_a_conflict() -> None:
    sent = message(ALICE, "u:alice", "1", "one thing")
    stored = {sent.key: Stored(Position(3, Id(9)), sent.digest)}
    (decision,) = run([message(ALICE, "u:alice", "1", "another")], stored=stored)
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, Conflict)


def test_the_senders_clock_does_not_affect_the_digest() -> None:
    sent = receive(ALICE, Send("u:alice", "1", Content(text="hi"), client_time=1))
    later = receive(ALICE, Send("u:alice", "1", Content(text="hi"), client_time=2))
    assert sent.digest == later.digest


def test_a_user_who_is_not_a_member_is_refused_and_takes_no_seq() -> None:
    other, member = run([message(Device("eve", "x"), "d:alice:bob", "1"), message(ALICE, "d:alice:bob", "1")])
    assert isinstance(other, Refuse)
    assert isinstance(other.error, NotAllowed)
    assert isinstance(member, Append)
    assert member.event.seq == 1


def test_a_refusal_is_freed_with_its_batch() -> None:
    decisions = run([message(Device("eve", "x"), "d:alice:bob", "1")])
    refused = decisions[0]
    assert isinstance(refused, Refuse)
    error = ref(refused.error)
    del refused, decisions
    assert error() is None


def test_the_garbage_collector_frees_a_refusal_in_a_cycle() -> None:
    def refuse() -> ref[ImqttError]:
        try:
            members_of("d:bob:alice")
        except Invalid as error:
            decision = Refuse(message(ALICE, "d:bob:alice", "1"), error)
            return ref(decision.error)
        raise AssertionError

    error = refuse()
    collect()
    assert error() is None


def test_a_malformed_conversation_id_is_refused() -> None:
    (decision,) = run([message(ALICE, "d:bob:alice", "1")])
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, Invalid)


def test_beyond_the_rate_a_message_is_refused_but_a_duplicate_is_not() -> None:
    decisions = run([message(ALICE, "u:alice", name) for name in ("1", "2", "3", "1")], tokens=2)
    assert [type(decision) for decision in decisions] == [Append, Append, Refuse, Known]
    assert isinstance(decisions[2], Refuse)
    assert isinstance(decisions[2].error, RateLimited)


def test_a_wrong_clock_refuses_new_messages_only() -> None:
    def draw(partition: int, after: int) -> Id:
        raise ClockWrong("wrong")

    sent = message(ALICE, "u:alice", "1")
    stored = {sent.key: Stored(Position(3, Id(9)), sent.digest)}
    known, refused = decide(
        [sent, message(ALICE, "u:alice", "2")],
        View({}, stored, members_from_ids(["u:alice"])),
        draw,
        lambda _: True,
    )
    assert isinstance(known, Known)
    assert isinstance(refused, Refuse)
    assert refused.error.retryable


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["1", "2", "3"]), st.sampled_from(["x", "y"]))
    ),
    st.integers(0, 5),
)
def test_seqs_have_no_holes_and_no_key_is_stored_twice(sends: list[tuple[str, str, str]], head: int) -> None:
    messages = [
        message(Device("a", device), "d:a:b" if device in "ab" else "u:a", name, text)
        for device, name, text in sends
    ]
    heads = {"d:a:b": Position(head, Id(3))} if head else {}
    appended = [decision.event for decision in run(messages, heads) if isinstance(decision, Append)]
    for conversation, begin in (("d:a:b", head), ("u:a", 0)):
        events = [event for event in appended if event.conversation == conversation]
        assert [event.seq for event in events] == list(range(begin + 1, begin + 1 + len(events)))
        assert [event.id for event in events] == sorted({event.id for event in events})
    keys = [(event.conversation, event.sender, event.client_msg_id) for event in appended]
    assert len(keys) == len(set(keys))
