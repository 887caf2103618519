"""Each kind of finding in the smallest history that has it, and beside it the nearest one that has not."""

import pytest

from tests.verification.checker.check import Kind, Verdict, check
from tests.verification.checker.history import Held, Line, Row, Stored
from tests.verification.checker.story import TALK, Story, value_of

ALICE, BOB = "alice@phone", "bob@phone"


def kinds(verdict: Verdict) -> list[Kind]:
    """Those of its findings, each as often as it was found."""
    return sorted(finding.kind for finding in verdict.findings)


def told(count: int, *, ordered: bool = True, keeps: bool = True) -> tuple[Story, list[Row]]:
    """Alice has sent `count` messages, all of which are stored and accepted."""
    story = Story()
    story.start(ALICE, ordered=ordered, keeps=keeps)
    story.start(BOB, ordered=ordered, keeps=keeps)
    return story, [story.send(ALICE, f"m{number}") for number in range(1, count + 1)]


def in_the_end(story: Story, rows: list[Row]) -> list[Line]:
    """The story's lines with other rows in the store's last word, and with devices that have the same."""
    story.logs[TALK] = rows
    story.end()
    return story.lines


def with_marks(story: Story, *marks: tuple[str, int, int]) -> Verdict:
    """The verdict if the store's marks, of `TALK`, are these in the end."""
    story.marks[TALK] = {user: (delivered, read) for user, delivered, read in marks}
    return story.end()


# --- nothing


def test_a_correct_run_has_no_findings_and_its_events_are_counted() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.invoke(BOB, "unanswered")
    story.info(BOB, "unanswered")
    verdict = story.end()
    assert verdict.ok
    assert (verdict.sent, verdict.accepted, verdict.stored) == (4, 3, 3)
    assert verdict.differing == verdict.unseen == frozenset()


def test_an_empty_history_has_no_findings() -> None:
    assert check([]).ok


def test_a_user_without_a_fresh_device_is_reported() -> None:
    story, rows = told(1)
    story.hold("alice@fresh", rows, fresh=True)
    story.hold("bob@phone", rows)
    story.read_store()
    verdict = story.verdict()
    assert verdict.ok
    assert verdict.unseen == {"bob"}


def test_a_finding_names_the_conversation_and_events_to_look_at() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[0]._replace(seq=9, id=4711))
    [one, other] = story.end().findings
    assert str(one).startswith(f"phantom: {TALK}: alice@phone was told that 'm1' is at seq 9 (id 4711)")
    assert str(other).startswith(f"answer changed: {TALK}: alice was told that 'm1' is at seq 1")


# --- lost


def test_an_accepted_message_missing_from_the_store_is_lost() -> None:
    story, rows = told(3)
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_a_message_with_an_unknown_outcome_may_be_missing_from_the_store() -> None:
    story, _ = told(3)
    story.invoke(ALICE, "m4")
    story.info(ALICE, "m4")
    assert story.end().ok


def test_an_accepted_message_that_a_restore_removes_is_not_lost() -> None:
    story, _ = told(3)
    story.restore({TALK: 2})
    assert story.end().ok


def test_an_accepted_message_that_was_in_the_backup_and_is_missing_is_lost() -> None:
    story, rows = told(3)
    story.restore({TALK: 3})
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_an_unanswered_message_that_was_in_the_backup_and_is_missing_is_lost() -> None:
    story, rows = told(2)
    story.invoke(ALICE, "m3")
    rows.append(story.store(ALICE, "m3"))
    story.restore({TALK: 3})
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def restored_to_a_younger_backup_of_an_older_epoch() -> tuple[Story, list[Row]]:
    """Two backups of one epoch: the older is restored first, which makes the younger one another log's."""
    story, rows = told(4)
    story.restore({TALK: 1})
    story.send(ALICE, "m5")
    story.restore({TALK: 3}, taken=0)
    story.logs[TALK] = rows[:3]
    return story, rows


def test_a_backup_of_an_earlier_log_restores_that_log() -> None:
    story, rows = restored_to_a_younger_backup_of_an_older_epoch()
    story.see(BOB, *rows[:2])
    assert story.end().ok


def test_a_backup_of_an_earlier_log_restores_every_message_of_that_log() -> None:
    story, rows = restored_to_a_younger_backup_of_an_older_epoch()
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_each_restore_excuses_only_the_messages_that_it_removes() -> None:
    story, _ = told(5)
    story.restore({TALK: 4})
    story.restore({TALK: 2})
    story.restore({TALK: 2})
    assert story.end().ok
    story, rows = told(5)
    story.restore({TALK: 2})
    story.restore({TALK: 2})
    assert kinds(check(in_the_end(story, rows[:1]))) == [Kind.LOST]


