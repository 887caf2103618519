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


def test_a_run_in_which_everything_goes_well_has_no_findings_and_is_counted() -> None:
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


def test_a_user_of_whom_no_fresh_device_tells_is_named() -> None:
    story, rows = told(1)
    story.hold("alice@fresh", rows, fresh=True)
    story.hold("bob@phone", rows)
    story.read_store()
    verdict = story.verdict()
    assert verdict.ok
    assert verdict.unseen == {"bob"}


def test_a_finding_names_enough_to_begin_looking() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[0]._replace(seq=9, id=4711))
    [one, other] = story.end().findings
    assert str(one).startswith(f"phantom: {TALK}: alice@phone was told that 'm1' is at seq 9 (id 4711)")
    assert str(other).startswith(f"answer changed: {TALK}: alice was told that 'm1' is at seq 1")


# --- lost


def test_an_accepted_message_that_is_in_no_store_is_lost() -> None:
    story, rows = told(3)
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_a_message_of_which_its_sender_does_not_know_may_be_in_no_store() -> None:
    story, _ = told(3)
    story.invoke(ALICE, "m4")
    story.info(ALICE, "m4")
    assert story.end().ok


def test_an_accepted_message_that_a_restore_takes_away_is_excused() -> None:
    story, _ = told(3)
    story.restore({TALK: 2})
    assert story.end().ok


def test_an_accepted_message_that_was_in_the_backup_is_lost_if_it_is_gone() -> None:
    story, rows = told(3)
    story.restore({TALK: 3})
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_so_is_one_that_nobody_was_told_is_accepted() -> None:
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


def test_a_backup_of_a_log_that_a_restore_had_ended_brings_it_back() -> None:
    story, rows = restored_to_a_younger_backup_of_an_older_epoch()
    story.see(BOB, *rows[:2])
    assert story.end().ok


def test_and_with_it_all_that_it_had() -> None:
    story, rows = restored_to_a_younger_backup_of_an_older_epoch()
    assert kinds(check(in_the_end(story, rows[:2]))) == [Kind.LOST]


def test_each_restore_excuses_what_it_takes_away_and_no_more() -> None:
    story, _ = told(5)
    story.restore({TALK: 4})
    story.restore({TALK: 2})
    story.restore({TALK: 2})
    assert story.end().ok
    story, rows = told(5)
    story.restore({TALK: 2})
    story.restore({TALK: 2})
    assert kinds(check(in_the_end(story, rows[:1]))) == [Kind.LOST]


def test_a_backup_that_had_more_than_the_store_at_its_epochs_end_tells_of_a_loss() -> None:
    story, rows = told(2)
    story.logs[TALK] = rows[:1]
    story.restore({TALK: 2})
    assert Kind.LOST in kinds(check(in_the_end(story, rows)))


@pytest.mark.parametrize(("device", "fresh"), [("bob@new", True), (BOB, False)])
def test_what_a_member_s_device_lacks_at_the_end_is_lost_on_it(device: str, fresh: bool) -> None:
    story, rows = told(4)
    story.hold(device, [*rows[:1], *rows[3:]], fresh=fresh)
    verdict = story.end()
    assert kinds(verdict) == [Kind.HOLE, Kind.LOST]
    assert "seq 2" in verdict.findings[1].what
    assert "seq 3" in verdict.findings[1].what
    assert verdict.differing == {TALK}


def test_a_device_that_lacks_the_newest_message_has_lost_it() -> None:
    story, rows = told(4)
    story.hold(BOB, rows[:3])
    assert kinds(story.end()) == [Kind.LOST]


