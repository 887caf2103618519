"""Workers: which ones are alive, and what each reports about itself."""

from imqtt.state.base import Holding, State, Worker
from tests.services import eventually

ALONE = Worker("w1", "north", 4_711, 1_700_000_000_000)
BUSY = Worker(
    id="w2",
    host="south",
    pid=4_712,
    started=1_700_000_000_001,
    version="0.2",
    beats=12,
    holdings=(Holding(3, 1_700_000_000_002, 17, 250, 1), Holding(11, 1_700_000_000_003)),
    leaving=True,
    stuck=True,
    trouble="the store does not answer ⚠",
)
LONG = 60_000


async def test_a_worker_sees_itself(state: State) -> None:
    assert await state.workers() == []
    assert await state.beat(ALONE, LONG) == [ALONE]
    assert await state.workers() == [ALONE]


async def test_workers_see_each_other_in_order_of_id_with_all_fields(state: State) -> None:
    await state.beat(BUSY, LONG)
    assert await state.beat(ALONE, LONG) == [ALONE, BUSY]
    assert await state.workers() == [ALONE, BUSY]


async def test_the_last_heartbeat_of_a_worker_counts(state: State) -> None:
    await state.beat(BUSY, LONG)
    idle = Worker(BUSY.id, BUSY.host, BUSY.pid, BUSY.started)
    assert await state.beat(idle, LONG) == [idle]


async def test_a_worker_that_leaves_is_gone_at_once(state: State) -> None:
    await state.beat(ALONE, LONG)
    await state.beat(BUSY, LONG)
    await state.leave(BUSY.id)
    await state.leave("unknown")
    assert await state.workers() == [ALONE]


async def test_a_worker_that_falls_silent_is_gone_after_its_ttl(state: State) -> None:
    await state.beat(BUSY, 50)

    async def is_gone() -> bool:
        return await state.beat(ALONE, LONG) == [ALONE]

    await eventually(is_gone)
    assert await state.beat(BUSY, LONG) == [ALONE, BUSY]