def test_a_message_of_a_backup_that_was_missing_at_the_end_of_its_epoch_is_lost() -> None:
    story, rows = told(2)
    story.logs[TALK] = rows[:1]
    story.restore({TALK: 2})
    assert Kind.LOST in kinds(check(in_the_end(story, rows)))


@pytest.mark.parametrize(("device", "fresh"), [("bob@new", True), (BOB, False)])
def test_a_stored_message_missing_on_a_members_device_is_lost(device: str, fresh: bool) -> None:
    story, rows = told(4)
    story.hold(device, [*rows[:1], *rows[3:]], fresh=fresh)
    verdict = story.end()
    assert kinds(verdict) == [Kind.HOLE, Kind.LOST]
    assert "seq 2" in verdict.findings[1].what
    assert "seq 3" in verdict.findings[1].what
    assert verdict.differing == {TALK}


def test_the_newest_message_missing_on_a_device_is_lost() -> None:
    story, rows = told(4)
    story.hold(BOB, rows[:3])
    assert kinds(story.end()) == [Kind.LOST]


def test_only_a_long_lived_device_may_begin_in_the_middle_of_a_log() -> None:
    story, rows = told(4)
    story.hold(BOB, rows[2:], base=2)
    assert story.end().ok
    story, rows = told(4)
    story.hold("bob@new", rows[2:], base=2, fresh=True)
    assert kinds(story.end()) == [Kind.LOST]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_conversation_unknown_to_a_members_device_is_lost(fresh: bool) -> None:
    story, _ = told(1)
    note = story.send(BOB, "note", "u:bob")
    story.hold("bob@new", [note], fresh=fresh, conversation="u:bob")
    verdict = story.end()
    assert kinds(verdict) == [Kind.LOST]
    assert verdict.differing == {TALK}


def test_a_device_may_lack_empty_conversations_and_those_of_other_users() -> None:
    story, rows = told(1)
    story.send(ALICE, "note", "u:alice")
    story.logs["d:bob:carol"] = []
    story.hold("bob@new", rows, fresh=True)
    assert story.end().ok


# --- doubled


def test_a_message_that_is_stored_twice_is_doubled() -> None:
    story, rows = told(2)
    again = story.make(ALICE, "m1", 3)
    # So do the two fresh devices.
    assert kinds(check(in_the_end(story, [*rows, again]))) == [Kind.DOUBLED] * 3


def test_a_message_that_is_sent_often_and_stored_once_is_not_doubled() -> None:
    story, rows = told(2)
    for row in rows * 2:
        story.invoke(ALICE, row.name)
        story.ok(ALICE, row)
    assert story.end().ok


def test_a_value_stored_under_two_client_msg_ids_is_doubled() -> None:
    story, rows = told(2)
    text = value_of(ALICE, "m1")
    story.invoke(ALICE, "other", value=text)
    other = story.make(ALICE, "other", 3, value=text)
    assert set(kinds(check(in_the_end(story, [*rows, other])))) == {Kind.DOUBLED}


def test_two_users_may_use_the_same_client_msg_id() -> None:
    story, _ = told(2)
    story.send(BOB, "m1")
    assert story.end().ok


def test_a_message_shown_twice_by_a_device_is_doubled() -> None:
    story, rows = told(2)
    story.see(BOB, *rows, rows[1])
    assert kinds(story.end()) == [Kind.DOUBLED]


def test_a_message_held_twice_by_a_device_is_doubled() -> None:
    story, rows = told(2)
    story.hold(BOB, [*rows, rows[1]])
    verdict = story.end()
    assert kinds(verdict) == [Kind.DOUBLED]
    assert verdict.differing == {TALK}


def test_a_device_that_was_killed_may_show_the_last_event_again() -> None:
    story, rows = told(3)
    story.see(BOB, *rows[:2])
    story.start(BOB)
    story.see(BOB, rows[1])
    story.start(BOB)
    story.see(BOB, *rows[1:])
    assert story.end().ok


def test_a_killed_device_may_show_the_last_event_only_once_more() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.start(BOB)
    story.see(BOB, rows[1], rows[1])
    assert kinds(story.end()) == [Kind.DOUBLED]