def test_a_long_lived_device_may_begin_where_it_came_in_but_a_fresh_one_may_not() -> None:
    story, rows = told(4)
    story.hold(BOB, rows[2:], base=2)
    assert story.end().ok
    story, rows = told(4)
    story.hold("bob@new", rows[2:], base=2, fresh=True)
    assert kinds(story.end()) == [Kind.LOST]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_device_that_does_not_know_a_conversation_has_lost_it(fresh: bool) -> None:
    story, _ = told(1)
    note = story.send(BOB, "note", "u:bob")
    story.hold("bob@new", [note], fresh=fresh, conversation="u:bob")
    verdict = story.end()
    assert kinds(verdict) == [Kind.LOST]
    assert verdict.differing == {TALK}


def test_a_device_need_not_know_what_is_empty_or_not_its_user_s() -> None:
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


def test_a_message_that_is_sent_often_and_stored_once_is_not() -> None:
    story, rows = told(2)
    for row in rows * 2:
        story.invoke(ALICE, row.name)
        story.ok(ALICE, row)
    assert story.end().ok


def test_one_text_under_two_names_is_doubled() -> None:
    story, rows = told(2)
    text = value_of(ALICE, "m1")
    story.invoke(ALICE, "other", value=text)
    other = story.make(ALICE, "other", 3, value=text)
    assert set(kinds(check(in_the_end(story, [*rows, other])))) == {Kind.DOUBLED}


def test_two_users_may_use_one_name() -> None:
    story, _ = told(2)
    story.send(BOB, "m1")
    assert story.end().ok


def test_a_device_that_shows_a_message_twice_doubles_it() -> None:
    story, rows = told(2)
    story.see(BOB, *rows, rows[1])
    assert kinds(story.end()) == [Kind.DOUBLED]


def test_a_device_that_holds_a_message_twice_doubles_it() -> None:
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


def test_but_only_once() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.start(BOB)
    story.see(BOB, rows[1], rows[1])
    assert kinds(story.end()) == [Kind.DOUBLED]


def test_and_not_the_one_before() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.start(BOB)
    story.see(BOB, rows[0])
    assert kinds(story.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_and_not_the_last_event_of_each_conversation() -> None:
    story, rows = told(1)
    note = story.send(BOB, "note", "u:bob")
    story.see(BOB, *rows)
    story.see(BOB, note, conversation="u:bob")
    story.start(BOB)
    story.see(BOB, note, conversation="u:bob")
    story.see(BOB, *rows)
    assert [it.conversation for it in story.end().findings] == [TALK]


def test_and_not_after_it_has_shown_the_next() -> None:
    story, rows = told(2)
    story.see(BOB, rows[0])
    story.start(BOB)
    story.see(BOB, rows[1], rows[0])
    assert kinds(story.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_a_device_that_begins_anew_shows_what_it_shows() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 2})
    story.begin(BOB)
    story.see(BOB, rows[1], story.send(ALICE, "m4"))
    assert story.end().ok


def test_but_does_not_show_one_message_twice_since_then() -> None:
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
    """Alice sends m1 and then m2, which is stored first. If she `waits`, she was told that m1 is stored."""
    story = Story()
    story.start(ALICE, ordered=ordered)
    m2, m1 = story.logs[TALK] = [story.make(ALICE, "m2", 1), story.make(ALICE, "m1", 2)]
    story.invoke(ALICE, "m1")
    if waits:
        story.ok(ALICE, m1)
    story.invoke(ALICE, "m2")
    story.ok(ALICE, m2)
    return story.end()


def test_a_device_that_promises_its_order_keeps_it() -> None:
    assert kinds(overtaking(ordered=True, waits=False)) == [Kind.DISORDER]


def test_one_that_does_not_may_be_overtaken_by_itself() -> None:
    assert overtaking(ordered=False, waits=False).ok


def test_but_not_once_the_first_was_accepted() -> None:
    assert kinds(overtaking(ordered=False, waits=True)) == [Kind.DISORDER]


def test_an_order_that_a_restore_has_broken_is_excused() -> None:
    story, _ = told(1)
    story.restore({TALK: 0})
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert story.end().ok


