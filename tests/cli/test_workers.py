"""`imqtt serve --workers N` runs N processes; `imqtt workers` shows their partitions."""

import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imqtt.mosquitto.broker import Mosquitto
from tests.cli.commands import imqtt, imqtt_process, is_alive
from tests.mongodb import database_url
from tests.ports import free_port
from tests.redis_server import shared_redis
from tests.services import ServerProcess, eventually


@pytest.fixture
def address() -> tuple[str, str]:
    """Settings for an empty store and a state."""
    return database_url(), shared_redis()


@pytest.fixture
async def supervisor(
    broker: Mosquitto, tmp_path: Path, address: tuple[str, str]
) -> AsyncIterator[ServerProcess]:
    store, state = address
    async with ServerProcess(broker, tmp_path, store=store, state=state, workers=2) as supervisor:
        yield supervisor


async def workers(address: tuple[str, str]) -> list[dict[str, Any]]:
    store, state = address
    found = await imqtt("workers", "--store", store, "--state", state, "--json")
    return found.rows


async def all_owned(address: tuple[str, str], count: int) -> bool:
    """Whether this number of workers hold partitions; a new one holds none yet."""
    found = await workers(address)
    held = sorted(held["partition"] for worker in found for held in worker["holdings"])
    each = all(worker["holdings"] for worker in found)
    return each and len(found) == count and held == list(range(16))


async def test_workers_are_listed_with_their_partitions_since_when_and_how_far_behind(
    supervisor: ServerProcess, address: tuple[str, str]
) -> None:
    await eventually(lambda: all_owned(address, 2))
    store, state = address
    shown = await imqtt("workers", "--store", store, "--state", state)
    assert shown.status == 0, shown.out
    for word in ("worker", "since", "partitions", "waiting", "oldest", "taken away"):
        assert word in shown.out
    found = await workers(address)
    assert all(str(worker["pid"]) in shown.out for worker in found)
    lines = (await imqtt("workers", "--store", store, "--state", state, "--partitions")).out.splitlines()
    assert sum(any(worker["id"] in line for worker in found) for line in lines) == 16


async def test_a_killed_process_is_replaced(supervisor: ServerProcess, address: tuple[str, str]) -> None:
    await eventually(lambda: all_owned(address, 2))
    before = {worker["pid"] for worker in await workers(address)}
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        pids = {worker["pid"] for worker in await workers(address)}
        return before < pids and victim not in pids and await all_owned(address, 2)

    await eventually(replaced)


async def test_sigterm_ends_all_processes_cleanly(
    supervisor: ServerProcess, address: tuple[str, str]
) -> None:
    await eventually(lambda: all_owned(address, 2))
    pids = [worker["pid"] for worker in await workers(address)]
    assert await supervisor.stop() == 0
    assert not any(map(is_alive, pids))
    assert "Traceback" not in supervisor.log.read_text()
    store, state = address
    listed = await imqtt("workers", "--store", store, "--state", state)
    assert listed.status == 1
    assert listed.err == "imqtt: no worker is alive\n"


async def test_workers_end_with_a_parent_that_is_killed(
    supervisor: ServerProcess, address: tuple[str, str]
) -> None:
    await eventually(lambda: all_owned(address, 2))
    pids = [worker["pid"] for worker in await workers(address)]
    await supervisor.kill()
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_each_process_has_a_health_page(
    broker: Mosquitto, tmp_path: Path, address: tuple[str, str]
) -> None:
    port = free_port()
    store, state = address
    settings = {"store": store, "state": state, "health": f"127.0.0.1:{port}"}
    async with ServerProcess(broker, tmp_path, workers=2, **settings):
        for number in (0, 1):
            with urllib.request.urlopen(f"http://127.0.0.1:{port + number}/") as page:
                assert json.load(page)["status"] == "ok"


@pytest.mark.parametrize("missing", ["store", "state"])
async def test_several_processes_need_mongodb_and_redis(
    broker: Mosquitto, tmp_path: Path, address: tuple[str, str], missing: str
) -> None:
    settings = {"store": address[0], "state": address[1]}
    del settings[missing]
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    refused = await imqtt_process(
        "serve", "--workers", "2", "--broker-port", broker.internal_port, *flags, IMQTT_HEALTH=""
    )
    assert refused.status == 1
    assert "mongodb://" in refused.err
    assert "redis://" in refused.err


async def test_a_problem_of_all_workers_ends_the_parent(broker: Mosquitto, address: tuple[str, str]) -> None:
    refused = await imqtt_process(
        "serve", "--workers", "2", "--broker-port", broker.internal_port, "--store", address[0],
        "--state", address[1], IMQTT_BROKER_PASSWORD="guess",
    )  # fmt: skip
    assert refused.status == 1
    assert "the broker does not take the server" in refused.err
    assert "before it was ready" in refused.err.splitlines()[-1]


async def test_a_server_without_redis_has_no_workers_to_show(tmp_path: Path) -> None:
    refused = await imqtt("workers", "--store", f"sqlite:///{tmp_path}/imqtt.db")
    assert refused.status == 1
    assert "without Redis, one server owns all partitions" in refused.err
