"""Rate limits: a token bucket for each device."""

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imqtt.model import Device
from imqtt.state.base import State
from tests.contract.states import BURST, RATE

PHONE = Device("alice", "phone")
LAPTOP = Device("alice", "laptop")


async def test_a_device_may_send_its_burst_at_once(state: State) -> None:
    assert await state.take({PHONE: 5}, 0) == {PHONE: 5}
    assert await state.take({PHONE: 100}, 0) == {PHONE: BURST - 5}
    assert await state.take({PHONE: 1}, 0) == {PHONE: 0}
    assert await state.take({}, 0) == {}


async def test_tokens_come_back_at_the_rate(state: State) -> None:
    await state.take({PHONE: BURST}, 0)
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: RATE}
    assert await state.take({PHONE: 100}, 1_050) == {PHONE: 0}
    assert await state.take({PHONE: 100}, 1_100) == {PHONE: 1}
    assert await state.take({PHONE: 100}, 1_000_000) == {PHONE: BURST}


async def test_each_device_has_a_bucket_of_its_own(state: State) -> None:
    assert await state.take({PHONE: 100, LAPTOP: 3}, 0) == {PHONE: BURST, LAPTOP: 3}
    assert await state.take({PHONE: 1, LAPTOP: 100}, 0) == {PHONE: 0, LAPTOP: BURST - 3}


async def test_a_clock_that_steps_back_an_hour_blocks_no_device(state: State) -> None:
    hour = 3_600_000
    await state.take({PHONE: BURST}, hour)
    assert await state.take({PHONE: 1}, 0) == {PHONE: 0}
    assert await state.take({PHONE: 100}, 1_000) == {PHONE: RATE}


async def test_a_clock_that_is_a_little_behind_adds_no_tokens(state: State) -> None:
    await state.take({PHONE: BURST}, 10_000)
    assert await state.take({PHONE: 1}, 9_000) == {PHONE: 0}
    assert await state.take({PHONE: 100}, 12_000) in ({PHONE: 2 * RATE}, {PHONE: BURST})


async def test_hundreds_of_devices_take_at_once(state: State) -> None:
    wanted = {Device(f"user{number}", "phone"): number % 30 for number in range(500)}
    assert await state.take(wanted, 0) == {device: min(count, BURST) for device, count in wanted.items()}


@pytest.mark.asyncio
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.integers(1, 100),
    burst=st.integers(1, 100),
    asks=st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([PHONE, LAPTOP]), st.integers(0, 60))),
)
async def test_no_device_gets_more_than_rate_times_time_plus_burst(
    open_state: Callable[[int, int], Awaitable[State]],
    rate: int,
    burst: int,
    asks: list[tuple[int, Device, int]],
) -> None:
    state = await open_state(rate, burst)
    now = 1_000_000
    begin, total = now, {PHONE: 0, LAPTOP: 0}
    for since, device, wanted in asks:
        now += since
        taken = (await state.take({device: wanted}, now))[device]
        assert 0 <= taken <= wanted
        total[device] += taken
        assert total[device] * 1_000 <= rate * (now - begin) + burst * 1_000
    await state.close()
