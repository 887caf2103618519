"""For each kind of finding: the smallest history that has it, and the most similar one that does not."""

import pytest

from tests.verification.checker.builder import TALK, HistoryBuilder, shown, value_of
from tests.verification.checker.check import Kind, Verdict, check
from tests.verification.checker.history import Held, Line, Row, Stored

ALICE, BOB = "alice@phone", "bob@phone"


def kinds(verdict: Verdict) -> list[Kind]:
    """The kinds of all findings, with repetitions."""
    return sorted(finding.kind for finding in verdict.findings)


def accepted_messages(
    count: int, *, ordered: bool = True, durable: bool = True
) -> tuple[HistoryBuilder, list[Row]]:
    """A history in which Alice has sent `count` messages, all stored and accepted; and their rows."""
    history = HistoryBuilder()
    history.start(ALICE, ordered=ordered, durable=durable)
    history.start(BOB, ordered=ordered, durable=durable)
    return history, [history.send(ALICE, f"m{number}") for number in range(1, count + 1)]


def with_final_rows(history: HistoryBuilder, rows: list[Row]) -> list[Line]:
    """The lines of the history if the store and all fresh devices end with these rows."""
    history.logs[TALK] = rows
    history.end()
    return history.lines


def with_final_marks(history: HistoryBuilder, *marks: tuple[str, int, int]) -> Verdict:
    """The verdict if these are the store's final marks of `TALK`."""
    history.marks[TALK] = {user: (delivered, read) for user, delivered, read in marks}
    return history.end()


# --- nothing


def test_a_correct_run_has_no_findings_and_its_events_are_counted() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows)
    history.invoke(BOB, "unanswered")
    history.info(BOB, "unanswered")
    verdict = history.end()
    assert verdict.ok
    assert (verdict.sent, verdict.accepted, verdict.stored) == (4, 3, 3)
    assert verdict.differing == verdict.unseen == frozenset()


def test_an_empty_history_has_no_findings() -> None:
    assert check([]).ok


def test_a_user_without_a_fresh_device_is_reported() -> None:
    history, rows = accepted_messages(1)
    history.hold("alice@fresh", rows, fresh=True)
    history.hold("bob@phone", rows)
    history.read_store()
    verdict = history.verdict()
    assert verdict.ok
    assert verdict.unseen == {"bob"}


def test_a_finding_names_the_conversation_and_events_to_look_at() -> None:
    history, rows = accepted_messages(2)
    history.ok(ALICE, rows[0]._replace(seq=9, id=4711))
    [one, other] = history.end().findings
    assert str(one).startswith(f"phantom: {TALK}: alice@phone was told that 'm1' is at seq 9 (id 4711)")
    assert str(other).startswith(f"answer changed: {TALK}: alice was told that 'm1' is at seq 1")


# --- lost


def test_an_accepted_message_missing_from_the_store_is_lost() -> None:
    history, rows = accepted_messages(3)
    assert kinds(check(with_final_rows(history, rows[:2]))) == [Kind.LOST]


def test_a_message_with_an_unknown_outcome_may_be_missing_from_the_store() -> None:
    history, _ = accepted_messages(3)
    history.invoke(ALICE, "m4")
    history.info(ALICE, "m4")
    assert history.end().ok


def test_an_accepted_message_that_a_restore_removes_is_not_lost() -> None:
    history, _ = accepted_messages(3)
    history.restore({TALK: 2})
    assert history.end().ok


def test_an_accepted_message_that_was_in_the_backup_and_is_missing_is_lost() -> None:
    history, rows = accepted_messages(3)
    history.restore({TALK: 3})
    assert kinds(check(with_final_rows(history, rows[:2]))) == [Kind.LOST]


def test_an_unanswered_message_that_was_in_the_backup_and_is_missing_is_lost() -> None:
    history, rows = accepted_messages(2)
    history.invoke(ALICE, "m3")
    rows.append(history.store(ALICE, "m3"))
    history.restore({TALK: 3})
    assert kinds(check(with_final_rows(history, rows[:2]))) == [Kind.LOST]


