"""The state machine of a client's connection: which broker it tries when, and when it gives up."""

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.connection import Connection, Phase


def connection(addresses: int = 2) -> Connection:
    return Connection(addresses, lambda: 1.0, base=0.5, cap=30.0)


def attempt(machine: Connection, now: float) -> int:
    address, _ = machine.next(now)
    machine.connecting()
    return address


def test_the_first_try_does_not_wait_and_states_are_in_order() -> None:
    machine = connection()
    assert machine.phase is Phase.IDLE
    assert machine.next(0.0) == (0, 0.0)
    machine.connecting()
    assert machine.phase is Phase.CONNECTING
    machine.established(1.0)
    assert machine.phase is Phase.ESTABLISHED
    machine.lost(100.0)
    assert machine.phase is Phase.IDLE
    machine.close()
    assert machine.phase is Phase.CLOSED


def test_addresses_take_turns_and_each_round_waits_longer() -> None:
    machine = connection()
    seen = []
    for _ in range(8):
        address, wait = machine.next(0.0)
        machine.connecting()
        machine.failed(0.0)
        seen.append((address, wait))
    assert seen == [(0, 0.0), (1, 0.5), (0, 0.5), (1, 1.0), (0, 1.0), (1, 2.0), (0, 2.0), (1, 4.0)]


def test_an_address_with_recent_failures_is_tried_later() -> None:
    machine = connection()
    for _ in range(2):
        attempt(machine, 0.0)
        machine.failed(0.0)
    assert attempt(machine, 0.0) == 0
    machine.failed(0.0)
    assert attempt(machine, 1.0) == 1
    machine.established(1.0)
    machine.lost(60.0)  # it lasted, so the address did not fail
    assert attempt(machine, 60.0) == 1
    machine.established(60.0)
    machine.lost(400.0)
    assert attempt(machine, 400.0) == 0  # its failures are older than the window; 1 was tried last


def test_a_connection_that_lasted_resets_the_count_of_failures() -> None:
    machine = connection(1)
    for _ in range(5):
        attempt(machine, 0.0)
        machine.failed(0.0)
    attempt(machine, 10.0)
    machine.established(10.0)
    machine.lost(12.0)  # too short
    assert machine.next(12.0).wait > 4.0
    machine.connecting()
    machine.established(20.0)
    machine.lost(40.0)
    assert machine.next(40.0).wait == 0.5


def test_refusals_by_every_broker_end_a_device_that_was_never_accepted() -> None:
    machine = connection()
    attempt(machine, 0.0)
    assert not machine.refused(0.0)
    attempt(machine, 1.0)
    assert machine.refused(1.0)


def test_an_unreachable_broker_does_not_hide_a_wrong_password() -> None:
    machine = connection()
    attempt(machine, 0.0)
    machine.failed(0.0)
    attempt(machine, 1.0)
    assert machine.refused(1.0)


def test_a_device_that_was_accepted_before_retries_for_some_rounds() -> None:
    machine = connection(1)
    attempt(machine, 0.0)
    machine.established(0.0)
    machine.lost(100.0)
    answers = []
    for number in range(3):
        attempt(machine, 100.0 + number)
        answers.append(machine.refused(100.0 + number))
    assert answers == [False, False, True]


@given(st.integers(1, 4), st.lists(st.sampled_from(["failed", "refused", "short", "long"]), max_size=60))
def test_no_wait_is_longer_than_the_cap_and_every_address_is_tried(count: int, outcomes: list[str]) -> None:
    machine = Connection(count, lambda: 1.0, base=0.5, cap=30.0)
    now = 0.0
    tried: list[int] = []
    for outcome in outcomes:
        address, wait = machine.next(now)
        assert 0.0 <= wait <= 30.0
        machine.connecting()
        tried.append(address)
        if outcome == "failed":
            machine.failed(now)
        elif outcome == "refused":
            machine.refused(now)
        else:
            machine.established(now)
            now += 0.1 if outcome == "short" else 20.0
            machine.lost(now)
    if outcomes and set(outcomes) <= {"failed", "refused", "short"} and len(outcomes) >= count:
        assert set(tried) == set(range(count))


def test_a_connection_that_keeps_being_taken_over_is_taken_back_slowly() -> None:
    machine, now, waits = connection(1), 0.0, []
    for _ in range(8):
        _, wait = machine.next(now)
        now += wait
        machine.connecting()
        machine.established(now)
        now += 12.0
        machine.lost(now)
        machine.taken_over(now)
        waits.append(wait)
    assert waits == [0.0, 0.5, 0.5, 5.0, 10.0, 20.0, 40.0, 60.0]
    assert machine.is_contested(now)


def test_a_connection_that_lasted_ends_the_contest() -> None:
    machine = connection(1)
    for now in (1.0, 2.0, 3.0):
        machine.taken_over(now)
    assert machine.next(3.0).wait >= 5.0
    machine.connecting()
    machine.established(10.0)
    machine.lost(140.0)
    machine.taken_over(140.0)
    assert not machine.is_contested(140.0)
    assert machine.next(140.0).wait == 0.5
