"""Servers on a MongoDB and a Redis of the test's own, which it may stop, pause and kill."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest

from imqtt.mosquitto.broker import Mosquitto
from tests.cluster import Cluster as Cluster
from tests.mongodb import MongoServer
from tests.redis_server import RedisServer
from tests.server.conftest import device as device
from tests.server.conftest import running as running
from tests.server.conftest import stack as stack
from tests.services import WITHIN, ServerProcess

StartWorker = Callable[..., Awaitable[ServerProcess]]

BRIEFLY = 2.0
# Seconds for which a part is unavailable, asleep or cut off.
FOR_LONG = pytest.param(30.0, id="30 seconds", marks=pytest.mark.verify)
OUTAGES = [pytest.param(BRIEFLY, id="briefly"), FOR_LONG]


@pytest.fixture
async def mongo(tmp_path: Path) -> AsyncIterator[MongoServer]:
    async with MongoServer(tmp_path / "mongodb") as mongo:
        yield mongo


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture
def start_worker(
    broker: Mosquitto, mongo: MongoServer, redis: RedisServer, tmp_path: Path, stack: AsyncExitStack
) -> StartWorker:
    """`await start_worker()`: another `imqtt serve` on the same broker, MongoDB and Redis."""
    numbers = count(1)

    async def start(**settings: object) -> ServerProcess:
        directory = tmp_path / f"worker-{next(numbers)}"
        directory.mkdir()
        given = {"store": mongo.url, "state": redis.url, **settings}
        return await stack.enter_async_context(ServerProcess(broker, directory, forked=True, **given))

    return start


async def start_two(start_worker: StartWorker, **settings: object) -> list[ServerProcess]:
    """Two workers that start at the same time."""
    return await asyncio.gather(start_worker(**settings), start_worker(**settings))


@pytest.fixture
def cluster(mongo: MongoServer, redis: RedisServer) -> Cluster:
    return Cluster(mongo.url, redis.url, trip_seconds=WITHIN)
