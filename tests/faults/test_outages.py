"""MongoDB or Redis away under load, and Redis wiped: senders wait, and nothing is lost or rejected."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.device import RawDevice
from tests.faults.conftest import Overseer, StartWorker
from tests.faults.senders import all_sent, audit_pairs, pairs
from tests.faults.test_workers import answered, shared_by
from tests.mongodb import MongoServer
from tests.redis_server import RedisServer
from tests.services import eventually

Make = Callable[..., Awaitable[RawDevice]]
OUTAGE_SECONDS = 30


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_mongodb_away_for_30_seconds(
    start_worker: StartWorker, overseer: Overseer, mongo: MongoServer, device: Make, how: str
) -> None:
    workers = [await start_worker(), await start_worker()]
    await eventually(lambda: shared_by(overseer, *workers))
    senders = await pairs(device, 4, 300, patience=60.0, pause=0.02)
    sending = asyncio.create_task(all_sent(senders, within=110))
    await eventually(lambda: answered(senders) > 100, within=30)
    if how == "stopped":
        await mongo.stop()
    else:
        mongo.pause()
    await asyncio.sleep(OUTAGE_SECONDS)  # the time itself is what is tried
    waiting = answered(senders)
    if how == "stopped":
        await mongo.start()
    else:
        mongo.resume()
    await sending
    assert answered(senders) > waiting
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_redis_away_for_30_seconds(
    start_worker: StartWorker, overseer: Overseer, redis: RedisServer, device: Make, how: str
) -> None:
    workers = [await start_worker(), await start_worker()]
    await eventually(lambda: shared_by(overseer, *workers))
    senders = await pairs(device, 4, 400, patience=60.0, pause=0.08)
    sending = asyncio.create_task(all_sent(senders, within=110))
    await eventually(lambda: answered(senders) > 100, within=30)
    if how == "stopped":
        await redis.stop()
    else:
        redis.pause()
    await asyncio.sleep(3)  # the last that was on its way
    before = answered(senders)
    await asyncio.sleep(OUTAGE_SECONDS - 3)
    meanwhile = answered(senders) - before
    if how == "stopped":
        await redis.start()
    else:
        redis.resume()
    await sending
    assert meanwhile > 500, "messages waited for Redis"
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(overseer, *workers))


async def test_redis_wiped_again_and_again(
    start_worker: StartWorker, overseer: Overseer, redis: RedisServer, device: Make
) -> None:
    workers = [await start_worker(), await start_worker()]
    await eventually(lambda: shared_by(overseer, *workers))
    owners = await overseer.owners()
    senders = await pairs(device, 4, 200)
    sending = asyncio.create_task(all_sent(senders))
    for goal in range(100, 1_500, 200):
        await eventually(lambda goal=goal: answered(senders) > goal, within=30)
        redis.command("FLUSHALL")
    await sending
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(overseer, *workers))
    assert await overseer.owners() == owners, "a wiped Redis moved partitions"


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_a_worker_that_goes_while_redis_is_away_is_followed_by_another(
    start_worker: StartWorker, overseer: Overseer, redis: RedisServer, device: Make, how: str
) -> None:
    """Its last will, or its goodbye, comes by the broker."""
    first, second = await start_worker(), await start_worker()
    await eventually(lambda: shared_by(overseer, first, second))
    senders = await pairs(device, 4, 100, pause=0.02)
    sending = asyncio.create_task(all_sent(senders, within=60))
    await eventually(lambda: answered(senders) > 50, within=30)
    await redis.stop()
    await (first.kill() if how == "killed" else first.stop())
    await sending
    await redis.start()
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(overseer, second))
