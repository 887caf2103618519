"""If MongoDB hangs, dies or loses its majority, outcomes are unknown until the same rows are sent again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pymongo import MongoClient

from imqtt.errors import StoreUnreachable
from imqtt.model import Device, Marks, Registration
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record
from imqtt.stores.mongo import store as mongo
from imqtt.stores.mongo.store import MongoStore
from tests.contract.stores import log
from tests.mongodb import MongoServer, faulty_server, patient

D = "d:alice:bob"
PHONE = Registration(Device("alice", "phone"), "json")


@pytest.fixture(params=["pymongo", "motor"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server() -> MongoServer:
    return await faulty_server()


@pytest.fixture
async def store(server: MongoServer, driver: str) -> AsyncIterator[MongoStore]:
    store = await MongoStore.open(patient(server.url), Identity.draw(16), shared=True, driver=driver)
    yield store
    await store.close()


@pytest.fixture
async def hasty(server: MongoServer, driver: str, store: MongoStore) -> AsyncIterator[MongoStore]:
    """The same store, opened with short timeouts."""
    hasty = await MongoStore.open(patient(server.url, 2.0), Identity.draw(16), shared=True, driver=driver)
    yield hasty
    await hasty.close()


async def store_until_known(store: MongoStore, records: Sequence[Record]) -> int:
    """Sends the records until they are known to be stored; returns how many outcomes were unknown."""
    unknown = 0
    while True:
        try:
            await store.append(records)
        except OutcomeUnknown:
            unknown += 1
            await asyncio.sleep(0.05)
        except AppendConflict:
            try:
                found = await store.find([record.key for record in records])
            except StoreUnreachable:
                continue
            stored = [record for record in records if record.key in found]
            if len(stored) == len(records) and all(
                found[record.key].position == record.event.position for record in stored
            ):
                return unknown
            records = [record for record in records if record.key not in found]
        else:
            return unknown


def fail(server: MongoServer, times: int, **data: object) -> None:
    """Makes the next `times` inserts fail in this way."""
    with MongoClient[dict[str, Any]](server.url) as client:
        data = {"failCommands": ["insert"], **data}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


async def test_while_the_server_is_away_writes_are_unknown_and_reads_fail(
    server: MongoServer, store: MongoStore, hasty: MongoStore
) -> None:
    await server.stop()
    writes = await asyncio.gather(
        hasty.append(log(D, 1, 2)),
        hasty.put_members([("alice", D)]),
        hasty.raise_marks([Marks(D, "alice", 1, 1)]),
        hasty.put_devices([PHONE]),
        hasty.remove_device(PHONE.device),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in writes] == [OutcomeUnknown] * len(writes)
    reads = await asyncio.gather(
        hasty.heads([D]),
        hasty.heads([f"d:alice:user{number}" for number in range(99)]),
        hasty.find([log(D, 1, 1)[0].key]),
        hasty.events_after(D, 0, 1),
        hasty.heads_of("alice", 0, 1),
        hasty.marks([D]),
        hasty.devices(["alice"]),
        hasty.conversations("", 1),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in reads] == [StoreUnreachable] * len(reads)
    await server.start()
    await store_until_known(store, log(D, 1, 2))
    await store.put_members([("alice", D)])
    assert [head.seq for head in await store.heads_of("alice", 0, 10)] == [2]


async def test_an_append_is_stored_once_though_the_server_hangs(
    server: MongoServer, store: MongoStore, hasty: MongoStore
) -> None:
    server.pause()
    with pytest.raises(OutcomeUnknown):
        await hasty.append(log(D, 1, 5))
    server.resume()
    # The server may process the first attempt only now, before or after the second.
    await store_until_known(store, log(D, 1, 5))
    await store.append(log(D, 6, 6))
    assert await store.events_after(D, 0, 100) == [record.event for record in log(D, 1, 6)]


async def test_appends_are_stored_once_though_the_server_is_killed(
    server: MongoServer, store: MongoStore
) -> None:
    done = dict.fromkeys(range(4), 0)
    unknown = Counter[int]()
    writing = True

    async def write(number: int) -> None:
        while writing:
            first = done[number] + 1
            unknown[number] += await store_until_known(store, log(f"d:p{number}:q", first, first + 6))
            done[number] += 7

    async with asyncio.TaskGroup() as tasks:
        for number in done:
            tasks.create_task(write(number))
        for least in (21, 42, 63):
            while min(done.values()) < least:
                await asyncio.sleep(0.01)
            await server.kill()
            await server.start()
        writing = False
    assert unknown.total() >= 3
    for number, last in done.items():
        name = f"d:p{number}:q"
        assert await store.events_after(name, 0, 10_000) == [record.event for record in log(name, 1, last)]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"writeConcernError": {"code": 91, "errmsg": "shutting down"}}, id="no majority"),
        pytest.param({"errorCode": 10107}, id="not the primary"),
        pytest.param({"errorCode": 11602}, id="stepping down"),
        pytest.param({"errorCode": 13}, id="not allowed"),
        pytest.param({"closeConnection": True}, id="cut off"),
    ],
)
async def test_the_outcome_of_a_failed_insert_is_unknown(
    server: MongoServer, store: MongoStore, fault: dict[str, object]
) -> None:
    fail(server, 1, **fault)
    with pytest.raises(OutcomeUnknown):
        await store.append(log(D, 1, 5))
    await store_until_known(store, log(D, 1, 5))
    assert await store.events_after(D, 0, 100) == [record.event for record in log(D, 1, 5)]


async def test_a_duplicate_met_without_a_majority_proves_nothing(
    server: MongoServer, store: MongoStore
) -> None:
    await store.append(log(D, 1, 3))
    fail(server, 1, writeConcernError={"code": 64, "errmsg": "waiting"})
    with pytest.raises(OutcomeUnknown, match="no majority"):
        await store.append(log(D, 3, 5))
    with pytest.raises(AppendConflict):
        await store.append(log(D, 3, 5))


async def test_a_duplicate_that_cannot_be_read_proves_nothing(server: MongoServer, store: MongoStore) -> None:
    await store.append(log(D, 1, 3))
    fail(server, 9, failCommands=["find"], errorCode=11600)
    with pytest.raises(OutcomeUnknown, match="cannot be read"):
        await store.append(log(D, 3, 5))
    fail(server, 0)


async def test_an_append_larger_than_a_command_is_sent_in_parts(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "WRITES_AT_ONCE", 10)
    monkeypatch.setattr(mongo, "BYTES_AT_ONCE", 2_000)
    await store.append(log(D, 40, 40))
    with pytest.raises(AppendConflict) as caught:
        await store.append(log(D, 1, 60))
    assert caught.value.stored == 39
    await store.append(log(D, 41, 90))
    assert [event.seq for event in await store.events_after(D, 0, 100)] == list(range(1, 91))


async def test_closing_completes_the_append_of_a_cancelled_caller(
    server: MongoServer, store: MongoStore
) -> None:
    appending = asyncio.create_task(store.append(log(D, 1, 5)))
    marking = asyncio.create_task(store.raise_marks([Marks(D, "bob", 1, 1)]))
    await asyncio.sleep(0)
    appending.cancel()
    await store.close()
    assert await marking == [Marks(D, "bob", 1, 1)]
    with MongoClient[dict[str, Any]](server.url) as client:
        assert client.get_default_database().events.count_documents({}) == 5