def test_what_was_in_no_outbox_when_its_device_was_killed_has_its_place_when_it_is_sent_again() -> None:
    story = Story()
    story.start(ALICE, ordered=True, keeps=True)
    story.invoke(ALICE, "m1")
    story.start(ALICE, ordered=True, keeps=True)
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert story.end().ok


def test_what_was_in_it_keeps_its_place() -> None:
    story = Story()
    story.start(ALICE, ordered=True, keeps=True)
    story.invoke(ALICE, "m1")
    story.take(ALICE, "m1")
    story.start(ALICE, ordered=True, keeps=True)
    story.send(ALICE, "m2")
    story.send(ALICE, "m1")
    assert kinds(story.end()) == [Kind.DISORDER]


# --- hole


def test_a_seq_that_the_store_does_not_have_is_a_hole() -> None:
    story, rows = told(1)
    story.invoke(ALICE, "m2")
    later = story.make(ALICE, "m2", 3)
    assert set(kinds(check(in_the_end(story, [*rows, later])))) == {Kind.HOLE}


def test_a_log_begins_at_1() -> None:
    story = Story()
    story.invoke(ALICE, "m1")
    assert Kind.HOLE in kinds(check(in_the_end(story, [story.make(ALICE, "m1", 2)])))


def test_a_device_that_passes_an_event_over_has_a_hole() -> None:
    story, rows = told(3)
    story.see(BOB, rows[0], rows[2])
    assert kinds(story.end()) == [Kind.HOLE]


def test_a_device_may_begin_in_the_middle_and_end_before_the_end() -> None:
    story, rows = told(4)
    story.see(BOB, rows[1], rows[2])
    assert story.end().ok


def test_what_a_device_holds_begins_right_behind_its_base() -> None:
    story, rows = told(3)
    story.hold(BOB, rows[1:], base=0)
    assert kinds(story.end()) == [Kind.HOLE, Kind.LOST]


# --- differs


def test_a_device_that_holds_another_row_differs() -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    new = story.send(ALICE, "m3")
    story.hold(BOB, [rows[0], rows[1]])
    verdict = story.end()
    assert new.seq == rows[1].seq
    assert kinds(verdict) == [Kind.DIFFERS]
    assert verdict.differing == {TALK}


@pytest.mark.parametrize(("base", "held"), [(0, [0, 1]), (1, [1]), (2, [])])
def test_a_device_that_holds_more_than_there_is_differs(base: int, held: list[int]) -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    story.hold(BOB, [rows[number] for number in held], base=base)
    assert kinds(story.end()) == [Kind.DIFFERS]


def test_a_device_that_holds_nothing_of_an_empty_log_does_not() -> None:
    story, _ = told(2)
    story.restore({})
    story.hold(BOB, [])
    assert story.end().ok


def test_the_beginning_of_one_log_and_the_end_of_another_are_no_log() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    story.send(ALICE, "m3")
    story.see(BOB, story.send(ALICE, "m4"))
    assert kinds(story.end()) == [Kind.DIFFERS]


def test_a_device_that_has_not_seen_what_a_restore_took_away_just_goes_on() -> None:
    story, rows = told(3)
    story.see(BOB, rows[0])
    story.restore({TALK: 2})
    story.see(BOB, rows[1], story.send(ALICE, "m3"))
    assert story.end().ok


def test_one_that_was_killed_over_a_restore_may_begin_anew_without_a_word() -> None:
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


def test_one_that_was_sent_and_never_answered_is_none() -> None:
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.store(ALICE, "m2")
    assert story.end().ok


@pytest.mark.parametrize(
    "changed", [{"sender": "bob"}, {"value": "other"}, {"name": "other"}], ids=lambda it: next(iter(it))
)
def test_one_with_another_sender_or_value_or_name_is_a_phantom(changed: dict[str, str]) -> None:
    story = Story()
    story.invoke(ALICE, "m1")
    row = story.store(ALICE, "m1")
    story.logs[TALK] = [row._replace(**changed)]  # type: ignore[arg-type]
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_one_that_was_sent_to_another_conversation_is_a_phantom() -> None:
    story, rows = told(1)
    story.invoke(ALICE, "note", "u:alice")
    elsewhere = story.make(ALICE, "note", 2, value=value_of(ALICE, "note", "u:alice"))
    assert kinds(check(in_the_end(story, [*rows, elsewhere]))) == [Kind.PHANTOM]