def test_a_killed_device_may_not_show_the_event_before_the_last_again() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.start(BOB)
    story.see(BOB, rows[0])
    assert kinds(story.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_a_killed_device_may_not_show_the_last_event_of_each_conversation_again() -> None:
    story, rows = told(1)
    note = story.send(BOB, "note", "u:bob")
    story.see(BOB, *rows)
    story.see(BOB, note, conversation="u:bob")
    story.start(BOB)
    story.see(BOB, note, conversation="u:bob")
    story.see(BOB, *rows)
    assert [finding.conversation for finding in story.end().findings] == [TALK]


def test_a_killed_device_may_not_show_the_last_event_again_after_the_next() -> None:
    story, rows = told(2)
    story.see(BOB, rows[0])
    story.start(BOB)
    story.see(BOB, rows[1], rows[0])
    assert kinds(story.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_a_device_may_show_events_again_after_a_restart_of_the_log() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 2})
    story.begin(BOB)
    story.see(BOB, rows[1], story.send(ALICE, "m4"))
    assert story.end().ok


def test_a_device_may_not_show_a_message_twice_after_a_restart_of_the_log() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 2})
    story.begin(BOB)
    story.see(BOB, *rows[:2], rows[1])
    assert kinds(story.end()) == [Kind.DOUBLED]


# --- out of order


def test_ids_that_do_not_grow_with_seq_are_out_of_order() -> None:
    story, rows = told(3)
    rows[1] = rows[1]._replace(id=rows[2].id)
    story.logs[TALK] = rows
    story.hold("alice@fresh", rows, fresh=True)
    assert Kind.DISORDER in kinds(story.end())


def test_a_device_that_shows_an_older_event_is_out_of_order() -> None:
    story, rows = told(3)
    story.see(BOB, rows[1], rows[2], rows[0])
    assert kinds(story.end()) == [Kind.DISORDER]


def overtaking(*, ordered: bool, waits: bool) -> Verdict:
    """Alice sends m1 and then m2, which is stored first. With `waits`, m1 was accepted before."""
    story = Story()
    story.start(ALICE, ordered=ordered)
    m2, m1 = story.logs[TALK] = [story.make(ALICE, "m2", 1), story.make(ALICE, "m1", 2)]
    story.invoke(ALICE, "m1")
    if waits:
        story.ok(ALICE, m1)
    story.invoke(ALICE, "m2")
    story.ok(ALICE, m2)
    return story.end()


def test_messages_of_an_ordered_sender_are_stored_in_its_order() -> None:
    assert kinds(overtaking(ordered=True, waits=False)) == [Kind.DISORDER]


def test_messages_of_an_unordered_sender_may_overtake_each_other() -> None:
    assert overtaking(ordered=False, waits=False).ok


def test_a_message_may_not_overtake_one_accepted_before_it_was_sent() -> None:
    assert kinds(overtaking(ordered=False, waits=True)) == [Kind.DISORDER]


def test_an_order_broken_by_a_restore_is_no_finding() -> None:
    story, _ = told(1)
    story.restore({TALK: 0})
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert story.end().ok


def test_a_message_lost_before_the_outbox_is_ordered_by_when_it_is_sent_again() -> None:
    story = Story()
    story.start(ALICE, ordered=True, keeps=True)
    story.invoke(ALICE, "m1")
    story.start(ALICE, ordered=True, keeps=True)
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert story.end().ok


def test_a_message_in_the_outbox_keeps_its_order_after_a_kill() -> None:
    story = Story()
    story.start(ALICE, ordered=True, keeps=True)
    story.invoke(ALICE, "m1")
    story.take(ALICE, "m1")
    story.start(ALICE, ordered=True, keeps=True)
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert kinds(story.end()) == [Kind.DISORDER]


# --- hole


def test_a_seq_missing_from_the_store_is_a_hole() -> None:
    story, rows = told(1)
    story.invoke(ALICE, "m2")
    later = story.make(ALICE, "m2", 3)
    assert set(kinds(check(in_the_end(story, [*rows, later])))) == {Kind.HOLE}


def test_a_log_begins_at_1() -> None:
    story = Story()
    story.invoke(ALICE, "m1")
    assert Kind.HOLE in kinds(check(in_the_end(story, [story.make(ALICE, "m1", 2)])))


def test_an_event_skipped_by_a_device_is_a_hole() -> None:
    story, rows = told(3)
    story.see(BOB, rows[0], rows[2])
    assert kinds(story.end()) == [Kind.HOLE]


