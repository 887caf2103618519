"""A worker acts on a view of the alive workers only after the view was stable for a period."""

from imqtt.core.membership import Membership, contention

A, AB, ABC = frozenset("a"), frozenset("ab"), frozenset("abc")


def test_a_view_takes_effect_after_it_was_stable_for_a_period() -> None:
    membership = Membership(1.0)
    assert not membership.see(0.0, AB)
    assert membership.acted is None
    assert not membership.see(0.9, AB)
    assert membership.see(1.0, AB)
    assert membership.acted == AB


def test_a_worker_that_returns_within_a_period_never_left() -> None:
    membership = Membership(1.0)
    membership.see(0.0, AB)
    membership.see(1.0, AB)
    assert not membership.see(1.2, A)
    assert not membership.see(1.9, AB)
    assert membership.acted == AB
    assert not membership.see(2.0, ABC)
    assert membership.see(3.0, ABC)
    assert membership.acted == ABC


def test_the_last_view_holds_while_the_state_is_unreachable() -> None:
    membership = Membership(1.0)
    membership.see(0.0, AB)
    membership.see(1.0, AB)
    membership.see_nothing()
    assert membership.acted == AB


def test_the_first_view_after_an_outage_must_be_stable_for_a_period() -> None:
    """A Redis that restarts empty shows each worker only itself."""
    membership = Membership(1.0)
    membership.see(0.0, AB)
    membership.see(1.0, AB)
    membership.see_nothing()
    assert not membership.see(30.0, A)
    assert not membership.see(30.2, AB)
    assert not membership.see(31.1, AB)
    assert membership.acted == AB
    assert membership.see(31.2, AB)


def test_a_period_of_zero_takes_effect_at_once() -> None:
    assert Membership(0.0).see(5.0, A)


def test_waits_double_with_each_takeover_up_to_a_bound() -> None:
    waits = [contention(cuts, 1.0) for cuts in range(1, 20)]
    assert waits[:4] == [0.2, 0.4, 0.8, 1.6]
    assert waits == sorted(waits)
    assert waits[-1] == 300.0
    assert contention(5, 0.0) == contention(5, 1.0) / 2
