"""A store that is read-only, locked or full: senders are told or wait, and nothing accepted is lost."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from imqtt.errors import SetupError
from imqtt.model import Accepted, Content, Send
from imqtt.serving import serving
from tests.device import RawDevice
from tests.server.conftest import config_for

Make = Callable[..., Awaitable[RawDevice]]


async def test_a_locked_store_makes_senders_wait_and_loses_nothing(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    with closing(sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        await alice.command(Send("u:alice", "2", Content(text="hi")))
        with pytest.raises(AssertionError):
            async with asyncio.timeout(1):
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


async def test_a_file_that_is_no_store_is_refused(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "imqtt.db").write_text("this is a letter to my aunt, not a database, and it is long enough")
    with pytest.raises(SetupError):
        async with serving(config_for(broker, tmp_path)):
            pass


@pytest.mark.parametrize("store", ["mysql://x", "sqlite:///", "imqtt.db"])
async def test_a_store_of_another_kind_is_refused(broker: Mosquitto, tmp_path: Path, store: str) -> None:
    with pytest.raises(SetupError, match="store"):
        async with serving(config_for(broker, tmp_path, store=store)):
            pass