def test_a_device_may_be_shown_only_the_middle_of_a_log() -> None:
    story, rows = told(4)
    story.see(BOB, rows[1], rows[2])
    assert story.end().ok


def test_the_events_held_by_a_device_begin_right_after_its_base() -> None:
    story, rows = told(3)
    story.hold(BOB, rows[1:], base=0)
    assert kinds(story.end()) == [Kind.HOLE, Kind.LOST]


# --- differs


def test_a_device_that_holds_another_event_than_the_store_differs() -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    new = story.send(ALICE, "m3")
    story.hold(BOB, [rows[0], rows[1]])
    verdict = story.end()
    assert new.seq == rows[1].seq
    assert kinds(verdict) == [Kind.DIFFERS]
    assert verdict.differing == {TALK}


@pytest.mark.parametrize(("base", "held"), [(0, [0, 1]), (1, [1]), (2, [])])
def test_a_device_that_holds_more_events_than_the_store_differs(base: int, held: list[int]) -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    story.hold(BOB, [rows[number] for number in held], base=base)
    assert kinds(story.end()) == [Kind.DIFFERS]


def test_a_device_that_holds_an_empty_log_as_empty_does_not_differ() -> None:
    story, _ = told(2)
    story.restore({})
    story.hold(BOB, [])
    assert story.end().ok


def test_a_device_that_combines_the_beginning_of_one_log_with_the_end_of_another_differs() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    story.send(ALICE, "m3")
    story.see(BOB, story.send(ALICE, "m4"))
    assert kinds(story.end()) == [Kind.DIFFERS]


def test_a_device_that_saw_no_removed_event_continues_after_a_restore() -> None:
    story, rows = told(3)
    story.see(BOB, rows[0])
    story.restore({TALK: 2})
    story.see(BOB, rows[1], story.send(ALICE, "m3"))
    assert story.end().ok


def test_a_device_killed_during_a_restore_may_restart_the_log_without_recording_it() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    story.start(BOB)
    story.see(BOB, rows[0], story.send(ALICE, "m4"))
    assert story.end().ok


# --- phantom


def test_a_stored_message_that_nobody_sent_is_a_phantom() -> None:
    story, rows = told(1)
    assert kinds(check(in_the_end(story, [*rows, story.make(ALICE, "m2", 2)]))) == [Kind.PHANTOM]


def test_a_stored_message_that_was_never_answered_is_no_phantom() -> None:
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.store(ALICE, "m2")
    assert story.end().ok


