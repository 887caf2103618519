from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.snowflake import HALF, MAX_PARTITIONS, MAX_TIME, Snowflake
from imqtt.errors import ClockWrong
from imqtt.model import SNOWFLAKE_EPOCH, Id

NOW = SNOWFLAKE_EPOCH + 60_000_000_000
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# Clock readings in milliseconds from NOW: mostly correct, often back at an earlier value.
CLOCKS = st.one_of(
    st.integers(-59_000, 59_000), st.sampled_from([-DAY, -HOUR, 0, HOUR, DAY]), st.integers(-2 * DAY, 2 * DAY)
)


class Conversations:
    """Logs of one partition, whose successive owners assign the ids of events."""

    def __init__(self, tolerance: int = MINUTE) -> None:
        self._tolerance = tolerance
        self.ids: dict[str, list[Id]] = {}
        self.restart()

    def restart(self) -> None:
        self._snowflake = Snowflake(5, self._tolerance)

    def write(self, name: str, now: int) -> Id:
        log = self.ids.setdefault(name, [])
        log.append(self._snowflake.draw(now, log[-1] if log else 0))
        return log[-1]


@given(st.lists(st.integers(-59_000, 59_000), min_size=1, max_size=200), st.integers(0, MAX_PARTITIONS - 1))
def test_ids_grow_with_any_clock_within_the_tolerance(steps: list[int], partition: int) -> None:
    ids = Snowflake(partition, 120_000)
    drawn = [ids.draw(NOW + step) for step in steps]
    assert drawn == sorted(set(drawn))


@given(st.lists(st.tuples(st.sampled_from("abc"), CLOCKS, st.integers(0, 19)), max_size=200))
def test_ids_and_times_grow_in_every_conversation_with_any_clock(
    steps: Sequence[tuple[str, int, int]],
) -> None:
    conversations = Conversations()
    for name, offset, chance in steps:
        if chance == 0:
            conversations.restart()
        conversations.write(name, NOW + offset)
    for ids in conversations.ids.values():
        assert ids == sorted(set(ids))
        assert [id.time for id in ids] == sorted(id.time for id in ids)


@given(st.lists(st.tuples(st.sampled_from("abcd"), CLOCKS), max_size=200))
def test_an_owner_never_repeats_an_id_with_any_clock(steps: Sequence[tuple[str, int]]) -> None:
    conversations = Conversations()
    for name, offset in steps:
        conversations.write(name, NOW + offset)
    drawn = [id for ids in conversations.ids.values() for id in ids]
    assert len(drawn) == len(set(drawn))


@given(st.lists(st.tuples(st.sampled_from("abcd"), CLOCKS), max_size=100), st.sampled_from("abcd"))
def test_an_event_has_the_time_of_the_clock_or_of_the_previous_event(
    steps: Sequence[tuple[str, int]], name: str
) -> None:
    conversations = Conversations(tolerance=0)
    for other, offset in steps:
        conversations.write(other, NOW + offset)
    before = conversations.ids.get(name, [Id(0)])[-1].time
    drawn = conversations.write(name, NOW)
    assert max(NOW, before) <= drawn.time <= max(NOW, before + 1)


def test_an_id_contains_its_time_and_partition() -> None:
    drawn = Snowflake(5, MINUTE).draw(NOW)
    assert drawn.time == NOW
    assert (drawn >> 12) & (MAX_PARTITIONS - 1) == 5


def test_a_full_millisecond_continues_in_the_next() -> None:
    ids = Snowflake(0, MINUTE)
    drawn = [ids.draw(NOW) for _ in range(HALF + 1)]
    assert drawn == sorted(set(drawn))
    assert drawn[-1].time == NOW + 1


def test_a_small_step_back_of_the_clock_has_no_effect() -> None:
    ids = Snowflake(0, MINUTE)
    before = ids.draw(NOW)
    assert ids.draw(NOW - 59_000) > before


def test_after_a_clock_was_a_day_ahead_untouched_conversations_follow_the_clock() -> None:
    conversations = Conversations()
    conversations.write("quiet", NOW)
    conversations.write("busy", NOW + DAY)
    assert conversations.write("quiet", NOW + 1_000).time == NOW + 1_000
    assert conversations.write("new", NOW + 1_000).time == NOW + 1_000


def test_conversations_written_a_day_ahead_keep_that_date_until_it_has_passed() -> None:
    conversations = Conversations()
    conversations.write("busy", NOW + DAY)
    for minute in range(10):
        assert conversations.write("busy", NOW + minute * MINUTE).time == NOW + DAY + 1 + minute
    conversations.restart()
    assert conversations.write("busy", NOW + HOUR).time == NOW + DAY + 11
    assert conversations.write("busy", NOW + DAY + MINUTE).time == NOW + DAY + MINUTE


def test_one_conversation_from_the_future_does_not_affect_others() -> None:
    ids = Snowflake(0, MINUTE)
    future = Snowflake(0, MINUTE).draw(NOW + HOUR)
    assert ids.draw(NOW, after=future) > future
    assert ids.draw(NOW).time == NOW


@pytest.mark.parametrize("clock", [0, SNOWFLAKE_EPOCH, SNOWFLAKE_EPOCH + MAX_TIME + 1, 1 << 62])
def test_an_impossible_clock_is_refused_until_it_is_set(clock: int) -> None:
    ids = Snowflake(0, MINUTE)
    before = ids.draw(NOW)
    with pytest.raises(ClockWrong, match=r"2025|2094"):
        ids.draw(clock)
    assert ids.draw(NOW) > before
    assert ids.draw(NOW).time == NOW


def test_exhausted_ids_are_refused() -> None:
    last = Snowflake(0, MINUTE).draw(SNOWFLAKE_EPOCH + MAX_TIME)
    with pytest.raises(ClockWrong, match="2094"):
        Snowflake(0, MINUTE).draw(NOW, last)


def test_a_partition_number_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        Snowflake(1024, 0)
