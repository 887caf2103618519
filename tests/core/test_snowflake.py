import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.snowflake import MAX_PARTITIONS, Snowflake
from imqtt.errors import ClockBehind
from imqtt.model import SNOWFLAKE_EPOCH

NOW = SNOWFLAKE_EPOCH + 60_000_000_000
HOUR = 3_600_000


@given(st.lists(st.integers(-59_000, 59_000), min_size=1, max_size=200), st.integers(0, MAX_PARTITIONS - 1))
def test_ids_grow_whatever_the_clock_does_within_the_tolerance(steps: list[int], partition: int) -> None:
    ids = Snowflake(partition, 120_000)
    drawn = [ids.draw(NOW + step) for step in steps]
    assert drawn == sorted(set(drawn))


@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_an_id_is_greater_than_the_one_it_follows_or_refused(after: list[int]) -> None:
    ids = Snowflake(3, 60_000)
    for last in after:
        try:
            assert ids.draw(NOW, last) > last
        except ClockBehind:
            assert last >> 22 >= NOW - SNOWFLAKE_EPOCH


def test_an_id_tells_its_time_and_partition() -> None:
    drawn = Snowflake(5, 60_000).draw(NOW)
    assert drawn.time == NOW
    assert (drawn >> 12) & (MAX_PARTITIONS - 1) == 5


def test_more_ids_than_a_millisecond_holds_run_on_into_the_next() -> None:
    ids = Snowflake(0, 60_000)
    drawn = [ids.draw(NOW) for _ in range(5_000)]
    assert drawn == sorted(set(drawn))
    assert drawn[-1].time == NOW + 1


def test_a_clock_that_steps_back_a_little_is_not_noticed() -> None:
    ids = Snowflake(0, 60_000)
    before = ids.draw(NOW)
    assert ids.draw(NOW - 59_000) > before


def test_a_clock_that_steps_back_an_hour_is_refused_until_it_is_right() -> None:
    ids = Snowflake(0, 60_000)
    before = ids.draw(NOW)
    with pytest.raises(ClockBehind, match="3600 s behind"):
        ids.draw(NOW - HOUR)
    assert ids.draw(NOW + 1) > before


def test_one_conversation_from_the_future_does_not_stop_the_others() -> None:
    ids = Snowflake(0, 60_000)
    future = Snowflake(0, 60_000).draw(NOW + HOUR)
    with pytest.raises(ClockBehind):
        ids.draw(NOW, after=future)
    assert ids.draw(NOW).time == NOW


def test_a_partition_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        Snowflake(1024, 0)