def test_one_that_was_refused_is_a_phantom() -> None:
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.fail(ALICE, "m2")
    assert story.end().ok
    story, _ = told(1)
    story.invoke(ALICE, "m2")
    story.fail(ALICE, "m2")
    story.store(ALICE, "m2")
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_a_conflict_refuses_the_second_value_and_not_the_stored_one() -> None:
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


def test_a_conflict_with_what_is_nowhere_is_a_phantom_unless_a_restore_took_it_away() -> None:
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


def test_what_is_seen_beyond_the_end_of_every_log_is_a_phantom() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.invoke(ALICE, "m3")
    story.see(BOB, story.make(ALICE, "m3", 3))
    assert kinds(story.end()) == [Kind.PHANTOM]


def test_what_was_seen_before_a_restore_took_it_away_is_none() -> None:
    story, rows = told(3)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    assert story.end().ok


def test_an_answer_to_what_was_never_sent_is_a_phantom() -> None:
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


def test_an_answer_that_names_another_s_place_is_rewritten() -> None:
    story, rows = told(2)
    story.invoke(ALICE, "m3")
    story.ok(ALICE, story.make(ALICE, "m3", 2))
    assert kinds(story.end()) == [Kind.LOST, Kind.REWRITTEN]
    assert rows[1].seq == 2


def test_a_row_that_was_seen_otherwise_is_rewritten() -> None:
    story, rows = told(2)
    story.see(BOB, rows[0]._replace(id=rows[0].id + 1))
    assert kinds(story.end()) == [Kind.REWRITTEN]


def test_a_row_that_is_held_otherwise_is_rewritten_and_differs() -> None:
    story, rows = told(2)
    story.hold(BOB, [rows[0], rows[1]._replace(id=rows[1].id + 1)])
    assert kinds(story.end()) == [Kind.DIFFERS, Kind.REWRITTEN]


def test_a_row_that_changes_over_a_restore_that_spared_it_is_rewritten() -> None:
    story, rows = told(2)
    story.restore({TALK: 2})
    changed = [rows[0], rows[1]._replace(id=rows[1].id + 1)]
    assert kinds(check(in_the_end(story, changed))) == [Kind.REWRITTEN]


def test_another_row_after_a_restore_that_did_not_spare_it_is_not() -> None:
    story, rows = told(2)
    story.see(BOB, *rows)
    story.restore({TALK: 1})
    story.send(ALICE, "m3")
    assert story.end().ok


def test_two_events_with_one_seq_and_id_are_rewritten_though_a_restore_lies_between() -> None:
    story, rows = told(2)
    story.restore({TALK: 1})
    story.invoke(ALICE, "m3")
    row = story.make(ALICE, "m3", 2)._replace(id=rows[1].id)
    assert kinds(check(in_the_end(story, [rows[0], row]))) == [Kind.REWRITTEN]


def test_nobody_begins_anew_unless_a_restore_has_taken_something_away() -> None:
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


def test_marks_that_a_device_has_do_not_go_back() -> None:
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


def test_a_device_that_begins_anew_begins_its_marks_anew() -> None:
    story, _ = told(3)
    story.mark(BOB, "bob", 3, 3)
    story.marks[TALK] = {"bob": (3, 3)}
    story.restore({TALK: 1})
    story.mark(BOB, "bob", 3, 3)
    story.begin(BOB)
    story.mark(BOB, "bob", 1, 1)
    assert with_marks(story, ("bob", 1, 1)).ok


def test_marks_that_a_device_was_told_are_in_the_store() -> None:
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    assert kinds(with_marks(story, ("alice", 2, 1))) == [Kind.MARK_BACK]
    story, _ = told(3)
    story.mark(BOB, "alice", 3, 1)
    assert kinds(story.end()) == [Kind.MARK_BACK]


