from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.backoff import backoff, untaken


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_wait_is_positive_and_at_most_the_cap(attempt: int, chance: float) -> None:
    assert 0.01 <= backoff(attempt, chance, base=0.1, cap=5.0) <= 5.0


def test_waits_double_with_each_attempt() -> None:
    assert [backoff(n, 1.0, base=1.0, cap=100.0) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_publish_without_subscribers_is_retried_soon_and_later_rarely(attempt: int, chance: float) -> None:
    wait = untaken(attempt, chance)
    assert 1.0 <= wait <= 2.0 if attempt <= 4 else 2.0 <= wait <= 15.0
    assert wait <= untaken(attempt, 1.0) <= untaken(attempt + 1, 1.0)
