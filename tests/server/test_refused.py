"""A broker that refuses the server: an error at the start, and later a temporary problem."""

import asyncio
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from imqtt.broker import ConnackRefused, Link
from imqtt.errors import SetupError
from imqtt.model import Accepted
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.problems import Problem
from imqtt.server.app import Server
from imqtt.server.assignment import Assignment
from imqtt.server.connections import Connections, ReconnectingLink
from imqtt.server.liveness import Liveness
from imqtt.server.partition import Partition
from imqtt.server.peer_discovery import PeerDiscovery
from imqtt.server.pipeline import Pipeline
from imqtt.server.problems import Problems
from imqtt.state.base import Holding, Worker
from imqtt.state.memory import MemoryState
from tests.server.conftest import Device
from tests.services import WITHIN, eventually

NOT_AUTHORIZED = 0x87


async def connect() -> Link:
    raise ConnackRefused(NOT_AUTHORIZED)


def problem() -> Problem:
    return Problem(logging.getLogger("imqtt"), "what", "over")


class Alone:
    """No other worker contests the partition."""

    async def confirmed(self) -> None: ...

    async def outranked(self) -> bool:
        return False


def refused_partition(number: int = 3, pipeline: object = None) -> Partition:
    link = ReconnectingLink(Connections(problem()), "a partition", connect)
    return Partition(number, cast("Pipeline", pipeline), link, broker_steady=lambda _: True, taken=problem())


async def test_a_starting_server_that_the_broker_refuses_reports_that() -> None:
    with pytest.raises(SetupError, match="not authorized"):
        await refused_partition().run(asyncio.Event(), Alone(), starting=True)


async def test_a_serving_worker_continues_though_the_session_of_a_new_partition_is_refused() -> None:
    partition = refused_partition()
    running = asyncio.create_task(partition.run(asyncio.Event(), Alone(), starting=False))
    await eventually(lambda: "not authorized" in partition.connection.refusal)
    assert not running.done()
    partition.stop()
    await asyncio.wait_for(running, WITHIN)
    assert partition.connection.refusal == ""


class Shared(MemoryState):
    """The state as a joining worker sees it: the other worker releases its partitions after a while."""

    shared = True

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        self.beats = getattr(self, "beats", 0) + 1
        held = tuple(Holding(partition, 0, 0, 0, 0) for partition in range(8)) if self.beats < 10 else ()
        return [worker, Worker("other", "host", 2, 0, "", beats=self.beats, holdings=held)]


def assignment_of_a_joining_worker() -> Assignment:
    pipeline = SimpleNamespace(unfinished=lambda _: (0, 0.0))
    return Assignment(
        Worker("joining", "host", 1, 0, ""), state=Shared(rate=1, burst=1),
        pipeline=cast("Pipeline", pipeline),
        partitions=[refused_partition(number, pipeline) for number in range(8)],
        discovery=cast("PeerDiscovery", None), liveness=Liveness(), problems=Problems(), ttl=0.5,
        clock=lambda: 0,
    )  # fmt: skip


async def test_a_joining_worker_that_is_refused_all_of_its_partitions_ends() -> None:
    ready = asyncio.Event()
    assignment = assignment_of_a_joining_worker()
    with pytest.raises(SetupError, match="not authorized"):
        await asyncio.wait_for(assignment.run(ready), WITHIN)
    assert ready.is_set()  # the other worker held all partitions, so there was nothing to wait for


async def test_a_worker_that_is_refused_a_session_for_long_is_stuck_for_a_while() -> None:
    assignment = assignment_of_a_joining_worker()
    connection = assignment.partitions[3].connection
    now = asyncio.get_running_loop().time()
    connection.refusal, connection.refused_at = "no", now - 5
    assert not assignment.worker.stuck
    connection.refused_at = now - 15
    assert assignment.worker.stuck
    assert "partitions 3: no" in assignment.worker.trouble
    connection.refusal = ""
    assert assignment.worker.stuck


async def test_sessions_that_the_broker_refuses_are_reported_in_the_workers_health(
    running: Server, broker: Mosquitto, device: Device
) -> None:
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    try:
        await asyncio.to_thread(broker.passwords.add, SERVER_ACCOUNT, "another one")
        await eventually(lambda: "refuses the sessions of partitions 0, 1, 2" in running.worker.trouble)
    finally:
        await asyncio.to_thread(broker.passwords.add, SERVER_ACCOUNT, broker.server_password)
    await eventually(lambda: not running.worker.trouble)
    assert isinstance(await alice.send("u:alice", "2"), Accepted)
