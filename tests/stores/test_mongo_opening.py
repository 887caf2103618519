"""Opening a MongoDB store: each refusal states what the operator has to do."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pymongo import MongoClient
from pymongo.database import Database

from imqtt.errors import SetupError, Unavailable
from imqtt.model import Device, Registration
from imqtt.stores import attach_store, open_store
from imqtt.stores.base import Identity
from imqtt.stores.mongo import client as mongo_client
from imqtt.stores.mongo import opening as mongo_opening
from imqtt.stores.mongo.store import MongoStore
from tests.contract.stores import log
from tests.mongodb import MongoServer, database_url
from tests.ports import free_port
from tests.services import WITHIN

D = "d:alice:bob"
DRIVERS = ("pymongo", "motor")


@pytest.fixture
def url() -> str:
    return database_url()


@pytest.fixture
def database(url: str) -> Iterator[Database[dict[str, Any]]]:
    """The database that `url` names, as in an operator's shell."""
    with MongoClient[dict[str, Any]](url) as client:
        yield client.get_default_database()


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[MongoServer]:
    """A server that admits only the user `imqtt` of `admin`, with the password `s3cret/?`."""
    server = MongoServer(tmp_path)
    if not server.is_secantus:
        pytest.skip("a mongod with users needs a key file, and is not tried")
    async with server:
        with MongoClient[dict[str, Any]](server.url) as client:
            client.admin.command("createUser", "imqtt", pwd="s3cret/?", roles=["root"])
    async with MongoServer(tmp_path, "--auth") as server:
        yield server


async def make_store(url: str, partitions: int = 16) -> Identity:
    store = await MongoStore.open(url, Identity.draw(partitions))
    await store.append(log(D, 1, 3))
    await store.close()
    return store.identity