@pytest.mark.parametrize(
    "changed",
    [{"sender": "bob"}, {"value": "other"}, {"name": "other"}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_stored_message_with_another_sender_value_or_client_msg_id_is_a_phantom(
    changed: dict[str, str],
) -> None:
    story = Story()
    story.invoke(ALICE, "m1")
    row = story.store(ALICE, "m1")
    story.logs[TALK] = [row._replace(**changed)]  # type: ignore[arg-type]
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_a_message_stored_in_another_conversation_is_a_phantom() -> None:
    story, rows = told(1)
    story.invoke(ALICE, "note", "u:alice")
    elsewhere = story.make(ALICE, "note", 2, value=value_of(ALICE, "note", "u:alice"))
    assert kinds(check(in_the_end(story, [*rows, elsewhere]))) == [Kind.PHANTOM]


def test_a_stored_message_that_was_refused_is_a_phantom() -> None:
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.fail(ALICE, "m2")
    assert story.end().ok
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.fail(ALICE, "m2")
    story.store(ALICE, "m2")
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_a_conflict_refuses_the_second_value_only() -> None:
    story, rows = told(1)
    story.invoke(ALICE, "m1", value="something else")
    story.fail(ALICE, "m1", "conflict")
    story.invoke("alice@tablet", "m1", value="and from elsewhere")
    story.fail("alice@tablet", "m1", "conflict")
    assert story.end().ok
    assert rows[0].value == value_of(ALICE, "m1")


def test_a_conflict_of_a_message_with_itself_is_a_phantom() -> None:
    story, rows = told(1)
    story.invoke(ALICE, rows[0].name)
    story.fail(ALICE, rows[0].name, "conflict")
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_a_conflict_with_an_unstored_message_is_a_phantom_unless_a_restore_removed_it() -> None:
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.fail(ALICE, "m2", "conflict")
    assert kinds(story.end()) == [Kind.PHANTOM]
    story, _ = told(1)
    story.invoke(ALICE, "m1", value="other")
    story.fail(ALICE, "m1", "conflict")
    story.restore({TALK: 0})
    story.invoke(ALICE, "m1", value="other")
    story.ok(ALICE, story.store(ALICE, "m1", value="other"))
    assert story.end().ok


def test_an_event_seen_beyond_the_end_of_every_log_is_a_phantom() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.invoke(ALICE, "m3")
    story.see(BOB, story.make(ALICE, "m3", 3))
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_an_event_seen_before_a_restore_removed_it_is_no_phantom() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    assert story.end().ok


def test_an_answer_to_a_message_that_was_never_sent_is_a_phantom() -> None:
    story, rows = told(1)
    story.ok(BOB, rows[0])
    assert kinds(story.end()) == [Kind.PHANTOM]


@pytest.mark.parametrize("how", ["seen", "held", "sent", "marked"])
def test_a_stranger_in_a_conversation_is_a_phantom(how: str) -> None:
    story, rows = told(1)
    if how == "seen":
        story.see("carol@phone", *rows)
    elif how == "held":
        story.hold("carol@phone", rows)
    elif how == "sent":
        story.send("carol@phone", "hello")
    else:
        story.marks[TALK] = {"carol": (1, 1)}
    assert kinds(story.end()) == [Kind.PHANTOM]


# --- rewritten


def test_an_answer_that_names_the_position_of_another_message_is_rewritten() -> None:
    story, rows = told(2)
    story.invoke(ALICE, "m3")
    story.ok(ALICE, story.make(ALICE, "m3", 2))
    assert kinds(story.end()) == [Kind.LOST, Kind.REWRITTEN]
    assert rows[1].seq == 2


def test_an_event_that_was_seen_with_other_contents_is_rewritten() -> None:
    story, rows = told(2)
    story.see(BOB, rows[0]._replace(id=rows[0].id + 1))
    assert kinds(story.end()) == [Kind.REWRITTEN]


def test_an_event_that_is_held_with_other_contents_is_rewritten_and_differs() -> None:
    story, rows = told(2)
    story.hold(BOB, [rows[0], rows[1]._replace(id=rows[1].id + 1)])
    assert kinds(story.end()) == [Kind.DIFFERS, Kind.REWRITTEN]


def test_an_event_that_was_in_the_backup_and_changes_is_rewritten() -> None:
    story, rows = told(2)
    story.restore({TALK: 2})
    changed = [rows[0], rows[1]._replace(id=rows[1].id + 1)]
    assert kinds(check(in_the_end(story, changed))) == [Kind.REWRITTEN]


def test_an_event_that_replaces_one_removed_by_a_restore_is_not_rewritten() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    story.send(ALICE, "m3")
    assert story.end().ok


def test_two_events_with_one_seq_and_id_are_rewritten_even_across_a_restore() -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    story.invoke(ALICE, "m3")
    row = story.make(ALICE, "m3", 2)._replace(id=rows[1].id)
    assert kinds(check(in_the_end(story, [rows[0], row]))) == [Kind.REWRITTEN]


def test_a_device_restarts_a_log_only_after_a_restore_that_removed_events() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.restore({TALK: 2})
    story.begin(BOB)
    assert kinds(story.end()) == [Kind.REWRITTEN]
    story, rows = told(2)
    story.restore({TALK: 1})
    story.begin(BOB)
    assert story.end().ok


# --- marks


def test_marks_of_a_device_do_not_fall() -> None:
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    story.mark(BOB, "alice", 3, 2)
    assert with_marks(story, ("alice", 3, 2)).ok
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    story.mark(BOB, "alice", 2, 2)
    assert kinds(with_marks(story, ("alice", 3, 2))) == [Kind.MARK_BACK]


def test_marks_of_two_users_and_of_two_devices_are_not_compared() -> None:
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 3)
    story.mark(BOB, "bob", 2, 2)
    story.mark(ALICE, "alice", 1, 1)
    assert with_marks(story, ("alice", 3, 3), ("bob", 2, 2)).ok


def test_marks_of_a_device_may_fall_when_it_restarts_the_log() -> None:
    story, _ = told(3)
    story.mark(BOB, "bob", 3, 3)
    story.marks[TALK] = {"bob": (3, 3)}
    story.restore({TALK: 1})
    story.mark(BOB, "bob", 3, 3)
    story.begin(BOB)
    story.mark(BOB, "bob", 1, 1)
    assert with_marks(story, ("bob", 1, 1)).ok


def test_marks_sent_to_a_device_are_in_the_store() -> None:
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    assert kinds(with_marks(story, ("alice", 2, 1))) == [Kind.MARK_BACK]
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    assert kinds(story.end()) == [Kind.MARK_BACK]


def test_a_device_may_have_the_marks_of_its_own_user_before_the_store() -> None:
    story, _ = told(3)
    story.mark(BOB, "bob", 3, 3)
    assert story.end().ok


def test_marks_from_before_a_restore_may_arrive_after_it() -> None:
    story, _ = told(3)
    story.marks[TALK] = {"alice": (3, 2)}
    story.restore({TALK: 1})
    story.mark(BOB, "alice", 3, 2)
    assert with_marks(story, ("alice", 1, 1)).ok


@pytest.mark.parametrize("marks", [(4, 1), (3, 4)])
def test_no_mark_passes_the_end_of_its_log(marks: tuple[int, int]) -> None:
    story, _ = told(3)
    assert kinds(with_marks(story, ("alice", *marks))) == [Kind.MARK_BACK]


# --- answers


def test_a_message_has_one_answer() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[1]._replace(id=rows[1].id + 1))
    assert kinds(story.end()) == [Kind.CHANGED_ANSWER, Kind.REWRITTEN]


