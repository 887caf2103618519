"""Workers join, leave, are killed and stall under load: messages are delayed, and none is lost."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.core.partitions import assign, partition_of
from imqtt.mosquitto.broker import Mosquitto
from tests.device import RawDevice
from tests.faults.conftest import OUTAGES, Cluster, StartWorker, start_two
from tests.faults.impatient_worker import COMMAND as HASTY
from tests.faults.senders import Sender, all_sent, audit_pairs, conversation_of, pairs
from tests.mongodb import MongoServer
from tests.redis_server import RedisServer
from tests.services import WITHIN, ServerProcess, eventually
from tests.verification.chaos.proxy import Proxy

Make = Callable[..., Awaitable[RawDevice]]
PARTITIONS = 16


def answered(senders: list[Sender]) -> int:
    for sender in senders:
        sender.look()
    return sum(len(sender.accepted) for sender in senders)


def pairs_in_partitions_of(owners: Mapping[int, int], pid: int | None) -> list[int]:
    """The numbers of pairs whose conversations are in a worker's partitions."""
    return [
        number for number in range(100) if owners[partition_of(conversation_of(number), PARTITIONS)] == pid
    ]


async def shared_by(cluster: Cluster, *servers: ServerProcess) -> bool:
    """Whether exactly these workers hold all partitions, each its assigned ones."""
    workers = {
        worker.id: worker.pid
        for worker in await cluster.workers()
        if worker.pid in {server.pid for server in servers}
    }
    shares = assign(PARTITIONS, workers)
    return await cluster.owners() == {number: workers.get(owner) for number, owner in enumerate(shares)}


async def test_a_joining_worker_takes_its_share_and_returns_it_when_it_leaves(
    start_worker: StartWorker, cluster: Cluster, device: Make
) -> None:
    first = await start_worker()
    await eventually(lambda: shared_by(cluster, first))
    senders = await pairs(device, 4, 150, patience=10 * WITHIN, pause=0.02)
    sending = asyncio.create_task(all_sent(senders))
    second = await start_worker()
    await eventually(lambda: shared_by(cluster, first, second))
    await eventually(lambda: answered(senders) > 300)
    assert await first.stop() == 0
    await eventually(lambda: shared_by(cluster, second))
    await sending
    await audit_pairs(device, senders)
    # No finished command was redelivered: each message was sent once and has one answer.
    assert all(set(sender.answers.values()) == {1} for sender in senders)
    assert not any(sender.rejected for sender in senders)


async def test_the_partitions_of_a_killed_worker_are_taken_over(
    start_worker: StartWorker, cluster: Cluster, device: Make
) -> None:
    first, second = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, first, second))
    senders = await pairs(device, 4, 250)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 200)
    await first.kill()
    await eventually(lambda: shared_by(cluster, second))
    await sending
    await audit_pairs(device, senders)


@pytest.mark.parametrize("seconds", OUTAGES)
async def test_a_worker_that_was_asleep_gives_up_its_partitions_when_it_wakes(
    start_worker: StartWorker, cluster: Cluster, device: Make, seconds: float
) -> None:
    first, second = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, first, second))
    senders = await pairs(device, 4, 60 + int(seconds / 0.1), pause=0.1)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 100)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: shared_by(cluster, second))
        before = answered(senders)
        await eventually(lambda: answered(senders) > before + 100, what="the other worker continuing")
        await asyncio.sleep(seconds)  # the test is about this duration
    finally:
        os.kill(first.pid, signal.SIGCONT)
    await eventually(lambda: shared_by(cluster, first, second))
    await sending
    await audit_pairs(device, senders)


async def test_no_message_is_lost_when_every_worker_and_the_broker_are_killed_at_once(
    broker: Mosquitto, start_worker: StartWorker, cluster: Cluster, device: Make
) -> None:
    workers = await start_two(start_worker)
    senders = await pairs(device, 4, 200)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 200)
    await asyncio.gather(broker.kill(), *(worker.kill() for worker in workers))
    await asyncio.gather(*(worker.start() for worker in workers), broker.start())
    await eventually(lambda: shared_by(cluster, *workers))
    await sending
    await audit_pairs(device, senders, live=False)  # a device that was disconnected syncs


async def test_a_broker_restart_is_not_mistaken_for_a_rival(
    broker: Mosquitto, start_worker: StartWorker, cluster: Cluster
) -> None:
    workers = await start_two(start_worker)
    await eventually(lambda: shared_by(cluster, *workers))
    for _ in range(2):
        await broker.kill()
        await broker.start()
        await eventually(lambda: shared_by(cluster, *workers))
    assert sum(holding.cuts for worker in await cluster.workers() for holding in worker.holdings) == 0