def restored_to_a_younger_backup_of_an_older_epoch() -> tuple[HistoryBuilder, list[Row]]:
    """Two backups of one epoch; the older is restored first, so the younger belongs to an earlier log."""
    history, rows = accepted_messages(4)
    history.restore({TALK: 1})
    history.send(ALICE, "m5")
    history.restore({TALK: 3}, backup_epoch=0)
    history.logs[TALK] = rows[:3]
    return history, rows


def test_a_backup_of_an_earlier_log_restores_that_log() -> None:
    history, rows = restored_to_a_younger_backup_of_an_older_epoch()
    history.see(BOB, *rows[:2])
    assert history.end().ok


def test_a_backup_of_an_earlier_log_restores_every_message_of_that_log() -> None:
    history, rows = restored_to_a_younger_backup_of_an_older_epoch()
    assert kinds(check(with_final_rows(history, rows[:2]))) == [Kind.LOST]


def test_each_restore_excuses_only_the_messages_that_it_removes() -> None:
    history, _ = accepted_messages(5)
    history.restore({TALK: 4})
    history.restore({TALK: 2})
    history.restore({TALK: 2})
    assert history.end().ok
    history, rows = accepted_messages(5)
    history.restore({TALK: 2})
    history.restore({TALK: 2})
    assert kinds(check(with_final_rows(history, rows[:1]))) == [Kind.LOST]


def test_a_message_of_a_backup_that_was_missing_at_the_end_of_its_epoch_is_lost() -> None:
    history, rows = accepted_messages(2)
    history.logs[TALK] = rows[:1]
    history.restore({TALK: 2})
    assert Kind.LOST in kinds(check(with_final_rows(history, rows)))


@pytest.mark.parametrize(("device", "fresh"), [("bob@new", True), (BOB, False)])
def test_a_stored_message_missing_on_a_members_device_is_lost(device: str, fresh: bool) -> None:
    history, rows = accepted_messages(4)
    history.hold(device, [*rows[:1], *rows[3:]], fresh=fresh)
    verdict = history.end()
    assert kinds(verdict) == [Kind.HOLE, Kind.LOST]
    assert "seq 2" in verdict.findings[1].what
    assert "seq 3" in verdict.findings[1].what
    assert verdict.differing == {TALK}


def test_the_newest_message_missing_on_a_device_is_lost() -> None:
    history, rows = accepted_messages(4)
    history.hold(BOB, rows[:3])
    assert kinds(history.end()) == [Kind.LOST]


def test_only_a_long_lived_device_may_begin_in_the_middle_of_a_log() -> None:
    history, rows = accepted_messages(4)
    history.hold(BOB, rows[2:], base=2)
    assert history.end().ok
    history, rows = accepted_messages(4)
    history.hold("bob@new", rows[2:], base=2, fresh=True)
    assert kinds(history.end()) == [Kind.LOST]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_conversation_unknown_to_a_members_device_is_lost(fresh: bool) -> None:
    history, _ = accepted_messages(1)
    note = history.send(BOB, "note", "u:bob")
    history.hold("bob@new", [note], fresh=fresh, conversation="u:bob")
    verdict = history.end()
    assert kinds(verdict) == [Kind.LOST]
    assert verdict.differing == {TALK}


def test_a_device_may_lack_empty_conversations_and_those_of_other_users() -> None:
    history, rows = accepted_messages(1)
    history.send(ALICE, "note", "u:alice")
    history.logs["d:bob:carol"] = []
    history.hold("bob@new", rows, fresh=True)
    assert history.end().ok


# --- doubled


def test_a_message_that_is_stored_twice_is_doubled() -> None:
    history, rows = accepted_messages(2)
    again = history.make(ALICE, "m1", 3)
    # The two fresh devices hold it twice as well.
    assert kinds(check(with_final_rows(history, [*rows, again]))) == [Kind.DOUBLED] * 3


def test_a_message_that_is_sent_often_and_stored_once_is_not_doubled() -> None:
    history, rows = accepted_messages(2)
    for row in rows * 2:
        history.invoke(ALICE, row.name)
        history.ok(ALICE, row)
    assert history.end().ok


def test_a_value_stored_under_two_client_msg_ids_is_doubled() -> None:
    history, rows = accepted_messages(2)
    text = value_of(ALICE, "m1")
    history.invoke(ALICE, "other", value=text)
    other = history.make(ALICE, "other", 3, value=text)
    assert set(kinds(check(with_final_rows(history, [*rows, other])))) == {Kind.DOUBLED}


