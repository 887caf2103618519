"""A read-only, locked or full store: senders are rejected or wait, and no accepted message is lost."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from imqtt.errors import SetupError
from imqtt.model import Accepted, Content, Cursor, Event, Hello, History, Page, Send, Sync
from imqtt.mosquitto.broker import Mosquitto
from imqtt.serving import serving
from tests.device import RawDevice
from tests.mongodb import MongoServer
from tests.server.conftest import config_for

D = "d:alice:bob"
Make = Callable[..., Awaitable[RawDevice]]


async def test_senders_wait_for_a_locked_store_and_lose_nothing(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    with closing(sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        await alice.command(Send("u:alice", "2", Content(text="hi")))
        with pytest.raises(AssertionError):
            await alice.until(
                lambda frame: isinstance(frame, Accepted) and frame.client_msg_id == "2", within=0.5
            )
        rival.execute("COMMIT")
    answer = await alice.answer("2")
    assert isinstance(answer, Accepted)
    assert answer.seq == 2


async def test_a_store_in_use_is_refused(broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    with pytest.raises(SetupError, match="in use"):
        async with serving(config_for(broker, tmp_path)):
            pass


async def test_a_file_that_is_not_a_store_is_refused(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "imqtt.db").write_text("this is a letter to my aunt, not a database, and it is long enough")
    with pytest.raises(SetupError):
        async with serving(config_for(broker, tmp_path)):
            pass


@pytest.mark.parametrize("store", ["mysql://x", "sqlite:///", "imqtt.db"])
async def test_a_store_of_another_kind_is_refused(broker: Mosquitto, tmp_path: Path, store: str) -> None:
    with pytest.raises(SetupError, match="store"):
        async with serving(config_for(broker, tmp_path, store=store)):
            pass


# --- reads while a write waits


async def asked(device: RawDevice, command: Sync | History) -> Page:
    start = len(device.frames)
    await device.command(command)
    return await device.frame(Page, since=start)


async def reads_are_answered(bob: RawDevice) -> None:
    """`hello`, `sync` and `history` of a registered device."""
    welcome, page = await bob.hello(Cursor(D), nonce="again")
    assert welcome.nonce == "again"
    assert [event.seq for event in page.slices[0].events] == [1]
    assert [event.seq for event in (await asked(bob, Sync((Cursor(D),), ref="s"))).slices[0].events] == [1]
    assert [event.seq for event in (await asked(bob, History(D, ref="h"))).slices[0].events] == [1]


async def test_reads_are_answered_while_another_program_holds_the_stores_write_lock(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice, bob, carol = await device("alice@phone"), await device("bob@laptop"), await device("carol@tv")
    await bob.hello()
    assert isinstance(await alice.send(D, "1"), Accepted)
    with closing(sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        await alice.command(Send(D, "2", Content(text="hi")))
        await carol.command(Hello("new"))  # a new device has to be registered first, which is a write
        await reads_are_answered(bob)
        await reads_are_answered(bob)
        assert not carol.frames
        assert not any(isinstance(frame, Accepted) and frame.client_msg_id == "2" for frame in alice.frames)
        answers = [type(frame) for frame in bob.frames]
        rival.execute("COMMIT")
    assert isinstance(await alice.answer("2"), Accepted)
    await carol.frame(Page)
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == 2)
    assert isinstance(await bob.send(D, "3"), Accepted)  # after the earlier batches
    assert [type(frame) for frame in bob.frames].count(Page) == answers.count(Page)  # each read, once


async def test_reads_are_answered_while_thousands_of_writes_wait(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    config = config_for(broker, tmp_path, max_batch=100, device_burst=10_000, device_rate=10_000)
    await stack.enter_async_context(serving(config))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    assert isinstance(await alice.send(D, "1"), Accepted)
    with closing(sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        for number in range(1_500):  # more than 8 batches, each in its own partition
            await alice.command(Send(f"d:alice:friend{number}", "1", Content(text="hi")))
        await reads_are_answered(bob)
        rival.execute("COMMIT")
    await alice.until(
        lambda frame: isinstance(frame, Accepted) and frame.conversation == "d:alice:friend1499"
    )


def fail_writes(mongo: MongoServer, times: int) -> None:
    """Lets the next `times` writes fail without a majority."""
    with MongoClient[dict[str, Any]](mongo.url) as client:
        concern = {"code": 64, "errmsg": "waiting for replication timed out"}
        data = {"failCommands": ["insert", "update"], "writeConcernError": concern}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})


async def test_reads_are_answered_while_mongodb_refuses_writes(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    is_secantus = MongoServer(tmp_path).is_secantus
    option = "--enable-test-commands" if is_secantus else "--setParameter=enableTestCommands=1"
    mongo = await stack.enter_async_context(MongoServer(tmp_path / "mongodb", option))
    await stack.enter_async_context(serving(config_for(broker, tmp_path, store=mongo.url)))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    assert isinstance(await alice.send(D, "1"), Accepted)
    fail_writes(mongo, 1_000_000)
    await alice.command(Send("d:alice:carol", "2", Content(text="hi")))
    await reads_are_answered(bob)
    assert not any(isinstance(frame, Accepted) and frame.client_msg_id == "2" for frame in alice.frames)
    fail_writes(mongo, 0)
    assert isinstance(await alice.answer("2"), Accepted)
