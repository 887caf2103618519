"""The text of a chat: order, ticks and names, for any order of changes."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from imqtt.cli.transcript import Transcript
from imqtt.cli.wrapping import columns, unstacked
from imqtt.model import NO_CONTENT, Content, Event, Id, Marks, RecallBody
from imqtt.printable import printable

CONVERSATION = "d:alice:bob"


def event(seq: int, sender: str = "alice", text: str = "", client_msg_id: str = "") -> Event:
    return Event(
        conversation=CONVERSATION,
        seq=seq,
        id=Id(seq),
        time=1_790_000_000_000 + seq,
        sender=sender,
        device="phone",
        client_msg_id=client_msg_id or f"m{seq}",
        content=Content(text=text or f"text {seq}"),
    )


def shown(transcript: Transcript, width: int = 80) -> list[str]:
    return ["".join(text for _, text in line) for line in transcript.lines(width)]


def ticks(transcript: Transcript) -> list[tuple[str, str]]:
    return [
        (style, text.strip())
        for line in transcript.lines(80)
        for style, text in line
        if style.startswith("class:tick")
    ]


def test_a_message_goes_from_waiting_to_stored_to_delivered_to_read() -> None:
    transcript = Transcript("alice")
    transcript.wait("m1", Content(text="hi"), 1_790_000_000_000)
    assert ticks(transcript) == [("class:tick", "·")]
    transcript.add([event(1, text="hi", client_msg_id="m1")])
    assert ticks(transcript) == [("class:tick", "✓")]
    transcript.mark(Marks(CONVERSATION, "bob", delivered=1))
    assert ticks(transcript) == [("class:tick", "✓✓")]
    transcript.mark(Marks(CONVERSATION, "bob", delivered=1, read=1))
    assert ticks(transcript) == [("class:tick.read", "✓✓")]


def test_the_users_own_marks_change_no_ticks() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1)])
    transcript.mark(Marks(CONVERSATION, "alice", delivered=1, read=1))
    assert ticks(transcript) == [("class:tick", "✓")]


def test_messages_of_others_have_no_ticks() -> None:
    transcript = Transcript("bob")
    transcript.add([event(1, "alice")])
    assert ticks(transcript) == []


def test_an_event_that_comes_twice_is_shown_once() -> None:
    transcript = Transcript("alice")
    transcript.wait("m1", Content(text="hi"), 1_790_000_000_000)
    transcript.add([event(1, text="hi", client_msg_id="m1")])
    transcript.add([event(1, text="hi", client_msg_id="m1")])
    assert sum(line.endswith("  hi ✓") for line in shown(transcript)) == 1


def test_a_refused_message_shows_the_reason() -> None:
    transcript = Transcript("alice")
    transcript.wait("m1", Content(text="hi"), 1_790_000_000_000)
    transcript.refuse("m1", "content of 70000 bytes; at most 65536")
    assert ticks(transcript) == [("class:tick.failed", "✗ not sent: content of 70000 bytes; at most 65536")]


@given(st.permutations(range(1, 8)))
def test_events_are_in_order_of_seq_whatever_order_they_arrive_in(order: list[int]) -> None:
    transcript = Transcript("alice")
    for seq in order:
        transcript.add([event(seq)])
    texts = [line.split("  ")[-1] for line in shown(transcript) if "text" in line]
    assert texts == [f"text {seq} ✓" for seq in range(1, 8)]
    assert transcript.first == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=10))
def test_marks_only_grow(marks: list[tuple[int, int]]) -> None:
    transcript = Transcript("alice")
    transcript.add([event(1)])
    best = 0
    for delivered, read in marks:
        transcript.mark(Marks(CONVERSATION, "bob", delivered, read))
        best = max(best, 2 * (read >= 1) or (delivered >= 1))
        assert (
            ticks(transcript)
            == [[("class:tick", "✓")], [("class:tick", "✓✓")], [("class:tick.read", "✓✓")]][best]
        )


def test_a_text_of_many_lines_keeps_them_and_ends_with_its_tick() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1, text="one\ntwo")])
    assert [line.strip() for line in shown(transcript)][-1] == "two ✓"
    assert shown(transcript)[-2].endswith("alice  one")


def test_control_characters_are_replaced() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1, "bob", text="\x1b[2Jhi\x07")])
    assert "\x1b" not in shown(transcript)[-1]
    assert shown(transcript)[-1].endswith("\ufffd[2Jhi\ufffd")


def test_a_restored_store_restarts_the_transcript() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1), event(2)])
    transcript.clear()
    transcript.add([event(1, text="another")])
    assert not any("text 2" in line for line in shown(transcript))
    assert shown(transcript)[-1].endswith("another ✓")


@given(st.text(), st.integers(30, 90))
def test_no_line_is_wider_than_the_screen_and_no_word_is_lost(text: str, width: int) -> None:
    transcript = Transcript("alice")
    transcript.add([event(1, text="x" + text)])
    lines = shown(transcript, width)[2:]
    assert all(columns(line) <= width for line in lines)
    drawn = "".join(line[15:] if not number else line for number, line in enumerate(lines))
    expected = unstacked(printable("x" + text)) + "✓"
    assert drawn.replace(" ", "") == expected.replace(" ", "").replace("\n", "")


def test_a_message_is_laid_out_again_only_when_something_changes() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1), event(2)])
    lines = transcript.lines(80)
    assert transcript.lines(80) is lines
    transcript.add([event(3)])
    assert transcript.lines(80)[-2] is lines[-1]
    narrow = transcript.lines(30)
    assert max(columns("".join(text for _, text in line)) for line in narrow[2:]) <= 30


def test_a_discarded_message_disappears() -> None:
    transcript = Transcript("alice")
    transcript.wait("m1", Content(text="hi"), 1_790_000_000_000)
    transcript.wait("m2", Content(text="ho"), 1_790_000_000_000)
    assert list(transcript.unstored) == ["m1", "m2"]
    transcript.discard("m1")
    assert [line.endswith("ho ·") for line in shown(transcript)] == [True]


@given(st.text(st.sampled_from("\x1b\x9b\x07\x00\x7f\u202e\u2028a\n") | st.characters(codec="utf-8")))
def test_no_text_can_control_the_terminal(text: str) -> None:
    transcript = Transcript("alice")
    transcript.add([event(1, "bob", text="x" + text)])
    assert all(
        character.isprintable() or character in "\u200c\u200d"
        for line in shown(transcript)
        for character in line
    )


def test_a_recalled_message_keeps_its_place_and_loses_its_text() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1), event(2), event(3, sender="bob")])
    assert transcript.own_newest == event(2)
    target = event(2).position
    recall = replace(event(4), kind="recall", content=NO_CONTENT, recall=RecallBody(target))
    transcript.add([recall])
    transcript.add([event(2)])  # read before the recall arrived
    lines = [line for line in shown(transcript) if "  alice  " in line or "  bob  " in line]
    assert [line.split("  ")[-1].removesuffix(" ✓") for line in lines] == ["text 1", "[recalled]", "text 3"]
    assert transcript.own_newest == event(1)


def test_an_event_of_an_unknown_kind_is_not_shown() -> None:
    transcript = Transcript("alice")
    transcript.add([event(1), replace(event(2), kind="later", content=NO_CONTENT)])
    assert [line.split("  ")[-1] for line in shown(transcript) if "  alice  " in line] == ["text 1 ✓"]