def test_a_device_may_have_its_own_user_s_marks_before_the_store() -> None:
    story, _ = told(3)
    story.mark(BOB, "bob", 3, 3)
    assert story.end().ok


def test_marks_of_before_a_restore_may_be_told_after_it() -> None:
    story, _ = told(3)
    story.marks[TALK] = {"alice": (3, 2)}
    story.restore({TALK: 1})
    story.mark(BOB, "alice", 3, 2)
    assert with_marks(story, ("alice", 1, 1)).ok


@pytest.mark.parametrize("marks", [(4, 1), (3, 4)])
def test_nobody_has_got_or_read_what_does_not_exist(marks: tuple[int, int]) -> None:
    story, _ = told(3)
    assert kinds(with_marks(story, ("alice", *marks))) == [Kind.MARK_BACK]


# --- answers


def test_a_message_has_one_answer() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[1]._replace(id=rows[1].id + 1))
    assert kinds(story.end()) == [Kind.CHANGED_ANSWER, Kind.REWRITTEN]


def test_it_may_come_twice() -> None:
    story, rows = told(2)
    story.ok(ALICE, rows[1])
    assert story.end().ok


def test_a_message_that_is_stored_again_after_a_restore_has_another_answer() -> None:
    story, _ = told(2)
    story.restore({TALK: 1})
    story.send(ALICE, "m2")
    assert story.end().ok


def test_but_not_if_the_restore_has_spared_it() -> None:
    story, rows = told(2)
    story.restore({TALK: 2})
    story.send(ALICE, "m2")
    assert Kind.CHANGED_ANSWER in kinds(story.end())
    assert rows[1].name == "m2"


# --- forgotten


def test_what_is_in_an_outbox_gets_into_the_store() -> None:
    story, _ = told(1, keeps=True)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    story.fault("wiped", forgets=True)
    assert kinds(story.end()) == [Kind.FORGOTTEN]


def test_what_was_refused_or_undone_by_a_restore_is_not_forgotten() -> None:
    story, _ = told(2, keeps=True)
    story.invoke(ALICE, "m3")
    story.take(ALICE, "m3")
    story.fail(ALICE, "m3")
    story.restore({TALK: 1})
    assert story.end().ok


@pytest.mark.parametrize(("forgets", "found"), [(True, []), (False, [Kind.FORGOTTEN])])
def test_what_a_broker_took_gets_into_the_store_unless_a_broker_may_forget(
    forgets: bool, found: list[Kind]
) -> None:
    story, _ = told(1, keeps=False)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    story.fault("killed", forgets=forgets)
    assert kinds(story.end()) == found


def test_what_a_broker_took_after_it_had_forgotten_things_is_judged() -> None:
    story, _ = told(1, keeps=False)
    story.fault("wiped", forgets=True)
    story.invoke(ALICE, "m2")
    story.take(ALICE, "m2")
    assert kinds(story.end()) == [Kind.FORGOTTEN]


def test_what_nobody_took_over_may_be_forgotten() -> None:
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


def test_epochs_end_in_their_order() -> None:
    story, _ = told(1)
    story.epoch = 1
    story.restore({})
    with pytest.raises(ValueError, match="epoch 1 is said to end while epoch 0 lasts"):
        story.verdict()


def test_a_conversation_is_read_once_an_epoch() -> None:
    story, _ = told(1)
    story.end()
    with pytest.raises(ValueError, match="read twice"):
        story.end()


def test_equal_rows_are_equal_whoever_wrote_them() -> None:
    """They come from files, so no two of them are one object."""
    story, rows = told(2)
    copies = [Row(*row) for row in rows]
    story.see(BOB, *copies)
    story.hold(BOB, copies)
    assert story.end().ok
    assert {type(line) for line in story.lines} >= {Held, Stored}
