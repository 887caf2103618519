"""The rule of `recall`: who may recall which message, and how a recalled message is shown."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.conversation_view import Message, view_of
from imqtt.core.conversations import members_from_ids
from imqtt.core.overlays import counts_as_unread, overlaid, registers_of
from imqtt.core.rules.recall import register
from imqtt.core.sequencing import Append, Decision, Known, Refuse, decide, needs_of, receive
from imqtt.core.view import View
from imqtt.errors import AlreadyRecalled, Conflict, NotAllowed, NotFound
from imqtt.model import Content, Device, Event, Id, Position, Recall, RecallBody, Send

TALK = "d:alice:bob"
ALICE, BOB = Device("alice", "phone"), Device("bob", "phone")
MESSAGE = Position(3, Id(30))


def message(seq: int = 3, sender: str = "alice", kind: str = "message") -> Event:
    content = Content(text=f"text {seq}")
    return Event(TALK, seq, Id(seq * 10), 0, sender, "phone", f"m{seq}", content, kind=kind)


def recall(name: str = "r1", target: Position = MESSAGE) -> Recall:
    return Recall(TALK, name, target)


def recall_event(seq: int, target: Position = MESSAGE) -> Event:
    return Event(
        TALK, seq, Id(seq * 10), 0, "alice", "phone", f"r{seq}", kind="recall", recall=RecallBody(target)
    )


def run(
    *commands: tuple[Device, Recall | Send], log: Sequence[Event] = (), recalled: Sequence[Event] = ()
) -> list[Decision]:
    incoming = [receive(sender, command) for sender, command in commands]
    wanted = {place for command in incoming for place in needs_of(command).events}
    view = View(
        {TALK: Position(9, Id(90))},
        {},
        members_from_ids([TALK]),
        {(event.conversation, event.seq): event for event in log if (TALK, event.seq) in wanted},
        {(TALK, register(event.recall.target.seq)): event for event in recalled if event.recall},
    )
    return decide(incoming, view, lambda _, after: Id(after + 1), lambda _: True)


def error(decision: Decision) -> type[Exception]:
    assert isinstance(decision, Refuse)
    return type(decision.error)


def test_the_sender_recalls_a_message_from_any_device() -> None:
    (decision,) = run((Device("alice", "tv"), recall()), log=[message()])
    assert isinstance(decision, Append)
    assert (decision.event.seq, decision.event.kind) == (10, "recall")
    assert decision.event.recall == RecallBody(MESSAGE)


@pytest.mark.parametrize(
    ("sender", "target", "log", "expected"),
    [
        (BOB, MESSAGE, [message()], NotAllowed),
        (ALICE, MESSAGE, [], NotFound),
        (ALICE, Position(3, Id(31)), [message()], NotFound),
        (ALICE, MESSAGE, [message(kind="recall")], NotFound),
        (Device("eve", "phone"), MESSAGE, [message()], NotAllowed),
    ],
)
def test_any_other_recall_is_refused(
    sender: Device, target: Position, log: list[Event], expected: type[Exception]
) -> None:
    (decision,) = run((sender, recall(target=target)), log=log)
    assert error(decision) is expected


def test_a_message_is_recalled_once_even_within_a_batch() -> None:
    first, second = run((ALICE, recall("r1")), (ALICE, recall("r2")), log=[message()])
    assert isinstance(first, Append)
    assert error(second) is AlreadyRecalled
    (third,) = run((ALICE, recall("r3")), log=[message()], recalled=[recall_event(5)])
    assert error(third) is AlreadyRecalled


def test_a_recall_that_is_sent_again_is_a_duplicate_and_another_change_a_conflict() -> None:
    first, again, other, sent = run(
        (ALICE, recall("r1")),
        (ALICE, recall("r1")),
        (ALICE, recall("r1", Position(4, Id(40)))),
        (ALICE, Send(TALK, "r1", Content(text="hi"))),
        log=[message(), message(4)],
    )
    assert isinstance(first, Append)
    assert isinstance(again, Known)
    assert again.position == first.event.position
    assert error(other) is error(sent) is Conflict


def test_a_recalled_message_is_shown_without_its_content() -> None:
    change = recall_event(7)
    registers = {(TALK, "recall:3"): change}
    assert registers_of([message(), recall_event(4)]) == [(TALK, "recall:3")]
    shown, changes = overlaid(message(), registers)
    assert shown.content == Content()
    assert not counts_as_unread(shown)
    assert counts_as_unread(message())
    assert changes == [change]
    assert overlaid(message(4), registers) == (message(4), [])
    other = Event(TALK, 3, Id(31), 0, "alice", "phone", "m", Content(text="of another log"))
    assert overlaid(other, registers) == (other, [])


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A log in which some messages are recalled, each once and later."""
    log: list[Event] = []
    for seq in range(1, draw(st.integers(1, 12)) + 1):
        gone = {event.recall.target.seq for event in log if event.recall is not None}
        left = [event.seq for event in log if event.kind == "message" and event.seq not in gone]
        if left and draw(st.booleans()):
            target = draw(st.sampled_from(left))
            log.append(recall_event(seq, Position(target, Id(target * 10))))
        else:
            log.append(message(seq))
    return log


def page_of(log: list[Event], first: int, last: int) -> tuple[list[Event], list[Event]]:
    """The events of a page, and its registers, as the server makes them."""
    registers = {
        (TALK, register(event.recall.target.seq)): event for event in log if event.recall is not None
    }
    events: list[Event] = []
    changes: list[Event] = []
    for event in log[first - 1 : last]:
        shown, changed_by = overlaid(event, registers)
        events.append(shown)
        changes += [change for change in changed_by if change.seq > last]
    return events, sorted(changes, key=lambda change: change.seq)


@given(logs(), st.data())
def test_any_page_shows_each_message_as_the_whole_log_does(log: list[Event], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(log)))
    last = data.draw(st.integers(first, len(log)))
    whole = {item.position.seq: item for item in view_of(TALK, log).items if isinstance(item, Message)}
    events, registers = page_of(log, first, last)
    part = view_of(TALK, events, registers=registers, first=first)
    shown = [item for item in part.items if isinstance(item, Message)]
    assert shown == [whole[item.position.seq] for item in shown]
    assert len(shown) == sum(event.kind == "message" for event in log[first - 1 : last])