@pytest.mark.parametrize("seconds", [0.0, pytest.param(5.0, id="to the end", marks=pytest.mark.verify)])
async def test_workers_that_do_not_see_each_other_stop_taking_over_sessions(
    start_worker: StartWorker, cluster: Cluster, device: Make, tmp_path: Path, stack: AsyncExitStack,
    seconds: float,
) -> None:  # fmt: skip
    """Two workers with different Redises each take all partitions."""
    other = await stack.enter_async_context(RedisServer(tmp_path / "other-redis"))
    first = await start_worker()
    second = await start_worker(state=other.url)
    senders = await pairs(device, 4, 100)
    await all_sent(senders)
    await audit_pairs(device, senders)

    async def rested() -> bool:
        """Whether no partition was taken over for that time."""
        before = first.log.stat().st_size, second.log.stat().st_size
        await asyncio.sleep(seconds)
        return before == (first.log.stat().st_size, second.log.stat().st_size)

    async def is_reported() -> bool:
        return any("taken from this worker" in worker.trouble for worker in await cluster.workers())

    await eventually(is_reported, what="a report of the takeovers")
    await eventually(rested, what="an end of the takeovers")
    assert b"does another imqtt serve this broker" in first.log.read_bytes() + second.log.read_bytes()
    assert await is_reported()


async def test_a_second_process_without_redis_is_refused(start_worker: StartWorker) -> None:
    await start_worker(state="memory:")
    with pytest.raises(AssertionError, match="Redis"):
        await start_worker(state="memory:")
    with pytest.raises(AssertionError, match="Redis"):
        await start_worker()  # one with Redis and one without


async def test_a_database_with_another_number_of_partitions_is_refused(start_worker: StartWorker) -> None:
    await (await start_worker(partitions=8)).stop()
    with pytest.raises(AssertionError, match=r"12 is not possible: the store has 8"):
        await start_worker(partitions=12)


@pytest.mark.parametrize(
    "command", [HASTY, pytest.param(("imqtt", "serve"), id="with default timeouts", marks=pytest.mark.verify)]
)
async def test_a_worker_that_alone_loses_mongodb_releases_its_partitions_to_others(
    start_worker: StartWorker, cluster: Cluster, mongo: MongoServer, device: Make, stack: AsyncExitStack,
    command: Sequence[str],
) -> None:  # fmt: skip
    proxy = await stack.enter_async_context(Proxy(mongo.port))
    proxied_url = mongo.url.replace(str(mongo.port), str(proxy.port))
    first = await start_worker(command=command)
    second = await start_worker(command=command, store=proxied_url)
    await eventually(lambda: shared_by(cluster, first, second))
    # A worker notices that it cannot store only when it has to: both own conversations.
    owners = await cluster.owners()
    busy, cut_off = (pairs_in_partitions_of(owners, server.pid)[:2] for server in (first, second))
    senders = await pairs(device, [*busy, *cut_off], 150, pause=0.02)
    sending = asyncio.create_task(all_sent(senders))
    await eventually(lambda: answered(senders) > 100)
    proxy.cut()
    await eventually(lambda: shared_by(cluster, first))
    await sending
    assert not any(sender.rejected for sender in senders)
    await audit_pairs(device, senders)


async def test_a_worker_that_alone_loses_mongodb_releases_idle_partitions_too(
    start_worker: StartWorker, cluster: Cluster, mongo: MongoServer, device: Make, stack: AsyncExitStack
) -> None:
    proxy = await stack.enter_async_context(Proxy(mongo.port))
    proxied_url = mongo.url.replace(str(mongo.port), str(proxy.port))
    first, second = await start_worker(command=HASTY), await start_worker(command=HASTY, store=proxied_url)
    await eventually(lambda: shared_by(cluster, first, second))
    proxy.cut()
    await eventually(lambda: shared_by(cluster, first))
    (cut_off,) = [worker for worker in await cluster.workers() if worker.pid == second.pid]
    assert "the store does not answer since" in cut_off.trouble
    proxy.repair()
    await eventually(lambda: shared_by(cluster, first, second))


async def test_workers_on_pymongo_and_on_motor_serve_one_store(
    start_worker: StartWorker, cluster: Cluster, device: Make
) -> None:
    workers = [await start_worker(), await start_worker(mongo_driver="motor")]
    await eventually(lambda: shared_by(cluster, *workers))
    senders = await pairs(device, 4, 30)
    await all_sent(senders)
    await audit_pairs(device, senders)
    assert await workers[1].stop() == 0
