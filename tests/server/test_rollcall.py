"""Two deployments on one broker by mistake: the one that came later ends, and says why."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from imqtt.errors import SetupError
from imqtt.model import Accepted
from imqtt.server.rollcall import Presence, rival
from imqtt.serving import serving
from tests.server.conftest import Device, config_for
from tests.services import ServerProcess, eventually


def presence(cluster: str, started: int, worker: str = "w") -> Presence:
    return Presence(cluster, worker, "host", 1, started)


def test_only_another_clusters_server_that_came_first_is_a_rival() -> None:
    mine = presence("a", 10)
    assert rival(mine, presence("b", 9))
    assert not rival(mine, presence("b", 11))
    assert not rival(mine, presence("a", 9))


def test_of_two_that_started_together_one_is_the_others_rival() -> None:
    one, two = presence("a", 10, "x"), presence("b", 10, "y")
    assert rival(one, two) != rival(two, one)


async def test_a_server_of_another_store_is_refused_and_the_first_goes_on(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Device
) -> None:
    first = await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    (tmp_path / "other").mkdir()
    with pytest.raises(SetupError, match=r"served already.*cluster [0-9a-f]{16}.*cluster [0-9a-f]{16}"):
        async with serving(config_for(broker, tmp_path / "other")):
            pass
    assert "another imqtt came to this broker" in first.worker.trouble
    alice = await device("alice/phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    assert sum(it.cuts for it in first.worker.holdings) == 0


async def test_of_two_that_start_at_once_one_serves(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ended: list[BaseException] = []
    over = asyncio.Event()

    async def serve(folder: Path) -> None:
        try:
            async with serving(config_for(broker, folder)) as server:
                await asyncio.wait(
                    [asyncio.ensure_future(server.wait()), asyncio.ensure_future(over.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not over.is_set():
                    await server.wait()
        except SetupError as error:
            ended.append(error)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(tmp_path))
        tasks.create_task(serve(tmp_path / "other"))
        await eventually(lambda: ended)
        over.set()
    assert len(ended) == 1


async def test_a_server_that_was_killed_is_nobodys_rival(
    broker: Mosquitto, server: ServerProcess, tmp_path: Path
) -> None:
    await server.kill()
    (tmp_path / "other").mkdir()
    async with serving(config_for(broker, tmp_path / "other")) as other:
        assert len(other.worker.holdings) == 16