def test_two_users_may_use_the_same_client_msg_id() -> None:
    history, _ = accepted_messages(2)
    history.send(BOB, "m1")
    assert history.end().ok


def test_a_message_shown_twice_by_a_device_is_doubled() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows, rows[1])
    assert kinds(history.end()) == [Kind.DOUBLED]


def test_a_message_held_twice_by_a_device_is_doubled() -> None:
    history, rows = accepted_messages(2)
    history.hold(BOB, [*rows, rows[1]])
    verdict = history.end()
    assert kinds(verdict) == [Kind.DOUBLED]
    assert verdict.differing == {TALK}


def test_a_device_that_was_killed_may_show_the_last_event_again() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows[:2])
    history.start(BOB)
    history.see(BOB, rows[1])
    history.start(BOB)
    history.see(BOB, *rows[1:])
    assert history.end().ok


def test_a_killed_device_may_show_the_last_event_only_once_more() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.start(BOB)
    history.see(BOB, rows[1], rows[1])
    assert kinds(history.end()) == [Kind.DOUBLED]


def test_a_killed_device_may_not_show_the_event_before_the_last_again() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.start(BOB)
    history.see(BOB, rows[0])
    assert kinds(history.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_a_killed_device_may_not_show_the_last_event_of_each_conversation_again() -> None:
    history, rows = accepted_messages(1)
    note = history.send(BOB, "note", "u:bob")
    history.see(BOB, *rows)
    history.see(BOB, note, conversation="u:bob")
    history.start(BOB)
    history.see(BOB, note, conversation="u:bob")
    history.see(BOB, *rows)
    assert [finding.conversation for finding in history.end().findings] == [TALK]


def test_a_killed_device_may_not_show_the_last_event_again_after_the_next() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, rows[0])
    history.start(BOB)
    history.see(BOB, rows[1], rows[0])
    assert kinds(history.end()) == [Kind.DOUBLED, Kind.DISORDER]


def test_a_device_may_show_events_again_after_a_restart_of_the_log() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows)
    history.restore({TALK: 2})
    history.restart_log(BOB)
    history.see(BOB, rows[1], history.send(ALICE, "m4"))
    assert history.end().ok


def test_a_device_may_not_show_a_message_twice_after_a_restart_of_the_log() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows)
    history.restore({TALK: 2})
    history.restart_log(BOB)
    history.see(BOB, *rows[:2], rows[1])
    assert kinds(history.end()) == [Kind.DOUBLED]


# --- out of order


def test_ids_that_do_not_grow_with_seq_are_out_of_order() -> None:
    history, rows = accepted_messages(3)
    rows[1] = rows[1]._replace(id=rows[2].id)
    history.logs[TALK] = rows
    history.hold("alice@fresh", rows, fresh=True)
    assert Kind.DISORDER in kinds(history.end())


def test_a_device_that_shows_an_older_event_is_out_of_order() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, rows[1], rows[2], rows[0])
    assert kinds(history.end()) == [Kind.DISORDER]


def overtaking(*, ordered: bool, waits: bool) -> Verdict:
    """Alice sends m1 and then m2, which is stored first. With `waits`, m1 was accepted before that."""
    history = HistoryBuilder()
    history.start(ALICE, ordered=ordered)
    m2, m1 = history.logs[TALK] = [history.make(ALICE, "m2", 1), history.make(ALICE, "m1", 2)]
    history.invoke(ALICE, "m1")
    if waits:
        history.ok(ALICE, m1)
    history.invoke(ALICE, "m2")
    history.ok(ALICE, m2)
    return history.end()


def test_messages_of_an_ordered_sender_are_stored_in_its_order() -> None:
    assert kinds(overtaking(ordered=True, waits=False)) == [Kind.DISORDER]


def test_messages_of_an_unordered_sender_may_overtake_each_other() -> None:
    assert overtaking(ordered=False, waits=False).ok


def test_a_message_may_not_overtake_one_accepted_before_it_was_sent() -> None:
    assert kinds(overtaking(ordered=False, waits=True)) == [Kind.DISORDER]


