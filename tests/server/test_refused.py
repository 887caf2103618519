"""A broker that refuses the server: a mistake to be told at the start, and later a trouble that passes."""

import asyncio
from typing import cast

import pytest

from imqtt.broker import Link, Refused
from imqtt.cli.mosquitto import Mosquitto
from imqtt.cli.passwords import SERVER_ACCOUNT
from imqtt.errors import SetupError
from imqtt.model import Accepted
from imqtt.server.app import Server
from imqtt.server.batcher import Batcher
from imqtt.server.partition import Partition
from tests.server.conftest import Device
from tests.services import eventually

NOT_AUTHORIZED = 0x87


def refused_partition() -> Partition:
    async def connect() -> Link:
        raise Refused(NOT_AUTHORIZED)

    async def nothing() -> None: ...

    async def nobody() -> bool:
        return False

    return Partition(
        3, cast("Batcher", None), connect, 100,
        broker_steady=lambda _: True, confirmed=nothing, outranked=nobody,
    )  # fmt: skip


async def test_a_server_that_starts_says_that_it_is_refused() -> None:
    with pytest.raises(SetupError, match="not authorized"):
        await refused_partition().run(asyncio.Event(), starting=True)


async def test_a_worker_that_serves_goes_on_though_a_partition_that_comes_to_it_is_refused() -> None:
    partition = refused_partition()
    running = asyncio.create_task(partition.run(asyncio.Event(), starting=False))
    await eventually(lambda: "not authorized" in partition.refusal)
    assert not running.done()
    partition.stop()
    await asyncio.wait_for(running, 10)
    assert partition.refusal == ""


async def test_what_the_broker_refuses_is_seen_in_the_workers_health(
    running: Server, broker: Mosquitto, device: Device
) -> None:
    alice = await device("alice/phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    try:
        await asyncio.to_thread(broker.passwords.add, SERVER_ACCOUNT, "another one")
        await eventually(lambda: "refuses the sessions of partitions 0, 1, 2" in running.worker.trouble)
    finally:
        await asyncio.to_thread(broker.passwords.add, SERVER_ACCOUNT, broker.server_password)
    await eventually(lambda: not running.worker.trouble, within=30)
    assert isinstance(await alice.send("u:alice", "2"), Accepted)