async def refused(url: str, *, driver: str = "pymongo", password: str = "") -> str:
    with pytest.raises(SetupError) as caught:
        await open_store(url, Identity.draw(16), driver=driver, password=password)
    return caught.value.reason


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver gives up its search for a server soon."""
    monkeypatch.setattr(mongo_client, "SELECTION_SECONDS", 0.5)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_address_without_a_server_is_refused(driver: str, hasty: None) -> None:
    url = f"mongodb://127.0.0.1:{free_port()}/imqtt"
    reason = await refused(url, driver=driver)
    assert "no primary of MongoDB answers within 0.5 s: 127.0.0.1:" in reason
    assert "is MongoDB running at this address" in reason
    assert "Topology" not in reason


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_timeout_in_the_address_counts(driver: str) -> None:
    url = f"mongodb://127.0.0.1:{free_port()}/imqtt?serverselectiontimeoutMS=300"
    assert "no primary of MongoDB answers within 0.3 s" in await refused(url, driver=driver)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_missing_file_in_the_address_is_reported(driver: str) -> None:
    url = "mongodb://imqtt:secret@127.0.0.1/imqtt?tls=true&tlsCAFile=/nowhere.pem"
    reason = await refused(url, driver=driver)
    assert reason == "a file named in the store's address: The tlscafile file is not readable"


@pytest.mark.filterwarnings("ignore:sockettimeoutms must be")
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("connectTimeoutMS=1000;socketTimeoutMS=3000", 3.0),
        ("connectTimeoutMS=1000&SOCKETTIMEOUTMS=3000", 3.0),
        ("socketTimeoutMS=", mongo_client.ANSWER_SECONDS),
        ("socketTimeoutMS=soon", mongo_client.ANSWER_SECONDS),
    ],
)
async def test_an_option_counts_if_the_driver_accepts_it(driver: str, options: str, seconds: float) -> None:
    database = mongo_client.connect(f"mongodb://127.0.0.1/imqtt?{options}", "", driver)
    assert database.client.options.pool_options.socket_timeout == seconds
    await mongo_client.disconnect(database)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_hangs_is_refused(driver: str, tmp_path: Path, hasty: None) -> None:
    async with MongoServer(tmp_path) as server:
        server.pause()
        assert "no primary of MongoDB answers within 0.5 s" in await refused(server.url, driver=driver)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_without_a_replica_set_is_refused(driver: str, tmp_path: Path) -> None:
    server = MongoServer(tmp_path)
    if not server.is_secantus:
        pytest.skip("MongoServer starts mongod with a replica set")
    async with MongoServer(tmp_path, "--standalone") as server:
        reason = await refused(server.url, driver=driver)
    assert "not a replica set" in reason
    assert "--replSet" in reason


async def test_an_older_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_opening, "OLDEST_SERVER", (99, 1))
    assert "the store needs 99.1 or newer" in await refused(url)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_wrong_password_is_refused_and_never_shown(
    driver: str, secured: MongoServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with_user = secured.url.replace("//", "//imqtt@") + "&authSource=admin"
    reason = await refused(with_user, driver=driver, password="wr0ng-one")
    assert "refuses this user and password" in reason
    assert "readWrite" in reason
    assert "wr0ng-one" not in reason + caplog.text
    assert "refuses this user" in await refused(secured.url, driver=driver)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_password_may_be_given_separately_from_the_address(driver: str, secured: MongoServer) -> None:
    with_user = secured.url.replace("//", "//imqtt@") + "&authSource=admin"
    store = await MongoStore.open(with_user, Identity.draw(16), password="s3cret/?", driver=driver)
    await store.append(log(D, 1, 1))
    assert "s3cret" not in repr(vars(store))
    await store.close()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "address", ["mongodb://alice:pass/w0rd@host/imqtt", "mongodb://alice:p@ss:w0rd@host/imqtt", "mongodb://:"]
)
async def test_a_malformed_address_is_refused_without_showing_its_password(address: str, driver: str) -> None:
    reason = await refused(address, driver=driver)
    assert "the store's address" in reason
    assert "w0rd" not in reason


async def test_an_invalid_database_name_is_refused() -> None:
    assert "names no MongoDB database" in await refused("mongodb://127.0.0.1/a.b")


async def test_an_unknown_driver_is_refused(url: str) -> None:
    assert "pymongo or motor" in await refused(url, driver="pymysql")


@pytest.mark.parametrize(
    ("module", "driver"), [("pymongo", "pymongo"), ("bson", "pymongo"), ("motor", "motor")]
)
def test_a_driver_that_is_not_installed_is_reported_with_the_extra_to_install(
    module: str, driver: str
) -> None:
    program = (
        "import asyncio, sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from imqtt.stores import open_store\n"
        "from imqtt.stores.base import Identity\n"
        f"asyncio.run(open_store('mongodb://127.0.0.1/x', Identity.draw(1), driver={driver!r}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=WITHIN
    )
    extra = "motor" if driver == "motor" else "mongodb"
    assert "imqtt.errors.SetupError: " in run.stderr
    assert f"pip install '.[{extra}]' in a checkout" in run.stderr


async def test_a_mongodb_database_of_another_program_is_refused_and_left_unchanged(
    url: str, database: Database[dict[str, Any]]
) -> None:
    database.shop.insert_one({"theirs": 1})
    assert "belongs to another program (it has the collections shop)" in await refused(url)
    assert database.list_collection_names() == ["shop"]


async def test_a_meta_collection_of_another_program_is_refused(
    url: str, database: Database[dict[str, Any]]
) -> None:
    database.meta.insert_one({"theirs": 1})
    assert "collection `meta` that is not imqtt's" in await refused(url)
    assert database.list_collection_names() == ["meta"]


@pytest.mark.parametrize("schema", [0, 2, 99, None, "1"])
async def test_another_schema_is_refused(
    url: str, database: Database[dict[str, Any]], schema: object
) -> None:
    await make_store(url)
    database.meta.update_one({}, {"$set": {"schema": schema}})
    assert f"has schema {schema}, and this imqtt supports 1" in await refused(url)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("partitions", None, "number of partitions"),
        ("partitions", "16", "number of partitions"),
        ("partitions", 0, "number of partitions"),
        ("cluster", None, "no valid cluster id"),
        ("cluster", 7, "no valid cluster id"),
    ],
)
async def test_malformed_metadata_are_refused(
    url: str, database: Database[dict[str, Any]], field: str, value: object, message: str
) -> None:
    await make_store(url)
    database.meta.update_one({}, {"$set": {field: value}})
    assert message in await refused(url)


@pytest.mark.parametrize(
    ("collection", "name"), [("events", "by_seq"), ("events", "by_key"), ("marks", "by_conversation")]
)
async def test_an_index_on_other_fields_is_refused(
    url: str, database: Database[dict[str, Any]], collection: str, name: str
) -> None:
    await make_store(url)
    database[collection].drop_index(name)
    database[collection].create_index([("c", 1), ("s", 1)], name=name, unique=True)
    assert f"{name} of {database.name}.{collection} is not the one" in await refused(url)


async def test_an_index_that_is_not_unique_is_refused(url: str, database: Database[dict[str, Any]]) -> None:
    await make_store(url)
    database.events.drop_index("by_seq")
    database.events.create_index([("p", 1), ("c", 1), ("s", 1)], name="by_seq")
    assert "by_seq" in await refused(url)


async def test_a_partial_index_is_refused(url: str, database: Database[dict[str, Any]]) -> None:
    await make_store(url)
    database.events.drop_index("by_seq")
    database.events.create_index(
        [("p", 1), ("c", 1), ("s", 1)], name="by_seq", unique=True, partialFilterExpression={"s": {"$gt": 9}}
    )
    assert "by_seq" in await refused(url)


async def test_an_index_of_registers_that_contains_every_event_is_refused(
    url: str, database: Database[dict[str, Any]]
) -> None:
    await make_store(url)
    database.events.drop_index("by_register")
    database.events.create_index([("p", 1), ("c", 1), ("r", 1), ("s", 1)], name="by_register")
    assert "by_register" in await refused(url)


@pytest.mark.parametrize("name", ["by_key", "by_register"])
async def test_a_missing_index_is_created(url: str, database: Database[dict[str, Any]], name: str) -> None:
    await make_store(url)
    before = database.events.index_information()
    database.events.drop_index(name)
    await (await MongoStore.open(url, Identity.draw(16))).close()
    assert database.events.index_information() == before


async def test_an_index_that_cannot_be_created_is_reported(
    url: str, database: Database[dict[str, Any]]
) -> None:
    await make_store(url)
    database.events.drop_index("by_seq")
    stored = database.events.find_one({"s": 3})
    assert stored is not None
    database.events.insert_one({**stored, "_id": 1, "m": "another"})
    assert "by_seq" in await refused(url)


async def test_an_incompletely_created_store_is_completed(
    url: str, database: Database[dict[str, Any]]
) -> None:
    database.meta.insert_one({"_id": "imqtt", "schema": 1, "partitions": 5, "cluster": "00c0ffee00c0ffee"})
    assert await make_store(url) == Identity(5, "00c0ffee00c0ffee")


async def test_devices_of_an_older_imqtt_have_no_last_seen_time(
    url: str, database: Database[dict[str, Any]]
) -> None:
    await make_store(url)
    database.devices.insert_one({"u": "zoe", "d": "tv", "format": "json", "platform": "x", "max_packet": 0})
    store = await MongoStore.open(url, Identity.draw(16))
    device = Device("zoe", "tv")
    assert await store.devices(["zoe"]) == {"zoe": (Registration(device, "json", "x"),)}
    await store.see_devices({device: 1_790_000_000_000})
    (seen,) = (await store.devices(["zoe"]))["zoe"]
    assert (seen.seen, type(seen.seen)) == (1_790_000_000_000, int)
    await store.close()


async def test_processes_that_create_a_store_simultaneously_get_the_same_one(url: str) -> None:
    stores = await asyncio.gather(
        *(MongoStore.open(url, Identity.draw(partitions), shared=True) for partitions in range(1, 6))
    )
    assert len({store.identity for store in stores}) == 1
    for store in stores:
        await store.close()


async def test_a_store_keeps_its_identity(url: str) -> None:
    identity = await make_store(url, 7)
    assert await reopen(url) == identity


async def reopen(url: str) -> Identity:
    store = await MongoStore.open(url, Identity.draw(16))
    assert len(await store.events_after(D, 0, 10)) == 3
    await store.close()
    return store.identity


async def test_only_a_copy_may_open_an_unfinished_copy(url: str) -> None:
    store = await MongoStore.open(url, Identity.draw(3), copying=True)
    await store.close()
    assert "is an unfinished copy" in await refused(url)
    store = await MongoStore.open(url, Identity.draw(3), copying=True)
    await store.set_unfinished(False)
    await store.close()
    store = await MongoStore.open(url, Identity.draw(3))
    await store.set_unfinished(True)
    await store.close()
    assert "is an unfinished copy" in await refused(url)


# --- reading beside a server


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_reader_sees_what_a_server_writes_and_leaves_no_trace(
    url: str, database: Database[dict[str, Any]], driver: str
) -> None:
    store = await MongoStore.open(url, Identity.draw(16))
    await store.append(log(D, 1, 3))
    claims = {claim["_id"] for claim in database.servers.find()}
    reader = await attach_store(url, driver=driver)
    assert reader.identity == store.identity
    await store.append(log(D, 4, 5))
    assert (await reader.heads([D]))[D].seq == 5
    assert {claim["_id"] for claim in database.servers.find()} == claims
    await reader.close()
    await reader.close()
    with pytest.raises(Unavailable, match="closed"):
        await reader.heads([D])
    await store.close()


async def test_a_reader_creates_no_store(url: str, database: Database[dict[str, Any]]) -> None:
    with pytest.raises(SetupError, match="there is no store"):
        await attach_store(url)
    assert database.list_collection_names() == []
    database.shop.insert_one({"theirs": 1})
    with pytest.raises(SetupError, match="another program"):
        await attach_store(url)


# --- many lookups at once: joins in the server return the same as single queries


async def test_lookups_of_many_keys_match_single_lookups(url: str) -> None:
    store = await MongoStore.open(url, Identity.draw(16))
    records = [record for number in range(60) for record in log(f"d:alice:user{number}", 1, 1 + number % 3)]
    await store.append(records)
    heads, stored, ids = await asyncio.gather(
        store.heads([f"d:alice:user{number}" for number in range(60)] + ["d:alice:nobody"]),
        store.find([record.key for record in records] + [replace(records[0].key, client_msg_id="none")]),
        store.ids_at([(record.event.conversation, record.event.seq) for record in records] + [(D, 1)]),
    )
    for number in range(60):
        name = f"d:alice:user{number}"
        assert {name: heads[name]} == await store.heads([name])
    assert len(heads) == 60
    for record in records:
        assert await store.find([record.key]) == {record.key: stored[record.key]}
        assert ids[record.event.conversation, record.event.seq] == record.event.id
    assert len(stored) == len(ids) == len(records)
    await store.put_devices([Registration(Device("alice", "phone"), "json")])
    await store.close()
