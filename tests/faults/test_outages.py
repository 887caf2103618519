"""MongoDB or Redis is unavailable or wiped under load: senders wait; no message is lost or rejected."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.device import RawDevice
from tests.faults.conftest import OUTAGES, Cluster, StartWorker, start_two
from tests.faults.senders import all_sent, audit_pairs, pairs
from tests.faults.test_workers import answered, shared_by
from tests.mongodb import MongoServer
from tests.redis_server import RedisServer
from tests.services import eventually

Make = Callable[..., Awaitable[RawDevice]]


@contextlib.asynccontextmanager
async def unavailable(server: MongoServer | RedisServer, how: str) -> AsyncIterator[None]:
    """`how`: stopped or paused."""
    if how == "stopped":
        await server.stop()
    else:
        server.pause()
    yield
    if how == "stopped":
        await server.start()
    else:
        server.resume()


@pytest.mark.parametrize("seconds", OUTAGES)
@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_senders_wait_while_mongodb_is_away(
    start_worker: StartWorker, cluster: Cluster, mongo: MongoServer, device: Make, how: str, seconds: float
) -> None:
    workers = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, *workers))
    senders = await pairs(device, 4, 100, patience=60.0, pause=0.02)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 100)
    async with unavailable(mongo, how):
        await asyncio.sleep(seconds)  # the test is about this duration
        waiting = answered(senders)
        assert not sending.done(), "no sender waited for MongoDB"
    await sending
    assert answered(senders) > waiting
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)


@pytest.mark.parametrize("seconds", OUTAGES)
@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_messages_are_delivered_while_redis_is_away(
    start_worker: StartWorker, cluster: Cluster, redis: RedisServer, device: Make, how: str, seconds: float
) -> None:
    workers = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, *workers))
    senders = await pairs(device, 4, 40 + int(seconds / 0.08), patience=60.0, pause=0.08)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 100)
    async with unavailable(redis, how):
        away = answered(senders)
        # More messages are answered during the outage than were in flight, so none waits for Redis.
        await eventually(lambda: answered(senders) > away + 100, what="messages being accepted without Redis")
        await asyncio.sleep(seconds)  # the test is about this duration
    await sending
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(cluster, *workers))


async def test_messages_are_delivered_while_redis_is_wiped_repeatedly(
    start_worker: StartWorker, cluster: Cluster, redis: RedisServer, device: Make
) -> None:
    workers = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, *workers))
    owners = await cluster.owners()
    senders = await pairs(device, 4, 200)
    sending = asyncio.create_task(all_sent(senders))
    for goal in range(100, 1_500, 200):
        await eventually(lambda goal=goal: answered(senders) > goal)
        redis.command("FLUSHALL")
    await sending
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(cluster, *workers))
    assert await cluster.owners() == owners, "a wiped Redis moved partitions"


@pytest.mark.parametrize("how", ["killed", "ended"])
async def test_a_worker_that_leaves_while_redis_is_away_is_replaced(
    start_worker: StartWorker, cluster: Cluster, redis: RedisServer, device: Make, how: str
) -> None:
    """Its last will, or its farewell on an orderly stop, arrives through the broker."""
    first, second = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, first, second))
    senders = await pairs(device, 4, 100, pause=0.02)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 50)
    await redis.stop()
    await (first.kill() if how == "killed" else first.stop())
    await sending
    await redis.start()
    await audit_pairs(device, senders)
    await eventually(lambda: shared_by(cluster, second))
