"""Two deployments on one broker by mistake: the one that started later ends and reports why."""

import asyncio
import logging
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from imqtt.broker import Link, Will, connect
from imqtt.broker.link import LinkSettings
from imqtt.errors import SetupError
from imqtt.model import Accepted
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.problems import Problem
from imqtt.server import peer_discovery
from imqtt.server.access import AccessTest
from imqtt.server.app import wall_clock
from imqtt.server.connections import Connections
from imqtt.server.liveness import Liveness
from imqtt.server.peer_discovery import Peer, PeerDiscovery, gives_way
from imqtt.serving import serving
from tests.server.conftest import Device, config_for
from tests.services import WITHIN, ServerProcess, eventually


def peer(cluster: str, standing: float, worker: str = "w") -> Peer:
    return Peer(cluster, worker, "host", 1, 0, standing)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables the periodic check of the access rules, which also announces a server to others."""
    monkeypatch.setattr(peer_discovery, "CHECK_SECONDS", 10 * WITHIN)


def test_the_later_server_gives_way_unless_both_are_of_one_cluster() -> None:
    assert gives_way(peer("a", -1), peer("b", 0))
    assert not gives_way(peer("a", 0), peer("b", -1))
    assert gives_way(peer("a", 5), peer("b", 500))
    assert not gives_way(peer("a", 500), peer("b", 5))
    assert not gives_way(peer("a", -1), peer("a", 500))


def test_a_peer_of_the_same_cluster_has_a_copy_if_stores_are_opened_exclusively() -> None:
    alone = replace(peer("a", 5), exclusive=True)
    assert gives_way(alone, peer("a", 500))
    assert gives_way(peer("a", 5), replace(peer("a", 500), exclusive=True))
    assert not gives_way(alone, peer("a", -1))


@pytest.mark.parametrize(("one", "two"), [(-1.0, -1.0), (0.0, 0.0), (3.0, 7.5)])
def test_exactly_one_of_two_simultaneous_servers_gives_way(one: float, two: float) -> None:
    first, second = peer("a", one, "x"), peer("b", two, "y")
    assert gives_way(first, second) != gives_way(second, first)


async def test_a_server_of_another_store_is_refused_and_the_first_continues(
    broker: Mosquitto,
    tmp_path: Path,
    stack: AsyncExitStack,
    device: Device,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    (tmp_path / "other").mkdir()
    with pytest.raises(SetupError, match=r"served already.*cluster [0-9a-f]{16}.*cluster [0-9a-f]{16}"):
        async with serving(config_for(broker, tmp_path / "other"), clock=lambda: wall_clock() - 3_600_000):
            pass  # its clock is an hour behind, which does not make it older
    assert "another imqtt is on this broker" in caplog.text
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    assert sum(holding.cuts for holding in first.worker.holdings) == 0
    await eventually(lambda: not first.worker.trouble, what="the other server's goodbye")


@pytest.mark.parametrize("absent", [0.0, 1.0], ids=["for a moment", "for long"])
async def test_a_server_keeps_its_seniority_through_a_short_disconnection_only(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, absent: float
) -> None:
    monkeypatch.setattr(peer_discovery, "ABSENT_SECONDS", 0.0 if absent else 60.0)
    links: list[Link] = []
    may_connect, came = asyncio.Event(), asyncio.Event()
    may_connect.set()
    foreign = Problem(logging.getLogger("imqtt"), "what", "over")
    problem = Problem(logging.getLogger("imqtt"), "what", "over")

    async def connect_to(name: str, will: Will) -> Link:
        if name == "first":
            await may_connect.wait()
        link = await connect(
            LinkSettings(
                INTERNAL_HOST, broker.internal_port, name, username=SERVER_ACCOUNT,
                password=broker.server_password, clean_start=True, will=will,
            )
        )  # fmt: skip
        links.append(link)
        return link

    def discovery(name: str) -> PeerDiscovery:
        return PeerDiscovery(
            Peer(name, name, "host", 1, 0), lambda will: connect_to(name, will), Connections(problem),
            AccessTest(name, SERVER_ACCOUNT, problem),
            liveness=Liveness(), foreign=foreign,
        )  # fmt: skip

    ready = asyncio.Event()
    first = asyncio.create_task(discovery("first").run(ready))
    await ready.wait()
    may_connect.clear()
    await links[0].close()
    second = asyncio.create_task(discovery("second").run(came))
    await came.wait()
    may_connect.set()
    stays, goes = (second, first) if absent else (first, second)
    with pytest.raises(SetupError, match="served already"):
        await asyncio.wait_for(goes, WITHIN)
    await eventually(lambda: not foreign.text, what="the other server's goodbye")
    assert not stays.done()
    stays.cancel()
    await asyncio.wait([stays])


async def test_exactly_one_of_two_servers_that_start_at_once_serves(
    broker: Mosquitto, tmp_path: Path
) -> None:
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


async def test_a_killed_server_does_not_keep_another_from_starting(
    broker: Mosquitto, server: ServerProcess, tmp_path: Path
) -> None:
    await server.kill()
    (tmp_path / "other").mkdir()
    async with serving(config_for(broker, tmp_path / "other")) as other:
        assert len(other.worker.holdings) == 16


async def test_a_server_on_a_copy_of_the_store_is_refused_and_the_first_continues(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Device
) -> None:
    first = await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "imqtt.db") as store:
        store.execute("VACUUM INTO ?", (str(tmp_path / "other" / "imqtt.db"),))
    with pytest.raises(
        SetupError,
        match=r"served already.*this store or a copy of it, of cluster [0-9a-f]{16}; end one of the two",
    ):
        async with serving(config_for(broker, tmp_path / "other")):
            pass
    assert isinstance(await alice.send("u:alice", "2"), Accepted)
    assert sum(holding.cuts for holding in first.worker.holdings) == 0
    await eventually(lambda: not first.worker.trouble, what="the other server's goodbye")
