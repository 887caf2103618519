"""The outbox: which messages it sends, when and in which order, whatever happens to them."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from imqtt.core.outbox import Fate, Outbox, OutboxKey

A1, A2, A3 = (OutboxKey("d:alice:bob", f"a{number}") for number in (1, 2, 3))
B1, B2 = (OutboxKey("d:alice:carol", f"b{number}") for number in (1, 2))


def outbox(*keys: OutboxKey, window: int = 64) -> Outbox:
    box = Outbox(lambda: 0.5, answer_within=10.0, patience=60.0, window=window)
    for key in keys:
        box.put(key, 0.0)
    return box


def test_one_message_per_conversation_is_in_flight_and_conversations_are_independent() -> None:
    box = outbox(A1, A2, B1, B2)
    assert box.take(0.0) == [A1, B1]
    assert box.take(1.0) == []
    assert box.discard(B1, 1.0)
    assert box.take(1.0) == [B2]
    assert len(box) == 3


def test_an_unanswered_message_is_sent_again_and_less_often_each_time() -> None:
    box = outbox(A1, A2)
    times, now = [], 0.0
    for _ in range(6):
        assert box.take(now) == [A1]
        times.append(now)
        due = box.next_at()
        assert due is not None
        now = due
    waits = [after - before for before, after in pairwise(times)]
    assert waits == [11.0, 22.0, 44.0, 66.0, 66.0]


def test_a_message_without_a_subscriber_is_sent_again_soon() -> None:
    box, now, waits = outbox(A1, A2), 0.0, []
    for _ in range(7):
        assert box.take(now) == [A1]
        box.untaken(A1, now)
        due = box.next_at()
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits == [1.5, 1.5, 1.5, 1.5, 3.0, 6.0, 11.25]
    box.take(now)
    assert box.next_at() == now + 11.0  # waits for the answer as at the first try
    box.untaken(A2, now)  # it is not in flight
    box.untaken(B1, now)
    assert box.next_at() == now + 11.0
    box.discard(A1, now)
    box.take(now)
    box.untaken(A2, now)
    assert box.next_at() == now + 1.5


def test_a_late_answer_counts() -> None:
    box = outbox(A1, A2)
    box.take(0.0)
    box.rejected(A1, 1.0, retryable=True, retry_after=100.0)
    assert box.discard(A1, 2.0)
    assert not box.discard(A1, 2.0)
    assert box.take(2.0) == [A2]


def test_a_retryable_rejection_waits_for_retry_after_and_keeps_its_place() -> None:
    box = outbox(A1, A2, B1)
    box.take(0.0)
    assert box.rejected(A1, 1.0, retryable=True, retry_after=5.0) is Fate.AGAIN
    box.discard(B1, 1.0)
    assert box.take(6.0) == []
    due = box.next_at()
    assert due is not None
    assert 6.0 < due < 6.3
    assert box.take(due) == [A1]


def test_retry_after_is_observed_though_the_connection_was_lost_before_the_rejection_was_read() -> None:
    box = outbox(A1)
    box.take(0.0)
    box.lost(1.0)
    assert box.rejected(A1, 1.0, retryable=True, retry_after=5.0) is Fate.AGAIN
    assert box.take(6.0) == []
    assert box.take(6.3) == [A1]


def test_a_refused_message_gives_way_to_the_next() -> None:
    box = outbox(A1, A2)
    box.take(0.0)
    assert box.rejected(A1, 1.0, retryable=False) is Fate.REFUSED
    assert box.rejected(A1, 1.0, retryable=False) is Fate.UNKNOWN
    assert box.take(1.0) == [A2]


def test_messages_in_flight_on_a_lost_connection_are_sent_at_once_on_the_next() -> None:
    box = outbox(A1, B1)
    box.take(0.0)
    box.lost(3.0)
    assert box.take(3.0) == [A1, B1]


def test_a_message_whose_connections_keep_ending_waits_longer_each_time() -> None:
    box = outbox(A1)
    waits, now = [], 0.0
    for _ in range(8):
        box.take(now)
        box.lost(now)
        due = box.next_at()
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] > 1.0


def test_a_silent_partition_does_not_keep_others_out_of_the_window() -> None:
    silent = [OutboxKey(f"d:a:{number}", "m") for number in range(10)]
    box = outbox(*silent, window=5)
    assert box.take(0.0) == silent[:5]
    assert box.take(5.0) == []
    due = box.next_at()
    assert due is not None
    assert box.take(due) == silent[5:]


def test_a_discarded_message_is_not_sent() -> None:
    box = outbox(A1, A2, A3)
    box.take(0.0)
    assert box.discard(A2, 0.0)
    assert not box.discard(A2, 0.0)
    box.discard(A1, 0.0)
    assert box.take(0.0) == [A3]
    assert A3 in box
    assert A2 not in box


class World(RuleBasedStateMachine):
    """A server that stores messages, loses them or asks to retry; and connections that come and go."""

    def __init__(self) -> None:
        super().__init__()
        chance = random.Random(0)
        self.box = Outbox(chance.random, answer_within=1.0, patience=4.0, window=2)
        self.now = 0.0
        self.put: dict[str, list[str]] = {}
        self.stored: dict[str, list[str]] = {}
        self.in_flight: list[OutboxKey] = []
        self.count = 0

    @rule(conversation=st.sampled_from("abc"))
    def put_one(self, conversation: str) -> None:
        self.count += 1
        key = OutboxKey(conversation, str(self.count))
        self.put.setdefault(conversation, []).append(key.client_msg_id)
        self.box.put(key, self.now)

    @rule(seconds=st.floats(0.0, 5.0))
    def send(self, seconds: float) -> None:
        self.now += seconds
        taken = self.box.take(self.now)
        assert len(taken) <= 2
        assert len({key.conversation for key in taken}) == len(taken)
        self.in_flight += taken

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), outcome=st.sampled_from(["stored", "stored, answer lost", "lost", "busy"]))
    def arrive(self, data: st.DataObject, outcome: str) -> None:
        key = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        log = self.stored.setdefault(key.conversation, [])
        if outcome.startswith("stored"):
            if key.client_msg_id not in log:
                log.append(key.client_msg_id)
            if outcome == "stored":
                self.box.discard(key, self.now)
        elif outcome == "busy" and key.client_msg_id not in log:
            self.box.rejected(key, self.now, retryable=True, retry_after=0.1)

    @rule()
    def lose_connection(self) -> None:
        self.in_flight.clear()
        self.box.lost(self.now)

    @invariant()
    def every_log_is_a_prefix_of_the_messages_put(self) -> None:
        for conversation, log in self.stored.items():
            assert log == self.put[conversation][: len(log)]

    def teardown(self) -> None:
        """With a working connection, everything arrives."""
        self.lose_connection()
        for _ in range(10 * self.count + 10):
            for key in self.box.take(self.now):
                self.in_flight.append(key)
                self.arrive_finally(key)
            self.now = max(self.now, self.box.next_at() or 0.0)
        assert len(self.box) == 0
        assert self.stored == self.put or not self.put

    def arrive_finally(self, key: OutboxKey) -> None:
        self.in_flight.remove(key)
        log = self.stored.setdefault(key.conversation, [])
        if key.client_msg_id not in log:
            log.append(key.client_msg_id)
        self.box.discard(key, self.now)


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(1, 20), st.floats(0.0, 1.0))
def test_waiting_is_never_longer_than_patience_allows(tries: int, chance: float) -> None:
    box = Outbox(lambda: chance, answer_within=1.0, patience=10.0)
    box.put(A1, 0.0)
    now = 0.0
    for _ in range(tries):
        assert box.take(now) == [A1]
        due = box.next_at()
        assert due is not None
        assert 1.0 <= due - now <= 12.0
        now = due