def test_an_order_broken_by_a_restore_is_no_finding() -> None:
    history, _ = accepted_messages(1)
    history.restore({TALK: 0})
    history.send(ALICE, "m2")
    history.send(ALICE, "m1")
    assert history.end().ok


def test_a_message_lost_before_the_outbox_is_ordered_by_when_it_is_sent_again() -> None:
    history = HistoryBuilder()
    history.start(ALICE, ordered=True, durable=True)
    history.invoke(ALICE, "m1")
    history.start(ALICE, ordered=True, durable=True)
    history.send(ALICE, "m2")
    history.send(ALICE, "m1")
    assert history.end().ok


def test_a_message_in_the_outbox_keeps_its_order_after_a_kill() -> None:
    history = HistoryBuilder()
    history.start(ALICE, ordered=True, durable=True)
    history.invoke(ALICE, "m1")
    history.queue(ALICE, "m1")
    history.start(ALICE, ordered=True, durable=True)
    history.send(ALICE, "m2")
    history.send(ALICE, "m1")
    assert kinds(history.end()) == [Kind.DISORDER]


# --- hole


def test_a_seq_missing_from_the_store_is_a_hole() -> None:
    history, rows = accepted_messages(1)
    history.invoke(ALICE, "m2")
    later = history.make(ALICE, "m2", 3)
    assert set(kinds(check(with_final_rows(history, [*rows, later])))) == {Kind.HOLE}


def test_a_log_begins_at_1() -> None:
    history = HistoryBuilder()
    history.invoke(ALICE, "m1")
    assert Kind.HOLE in kinds(check(with_final_rows(history, [history.make(ALICE, "m1", 2)])))


def test_an_event_skipped_by_a_device_is_a_hole() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, rows[0], rows[2])
    assert kinds(history.end()) == [Kind.HOLE]


def test_a_device_may_be_shown_only_the_middle_of_a_log() -> None:
    history, rows = accepted_messages(4)
    history.see(BOB, rows[1], rows[2])
    assert history.end().ok


def test_the_events_held_by_a_device_begin_right_after_its_base() -> None:
    history, rows = accepted_messages(3)
    history.hold(BOB, rows[1:], base=0)
    assert kinds(history.end()) == [Kind.HOLE, Kind.LOST]


# --- differs


def test_a_device_that_holds_another_event_than_the_store_differs() -> None:
    history, rows = accepted_messages(2)
    history.restore({TALK: 1})
    new = history.send(ALICE, "m3")
    history.hold(BOB, [rows[0], rows[1]])
    verdict = history.end()
    assert new.seq == rows[1].seq
    assert kinds(verdict) == [Kind.DIFFERS]
    assert verdict.differing == {TALK}


@pytest.mark.parametrize(("base", "held"), [(0, [0, 1]), (1, [1]), (2, [])])
def test_a_device_that_holds_more_events_than_the_store_differs(base: int, held: list[int]) -> None:
    history, rows = accepted_messages(2)
    history.restore({TALK: 1})
    history.hold(BOB, [rows[number] for number in held], base=base)
    assert kinds(history.end()) == [Kind.DIFFERS]


def test_a_device_that_holds_an_empty_log_as_empty_does_not_differ() -> None:
    history, _ = accepted_messages(2)
    history.restore({})
    history.hold(BOB, [])
    assert history.end().ok


def test_a_device_that_combines_the_beginning_of_one_log_with_the_end_of_another_differs() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.restore({TALK: 1})
    history.send(ALICE, "m3")
    history.see(BOB, history.send(ALICE, "m4"))
    assert kinds(history.end()) == [Kind.DIFFERS]


def test_a_device_that_saw_no_removed_event_continues_after_a_restore() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, rows[0])
    history.restore({TALK: 2})
    history.see(BOB, rows[1], history.send(ALICE, "m3"))
    assert history.end().ok


def test_a_device_killed_during_a_restore_may_restart_the_log_without_recording_it() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows)
    history.restore({TALK: 1})
    history.start(BOB)
    history.see(BOB, rows[0], history.send(ALICE, "m4"))
    assert history.end().ok


def test_a_device_killed_after_an_event_of_before_the_restore_arrived_late_may_restart_the_log() -> None:
    """A queue delivered it after the restore. Simulation, seed 1999302."""
    history, rows = accepted_messages(1)
    history.restore({})
    history.see(BOB, *rows)
    history.start(BOB)
    history.see(BOB, history.send(ALICE, "m2"))
    assert history.end().ok


