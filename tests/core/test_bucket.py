"""The token bucket: never more than its rate and burst allow, and no less."""

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.bucket import Bucket, Rate

RATE = Rate(per_second=10, burst=20)

asks = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 50)), max_size=40)  # (ms since, wanted)
rates = st.builds(Rate, st.integers(1, 1_000), st.integers(1, 1_000))


def test_a_new_bucket_grants_its_burst_at_once_and_then_nothing() -> None:
    bucket, taken = RATE.take(Bucket(RATE.full, 0), 25, 0)
    assert taken == 20
    assert RATE.take(bucket, 1, 0) == (bucket, 0)


def test_an_empty_bucket_gives_a_token_each_tenth_of_a_second() -> None:
    empty = Bucket(0, 0)
    assert RATE.take(empty, 9, 99)[1] == 0
    assert RATE.take(empty, 9, 100)[1] == 1
    assert RATE.take(empty, 9, 250)[1] == 2


def test_frequent_requests_lose_no_fractions_of_a_token() -> None:
    bucket, total = Bucket(0, 0), 0
    for now in range(1, 1_001):
        bucket, taken = RATE.take(bucket, 1, now)
        total += taken
    assert total == 10


def test_a_clock_that_steps_back_adds_no_tokens() -> None:
    bucket, taken = RATE.take(Bucket(0, 3_600_000), 5, 0)
    assert taken == 0
    assert RATE.take(bucket, 5, 300)[1] == 3


@given(rates, asks)
def test_never_more_than_rate_times_time_plus_burst(rate: Rate, asks: list[tuple[int, int]]) -> None:
    bucket, now = Bucket(rate.full, 0), 0
    granted: list[tuple[int, int]] = []
    for since, wanted in asks:
        now += since
        bucket, taken = rate.take(bucket, wanted, now)
        assert 0 <= taken <= wanted
        granted.append((now, taken))
    for first, (start, _) in enumerate(granted):  # over every interval, not just from the beginning
        total = 0
        for end, taken in granted[first:]:
            total += taken
            assert total * 1_000 <= rate.per_second * (end - start) + rate.burst * 1_000


@given(rates, asks)
def test_a_device_within_the_rate_is_never_refused(rate: Rate, asks: list[tuple[int, int]]) -> None:
    bucket, now = Bucket(rate.full, 0), 0
    for since, _ in asks:
        now += since
        allowed = since * rate.per_second // 1_000
        bucket, taken = rate.take(bucket, allowed, now)
        assert taken == min(allowed, rate.burst)