def test_the_same_answer_may_come_twice() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[1])
    assert story.end().ok


def test_a_message_that_is_stored_again_after_a_restore_has_another_answer() -> None:
    story, _ = told(2)
    story.restore({TALK: 1})
    story.send(ALICE, "m2")
    assert story.end().ok


def test_a_message_that_was_in_the_backup_keeps_its_answer() -> None:
    story, rows = told(2)
    story.restore({TALK: 2})
    story.send(ALICE, "m2")
    assert Kind.CHANGED_ANSWER in kinds(story.end())
    assert rows[1].name == "m2"


# --- forgotten


def test_a_message_in_an_outbox_is_stored() -> None:
    story, _ = told(1, keeps=True)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    story.fault("wiped", forgets=True)
    assert kinds(story.end()) == [Kind.FORGOTTEN]


def test_a_message_refused_or_removed_by_a_restore_is_not_forgotten() -> None:
    story, _ = told(2, keeps=True)
    story.invoke(ALICE, "m3")
    story.take(ALICE, "m3")
    story.fail(ALICE, "m3")
    story.restore({TALK: 1})
    assert story.end().ok


@pytest.mark.parametrize(("forgets", "found"), [(True, []), (False, [Kind.FORGOTTEN])])
def test_a_message_that_the_broker_acked_is_stored_unless_the_broker_lost_its_state(
    forgets: bool, found: list[Kind]
) -> None:
    story, _ = told(1, keeps=False)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    story.fault("killed", forgets=forgets)
    assert kinds(story.end()) == found


def test_a_message_acked_after_the_broker_lost_its_state_is_judged() -> None:
    story, _ = told(1, keeps=False)
    story.fault("wiped", forgets=True)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    assert kinds(story.end()) == [Kind.FORGOTTEN]


def test_a_message_in_no_outbox_and_without_a_puback_may_be_forgotten() -> None:
    story, _ = told(1, keeps=True)
    story.invoke(ALICE, "m2")
    story.start(ALICE, keeps=True)
    assert story.end().ok


# --- what is no history


def test_an_epoch_does_not_end_without_a_restore() -> None:
    story, rows = told(1)
    story.epoch = 1
    with pytest.raises(ValueError, match="epoch 0 ended"):
        story.end()
    assert rows


def test_epochs_end_in_order() -> None:
    story, _ = told(1)
    story.epoch = 1
    story.restore({})
    with pytest.raises(ValueError, match="epoch 1 is said to end while epoch 0 lasts"):
        story.verdict()


def test_a_conversation_is_read_once_per_epoch() -> None:
    story, _ = told(1)
    story.end()
    with pytest.raises(ValueError, match="read twice"):
        story.end()


def test_equal_rows_from_different_writers_are_equal() -> None:
    """They come from files, so no two of them are one object."""
    story, rows = told(2)
    copies = [Row(*row) for row in rows]
    story.see(BOB, *copies)
    story.hold(BOB, copies)
    assert story.end().ok
    assert {type(line) for line in story.lines} >= {Held, Stored}
