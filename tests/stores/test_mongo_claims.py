"""Claims on a MongoDB store: one process has it exclusively, or several share it and their state."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from imqtt.errors import StoreInUse
from imqtt.stores.base import Identity
from imqtt.stores.mongo import claim as mongo_claim
from imqtt.stores.mongo import client as mongo_client
from imqtt.stores.mongo.store import MongoStore
from tests.contract.stores import log
from tests.mongodb import MongoServer, database_url, patient
from tests.services import WITHIN, eventually

D = "d:alice:bob"
DRIVERS = ("pymongo", "motor")
LONG = 10 * WITHIN  # longer than any test lasts
HOLDING = """
import asyncio, sys
from imqtt.stores import open_store
from imqtt.stores.base import Identity

async def main(url, shared):
    store = await open_store(url, Identity.draw(16), shared=bool(shared))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def url() -> str:
    return database_url()


@pytest.fixture
def database(url: str) -> Iterator[Database[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](url) as client:
        yield client.get_default_database()


@pytest.fixture(autouse=True)
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim expires during a test, so a test that waits for one fails."""
    monkeypatch.setattr(mongo_claim, "LEASE_SECONDS", LONG)
    monkeypatch.setattr(mongo_claim, "RELEASE_SECONDS", LONG)


@pytest.fixture
def quick(endless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim is renewed and expires within a second."""
    monkeypatch.setattr(mongo_claim, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(mongo_claim, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(mongo_claim, "POLL_SECONDS", 0.05)


async def open_store_at(url: str, *, shared: bool = False, driver: str = "pymongo") -> MongoStore:
    return await MongoStore.open(url, Identity.draw(16), shared=shared, driver=driver)


async def refused(url: str, *, shared: bool = False) -> str:
    with pytest.raises(StoreInUse) as caught:
        await open_store_at(url, shared=shared)
    return caught.value.reason


async def holder(url: str, *, shared: bool = False) -> asyncio.subprocess.Process:
    """Another process that has the store open until its input ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDING, url, "shared" if shared else "", stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), WITHIN) == b"open\n"
    return process


def claimed(database: Database[dict[str, Any]], **fields: object) -> str:
    """Writes the claim of a process on another machine, with the server's current time; returns its id."""
    claim = {"host": "elsewhere", "machine": "another", "pid": 1, "shared": False, "open": True, **fields}
    claim_id = "0" * 16
    database.servers.update_one(
        {"_id": claim_id}, {"$set": claim, "$currentDate": {"seen": True}}, upsert=True
    )
    return claim_id


# --- exclusive and shared claims


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fields", [{}, {"pid": None, "host": 7}], ids=["ours", "another version's"])
async def test_a_claim_with_a_time_in_the_future_expires(
    url: str, database: Database[dict[str, Any]], fields: dict[str, object]
) -> None:
    await (await open_store_at(url)).close()
    claim_id = claimed(database, **fields)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    database.servers.update_one({"_id": claim_id}, {"$set": {"seen": tomorrow}})
    async with asyncio.timeout(WITHIN):
        store = await open_store_at(url)
    assert database.servers.count_documents({"_id": claim_id}) == 0
    await store.close()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_store_opened_exclusively_is_refused_to_all_others(url: str, driver: str) -> None:
    store = await open_store_at(url, driver=driver)
    for shared in (False, True):
        assert f"process {os.getpid()} on {socket.gethostname()}" in await refused(url, shared=shared)
    await store.append(log(D, 1, 1))
    await store.close()
    store = await open_store_at(url, driver=driver)
    await store.close()


async def test_any_number_of_processes_may_share_a_store(
    url: str, database: Database[dict[str, Any]]
) -> None:
    stores = [await open_store_at(url, shared=True) for _ in range(3)]
    other = await holder(url, shared=True)
    assert database.servers.count_documents({}) == 4
    assert "which shares it" in await refused(url)
    for number, store in enumerate(stores, 1):
        await store.append(log(D, number, number))
        await store.close()
    assert f"process {other.pid}" in await refused(url)
    await other.communicate(b"")
    await (await open_store_at(url)).close()
    assert database.servers.count_documents({}) == 0


async def test_a_store_that_another_process_has_open_is_refused(url: str) -> None:
    other = await holder(url)
    assert f"process {other.pid} on {socket.gethostname()}" in await refused(url)
    assert "one Redis" in await refused(url, shared=True)
    await other.communicate(b"")
    await (await open_store_at(url)).close()


async def test_a_refused_process_leaves_no_claim(url: str, database: Database[dict[str, Any]]) -> None:
    store = await open_store_at(url)
    await refused(url)
    assert database.servers.count_documents({}) == 1
    await store.close()
    assert database.servers.count_documents({}) == 0


@pytest.mark.parametrize("round", range(3))
async def test_exactly_one_of_many_simultaneous_processes_opens_the_store(url: str, round: int) -> None:
    outcomes = await asyncio.gather(*(open_store_at(url) for _ in range(6)), return_exceptions=True)
    stores = [outcome for outcome in outcomes if isinstance(outcome, MongoStore)]
    assert len(stores) == 1
    assert sum(isinstance(outcome, StoreInUse) for outcome in outcomes) == 5
    await stores[0].close()


async def test_a_cancelled_opening_leaves_no_claim(url: str, database: Database[dict[str, Any]]) -> None:
    claimed(database)
    database.meta.insert_one({"_id": "imqtt", "schema": 1, **Identity.draw(4)._asdict()})
    opening = asyncio.create_task(open_store_at(url))
    await eventually(lambda: database.servers.count_documents({}) == 2)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert database.servers.count_documents({}) == 1


class Swallowing:
    """A collection whose driver swallows a cancellation, as PyMongo sometimes does on Python 3.11."""

    matched_count = 1  # of an update

    def get_collection(self, _: str) -> "Swallowing":
        return self

    async def aggregate(self, _: object) -> "Swallowing":
        return self

    async def to_list(self, _: object) -> list[object]:
        await self._swallow()
        return []

    async def update_one(self, *_: object) -> "Swallowing":
        await self._swallow()
        return self

    async def _swallow(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


@pytest.mark.usefixtures("quick")
async def test_a_cancellation_that_the_driver_swallows_is_not_lost() -> None:
    swallowing: Any = Swallowing()
    claim = mongo_claim.Claim(swallowing, shared=False)
    for call in (mongo_client.aggregate(swallowing, []), claim._renew()):
        task = asyncio.create_task(call)
        await asyncio.wait([task], timeout=WITHIN)
        assert task.cancelled()


# --- claims of dead processes


async def test_the_claim_of_a_killed_process_does_not_count(
    url: str, database: Database[dict[str, Any]]
) -> None:
    other = await holder(url)
    other.kill()
    await other.wait()
    assert database.servers.count_documents({}) == 1
    store = await open_store_at(url)
    assert database.servers.count_documents({}) == 1
    await store.close()


async def test_the_claim_of_an_earlier_process_with_the_same_pid_does_not_count(
    url: str, database: Database[dict[str, Any]]
) -> None:
    await (await open_store_at(url)).close()
    claimed(database, pid=os.getpid(), machine=mongo_claim._machine())
    await (await open_store_at(url)).close()
    assert database.servers.count_documents({}) == 0


@pytest.mark.parametrize("is_open", [True, False])
async def test_the_claim_of_another_machine_is_awaited_until_it_expires(
    url: str, database: Database[dict[str, Any]], quick: None, is_open: bool
) -> None:
    await (await open_store_at(url)).close()
    # An id greater than any: the store does not step back for the claim even if it is not open yet.
    database.servers.insert_one(
        {"_id": "x", "host": "elsewhere", "machine": "another", "pid": 1, "shared": False, "open": is_open}
    )
    began = asyncio.get_running_loop().time()
    database.servers.update_one({"_id": "x"}, {"$currentDate": {"seen": True}})
    store = await open_store_at(url)
    assert asyncio.get_running_loop().time() - began > 0.5
    assert database.servers.find_one({"_id": "x"}) is None
    await store.close()


async def test_a_store_with_a_live_claim_of_another_machine_is_refused(
    url: str, database: Database[dict[str, Any]], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_claim, "LEASE_SECONDS", LONG)
    await (await open_store_at(url)).close()
    claimed(database, pid=4711)

    async def renew() -> None:
        while True:
            await asyncio.sleep(0.1)
            claimed(database, pid=4711)

    renewing = asyncio.create_task(renew())
    assert "process 4711 on elsewhere" in await refused(url)
    renewing.cancel()


async def test_an_expired_claim_is_not_awaited(url: str, database: Database[dict[str, Any]]) -> None:
    await (await open_store_at(url)).close()
    claim_id = claimed(database)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    database.servers.update_one({"_id": claim_id}, {"$set": {"seen": long_ago}})
    await (await open_store_at(url)).close()


async def test_a_process_that_shares_a_store_removes_the_claims_of_dead_ones(
    url: str, database: Database[dict[str, Any]]
) -> None:
    other = await holder(url, shared=True)
    other.kill()
    await other.wait()
    store = await open_store_at(url, shared=True)
    assert database.servers.count_documents({}) == 1
    await store.close()


# --- claims of live processes


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_claim_is_renewed_for_as_long_as_the_store_is_open(
    url: str, database: Database[dict[str, Any]], quick: None, driver: str
) -> None:
    store = await open_store_at(url, driver=driver)
    first = database.servers.find_one()
    assert first is not None
    await eventually(lambda: (database.servers.find_one() or first)["seen"] > first["seen"])
    await store.close()


async def test_a_removed_claim_is_restored_and_reported(
    url: str, database: Database[dict[str, Any]], quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store_at(url)
    database.servers.delete_many({})
    await eventually(lambda: database.servers.count_documents({"open": True}) == 1)
    await eventually(lambda: "was paused" in caplog.text)
    await store.close()
    assert database.servers.count_documents({}) == 0


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_claim_survives_an_outage_of_the_server(
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: str,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(mongo_client, "SELECTION_SECONDS", 2.0)
    async with MongoServer(tmp_path) as server:
        store = await open_store_at(server.url, driver=driver)
        await server.kill()
        await eventually(lambda: "this process cannot renew its claim on the store" in caplog.text)
        await server.start()
        with MongoClient[dict[str, Any]](server.url) as client:
            servers = client.get_default_database().servers
            seen = (servers.find_one() or {})["seen"]
            await eventually(lambda: (servers.find_one() or {})["seen"] > seen)
        await store.append(log(D, 1, 1))
        await store.close()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_closing_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setattr(mongo_claim, "RELEASE_SECONDS", 0.2)
    monkeypatch.setattr(mongo_client, "DISCONNECT_SECONDS", 0.2)
    async with MongoServer(tmp_path) as server:
        store = await open_store_at(patient(server.url, LONG), driver=driver)
        server.pause()
        async with asyncio.timeout(WITHIN):
            await store.close()