def test_a_device_killed_after_a_restore_that_removed_nothing_it_saw_may_not_restart_the_log() -> None:
    history, rows = accepted_messages(3)
    history.restore({TALK: 2})
    history.see(BOB, *rows[:2])
    history.start(BOB)
    history.see(BOB, rows[0])
    assert kinds(history.end()) == [Kind.DOUBLED, Kind.DISORDER]


# --- phantom


def test_a_stored_message_that_nobody_sent_is_a_phantom() -> None:
    history, rows = accepted_messages(1)
    assert kinds(check(with_final_rows(history, [*rows, history.make(ALICE, "m2", 2)]))) == [Kind.PHANTOM]


def test_a_stored_message_that_was_never_answered_is_no_phantom() -> None:
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.store(ALICE, "m2")
    assert history.end().ok


@pytest.mark.parametrize(
    "changed",
    [{"sender": "bob"}, {"value": "other"}, {"name": "other"}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_stored_message_with_another_sender_value_or_client_msg_id_is_a_phantom(
    changed: dict[str, str],
) -> None:
    history = HistoryBuilder()
    history.invoke(ALICE, "m1")
    row = history.store(ALICE, "m1")
    history.logs[TALK] = [row._replace(**changed)]  # type: ignore[arg-type]
    assert kinds(history.end()) == [Kind.PHANTOM]


def test_a_message_stored_in_another_conversation_is_a_phantom() -> None:
    history, rows = accepted_messages(1)
    history.invoke(ALICE, "note", "u:alice")
    elsewhere = history.make(ALICE, "note", 2, value=value_of(ALICE, "note", "u:alice"))
    assert kinds(check(with_final_rows(history, [*rows, elsewhere]))) == [Kind.PHANTOM]


def test_a_stored_message_that_was_refused_is_a_phantom() -> None:
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.fail(ALICE, "m2")
    assert history.end().ok
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.fail(ALICE, "m2")
    history.store(ALICE, "m2")
    assert kinds(history.end()) == [Kind.PHANTOM]


def test_a_command_may_be_refused_after_a_restore_removed_what_it_had_stored() -> None:
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.store(ALICE, "m2")
    history.restore({TALK: 0})
    history.fail(ALICE, "m2", "not_found")
    assert history.end().ok


def test_a_command_refused_before_a_restore_or_stored_after_it_is_a_phantom() -> None:
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.store(ALICE, "m2")
    history.fail(ALICE, "m2", "not_found")
    history.restore({TALK: 0})
    assert kinds(history.end()) == [Kind.PHANTOM]
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.restore({TALK: 1})
    history.fail(ALICE, "m2", "not_found")
    history.store(ALICE, "m2")
    assert kinds(history.end()) == [Kind.PHANTOM]


def test_a_conflict_refuses_the_second_value_only() -> None:
    history, rows = accepted_messages(1)
    history.invoke(ALICE, "m1", value="something else")
    history.fail(ALICE, "m1", "conflict")
    history.invoke("alice@tablet", "m1", value="and from elsewhere")
    history.fail("alice@tablet", "m1", "conflict")
    assert history.end().ok
    assert rows[0].value == value_of(ALICE, "m1")


def test_a_conflict_of_a_message_with_itself_is_a_phantom() -> None:
    history, rows = accepted_messages(1)
    history.invoke(ALICE, rows[0].name)
    history.fail(ALICE, rows[0].name, "conflict")
    assert kinds(history.end()) == [Kind.PHANTOM]


def test_a_conflict_with_an_unstored_message_is_a_phantom_unless_a_restore_removed_it() -> None:
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m2")
    history.fail(ALICE, "m2", "conflict")
    assert kinds(history.end()) == [Kind.PHANTOM]
    history, _ = accepted_messages(1)
    history.invoke(ALICE, "m1", value="other")
    history.fail(ALICE, "m1", "conflict")
    history.restore({TALK: 0})
    history.invoke(ALICE, "m1", value="other")
    history.ok(ALICE, history.store(ALICE, "m1", value="other"))
    assert history.end().ok


def test_an_event_seen_beyond_the_end_of_every_log_is_a_phantom() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.invoke(ALICE, "m3")
    history.see(BOB, history.make(ALICE, "m3", 3))
    assert kinds(history.end()) == [Kind.PHANTOM]


def test_an_event_seen_before_a_restore_removed_it_is_no_phantom() -> None:
    history, rows = accepted_messages(3)
    history.see(BOB, *rows)
    history.restore({TALK: 1})
    assert history.end().ok


def test_an_answer_to_a_message_that_was_never_sent_is_a_phantom() -> None:
    history, rows = accepted_messages(1)
    history.ok(BOB, rows[0])
    assert kinds(history.end()) == [Kind.PHANTOM]


@pytest.mark.parametrize("how", ["seen", "held", "sent", "marked"])
def test_a_stranger_in_a_conversation_is_a_phantom(how: str) -> None:
    history, rows = accepted_messages(1)
    if how == "seen":
        history.see("carol@phone", *rows)
    elif how == "held":
        history.hold("carol@phone", rows)
    elif how == "sent":
        history.send("carol@phone", "hello")
    else:
        history.marks[TALK] = {"carol": (1, 1)}
    assert kinds(history.end()) == [Kind.PHANTOM]


# --- rewritten


def test_an_answer_that_names_the_position_of_another_message_is_rewritten() -> None:
    history, rows = accepted_messages(2)
    history.invoke(ALICE, "m3")
    history.ok(ALICE, history.make(ALICE, "m3", 2))
    assert kinds(history.end()) == [Kind.LOST, Kind.REWRITTEN]
    assert rows[1].seq == 2


def test_an_event_that_was_seen_with_other_contents_is_rewritten() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, rows[0]._replace(id=rows[0].id + 1))
    assert kinds(history.end()) == [Kind.REWRITTEN]


def test_an_event_that_is_held_with_other_contents_is_rewritten_and_differs() -> None:
    history, rows = accepted_messages(2)
    history.hold(BOB, [rows[0], rows[1]._replace(id=rows[1].id + 1)])
    assert kinds(history.end()) == [Kind.DIFFERS, Kind.REWRITTEN]


def test_an_event_that_was_in_the_backup_and_changes_is_rewritten() -> None:
    history, rows = accepted_messages(2)
    history.restore({TALK: 2})
    changed = [rows[0], rows[1]._replace(id=rows[1].id + 1)]
    assert kinds(check(with_final_rows(history, changed))) == [Kind.REWRITTEN]


def test_an_event_that_replaces_one_removed_by_a_restore_is_not_rewritten() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.restore({TALK: 1})
    history.send(ALICE, "m3")
    assert history.end().ok


def test_two_events_with_one_seq_and_id_are_rewritten_even_across_a_restore() -> None:
    history, rows = accepted_messages(2)
    history.restore({TALK: 1})
    history.invoke(ALICE, "m3")
    row = history.make(ALICE, "m3", 2)._replace(id=rows[1].id)
    assert kinds(check(with_final_rows(history, [rows[0], row]))) == [Kind.REWRITTEN]


def test_a_device_restarts_a_log_only_after_a_restore_that_removed_events() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.restore({TALK: 2})
    history.restart_log(BOB)
    assert kinds(history.end()) == [Kind.REWRITTEN]
    history, rows = accepted_messages(2)
    history.restore({TALK: 1})
    history.restart_log(BOB)
    assert history.end().ok


# --- marks


def test_marks_of_a_device_do_not_fall() -> None:
    history, _ = accepted_messages(3)
    history.mark(BOB, "alice", 3, 1)
    history.mark(BOB, "alice", 3, 2)
    assert with_final_marks(history, ("alice", 3, 2)).ok
    history, _ = accepted_messages(3)
    history.mark(BOB, "alice", 3, 1)
    history.mark(BOB, "alice", 2, 2)
    assert kinds(with_final_marks(history, ("alice", 3, 2))) == [Kind.MARK_BACK]


def test_marks_of_two_users_and_of_two_devices_are_not_compared() -> None:
    history, _ = accepted_messages(3)
    history.mark(BOB, "alice", 3, 3)
    history.mark(BOB, "bob", 2, 2)
    history.mark(ALICE, "alice", 1, 1)
    assert with_final_marks(history, ("alice", 3, 3), ("bob", 2, 2)).ok


def test_marks_of_a_device_may_fall_when_it_restarts_the_log() -> None:
    history, _ = accepted_messages(3)
    history.mark(BOB, "bob", 3, 3)
    history.marks[TALK] = {"bob": (3, 3)}
    history.restore({TALK: 1})
    history.mark(BOB, "bob", 3, 3)
    history.restart_log(BOB)
    history.mark(BOB, "bob", 1, 1)
    assert with_final_marks(history, ("bob", 1, 1)).ok


def test_marks_sent_to_a_device_are_in_the_store() -> None:
    history, _ = accepted_messages(3)
    history.mark(BOB, "alice", 3, 1)
    assert kinds(with_final_marks(history, ("alice", 2, 1))) == [Kind.MARK_BACK]
    history, _ = accepted_messages(3)
    history.mark(BOB, "alice", 3, 1)
    assert kinds(history.end()) == [Kind.MARK_BACK]


def test_a_device_may_have_the_marks_of_its_own_user_before_the_store() -> None:
    history, _ = accepted_messages(3)
    history.mark(BOB, "bob", 3, 3)
    assert history.end().ok


def test_marks_from_before_a_restore_may_arrive_after_it() -> None:
    history, _ = accepted_messages(3)
    history.marks[TALK] = {"alice": (3, 2)}
    history.restore({TALK: 1})
    history.mark(BOB, "alice", 3, 2)
    assert with_final_marks(history, ("alice", 1, 1)).ok


@pytest.mark.parametrize("marks", [(4, 1), (3, 4)])
def test_no_mark_passes_the_end_of_its_log(marks: tuple[int, int]) -> None:
    history, _ = accepted_messages(3)
    assert kinds(with_final_marks(history, ("alice", *marks))) == [Kind.MARK_BACK]


# --- answers


def test_a_message_has_one_answer() -> None:
    history, rows = accepted_messages(2)
    history.ok(ALICE, rows[1]._replace(id=rows[1].id + 1))
    assert kinds(history.end()) == [Kind.CHANGED_ANSWER, Kind.REWRITTEN]


def test_the_same_answer_may_come_twice() -> None:
    history, rows = accepted_messages(2)
    history.ok(ALICE, rows[1])
    assert history.end().ok


def test_a_message_that_is_stored_again_after_a_restore_has_another_answer() -> None:
    history, _ = accepted_messages(2)
    history.restore({TALK: 1})
    history.send(ALICE, "m2")
    assert history.end().ok


def test_a_message_that_was_in_the_backup_keeps_its_answer() -> None:
    history, rows = accepted_messages(2)
    history.restore({TALK: 2})
    history.send(ALICE, "m2")
    assert Kind.CHANGED_ANSWER in kinds(history.end())
    assert rows[1].name == "m2"


# --- forgotten


def test_a_message_in_an_outbox_is_stored() -> None:
    history, _ = accepted_messages(1, durable=True)
    history.invoke(ALICE, "m2")
    history.queue(ALICE, "m2")
    history.fault("wiped", loses_state=True)
    assert kinds(history.end()) == [Kind.FORGOTTEN]


def test_a_message_refused_or_removed_by_a_restore_is_not_forgotten() -> None:
    history, _ = accepted_messages(2, durable=True)
    history.invoke(ALICE, "m3")
    history.queue(ALICE, "m3")
    history.fail(ALICE, "m3")
    history.restore({TALK: 1})
    assert history.end().ok


@pytest.mark.parametrize(("loses_state", "found"), [(True, []), (False, [Kind.FORGOTTEN])])
def test_a_message_that_the_broker_acked_is_stored_unless_the_broker_lost_its_state(
    loses_state: bool, found: list[Kind]
) -> None:
    history, _ = accepted_messages(1, durable=False)
    history.invoke(ALICE, "m2")
    history.queue(ALICE, "m2")
    history.fault("killed", loses_state=loses_state)
    assert kinds(history.end()) == found


def test_a_message_acked_after_the_broker_lost_its_state_is_judged() -> None:
    history, _ = accepted_messages(1, durable=False)
    history.fault("wiped", loses_state=True)
    history.invoke(ALICE, "m2")
    history.queue(ALICE, "m2")
    assert kinds(history.end()) == [Kind.FORGOTTEN]


def test_a_message_in_no_outbox_and_without_a_puback_may_be_forgotten() -> None:
    history, _ = accepted_messages(1, durable=True)
    history.invoke(ALICE, "m2")
    history.start(ALICE, durable=True)
    assert history.end().ok


# --- invalid histories


def test_an_epoch_does_not_end_without_a_restore() -> None:
    history, rows = accepted_messages(1)
    history.epoch = 1
    with pytest.raises(ValueError, match="epoch 0 ended"):
        history.end()
    assert rows


def test_epochs_end_in_order() -> None:
    history, _ = accepted_messages(1)
    history.epoch = 1
    history.restore({})
    with pytest.raises(ValueError, match="epoch 1 ends during epoch 0"):
        history.verdict()


def test_a_conversation_is_read_once_per_epoch() -> None:
    history, _ = accepted_messages(1)
    history.end()
    with pytest.raises(ValueError, match="read twice"):
        history.end()


def test_equal_rows_from_different_writers_are_equal() -> None:
    """Rows are read from files, so equal rows are different objects."""
    history, rows = accepted_messages(2)
    copies = [Row(*row) for row in rows]
    history.see(BOB, *copies)
    history.hold(BOB, copies)
    assert history.end().ok
    assert {type(line) for line in history.lines} >= {Held, Stored}


# --- recalls


def test_a_recalled_message_is_held_without_its_value() -> None:
    history, rows = accepted_messages(3)
    recall = history.recall(ALICE, rows[1])
    history.see(BOB, *rows, recall)  # it had the value before
    history.hold(BOB, shown([*rows, recall]))
    history.get_page(BOB, [rows[0], rows[1]._replace(value="")], registers=[recall], known=[rows[1]])
    assert history.end().ok


def test_a_device_that_keeps_the_value_of_a_recalled_message_is_found() -> None:
    history, rows = accepted_messages(2)
    history.hold(BOB, [*rows, history.recall(ALICE, rows[0])])
    assert kinds(history.end()) == [Kind.SHOWN]


def test_a_device_that_lacks_the_value_of_a_message_that_is_not_recalled_is_found() -> None:
    history, rows = accepted_messages(2)
    history.hold(BOB, [rows[0]._replace(value=""), rows[1]])
    assert kinds(history.end()) == [Kind.DIFFERS, Kind.PHANTOM, Kind.REWRITTEN]


def test_a_page_that_shows_a_message_after_its_recall_or_lacks_the_recall_is_found() -> None:
    history, rows = accepted_messages(2)
    recall = history.recall(ALICE, rows[0])
    blank = rows[0]._replace(value="")
    history.get_page(BOB, [rows[0]])  # it may have been read before the recall
    history.get_page(BOB, [blank, rows[1], recall], known=[rows[0]])
    history.get_page(BOB, [rows[0]], registers=[recall], known=[rows[0]])
    history.get_page(BOB, [blank, rows[1]], known=[rows[0]])
    assert kinds(history.end()) == [Kind.SHOWN] * 2


def test_a_recall_of_another_users_message_or_of_nothing_or_of_a_recall_is_found() -> None:
    for target in ("other", "nothing", "recall", "later"):
        history, rows = accepted_messages(2)
        if target == "other":
            history.recall(BOB, rows[0])
        elif target == "nothing":
            history.recall(ALICE, rows[0]._replace(id=rows[0].id + 1))
        elif target == "recall":
            history.recall(ALICE, history.recall(ALICE, rows[0]), "r2")
        else:
            history.recall(ALICE, history.make(ALICE, "m9", 9))
        assert Kind.WRONG_RECALL in kinds(history.end()), target


def test_a_second_recall_of_a_message_is_found() -> None:
    history, rows = accepted_messages(2)
    history.recall(ALICE, rows[0], "r1")
    history.recall("alice@tablet", rows[0], "r2")
    assert Kind.WRONG_RECALL in kinds(history.end())


def test_a_killed_device_may_see_its_last_event_again_as_recalled() -> None:
    history, rows = accepted_messages(2)
    history.see(BOB, *rows)
    history.start(BOB, ordered=True, durable=True)
    recall = history.recall(ALICE, rows[1])
    history.see(BOB, rows[1]._replace(value=""), recall)
    assert history.end().ok
