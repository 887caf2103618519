"""A worker acts on a view of the alive workers only after the view was stable for a period."""

from imqtt.core.live_workers import LiveWorkers, contention

A, AB, ABC = frozenset("a"), frozenset("ab"), frozenset("abc")


def test_a_view_takes_effect_after_it_was_stable_for_a_period() -> None:
    workers = LiveWorkers(1.0)
    assert not workers.see(0.0, AB)
    assert workers.acted is None
    assert not workers.see(0.9, AB)
    assert workers.see(1.0, AB)
    assert workers.acted == AB


def test_a_worker_that_returns_within_a_period_never_left() -> None:
    workers = LiveWorkers(1.0)
    workers.see(0.0, AB)
    workers.see(1.0, AB)
    assert not workers.see(1.2, A)
    assert not workers.see(1.9, AB)
    assert workers.acted == AB
    assert not workers.see(2.0, ABC)
    assert workers.see(3.0, ABC)
    assert workers.acted == ABC


def test_the_last_view_holds_while_the_state_is_unreachable() -> None:
    workers = LiveWorkers(1.0)
    workers.see(0.0, AB)
    workers.see(1.0, AB)
    workers.see_nothing()
    assert workers.acted == AB


def test_the_first_view_after_an_outage_must_be_stable_for_a_period() -> None:
    """A Redis that restarts empty shows each worker only itself."""
    workers = LiveWorkers(1.0)
    workers.see(0.0, AB)
    workers.see(1.0, AB)
    workers.see_nothing()
    assert not workers.see(30.0, A)
    assert not workers.see(30.2, AB)
    assert not workers.see(31.1, AB)
    assert workers.acted == AB
    assert workers.see(31.2, AB)


def test_a_period_of_zero_takes_effect_at_once() -> None:
    assert LiveWorkers(0.0).see(5.0, A)


def test_waits_double_with_each_takeover_up_to_a_bound() -> None:
    waits = [contention(cuts, 1.0) for cuts in range(1, 20)]
    assert waits[:4] == [0.2, 0.4, 0.8, 1.6]
    assert waits == sorted(waits)
    assert waits[-1] == 300.0
    assert contention(5, 0.0) == contention(5, 1.0) / 2
