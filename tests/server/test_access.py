"""A server that the broker's access rules keep from its work reports that instead of serving no device."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from imqtt.model import Accepted
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.server import access, peer_discovery
from imqtt.serving import serving
from tests.server.conftest import Device, config_for
from tests.services import eventually

Grant = Callable[[str], Awaitable[None]]

GRANT = f"user {SERVER_ACCOUNT}\ntopic readwrite imqtt/#\n"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "HEAR_SECONDS", 2.0)
    monkeypatch.setattr(peer_discovery, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(peer_discovery, "CHECK_SECONDS", 0.1)


@pytest.fixture
def grant(broker: Mosquitto) -> Grant:
    """Changes the permissions of the server's account while the broker runs."""
    acl = broker.files.acl
    before = acl.read_text()
    assert GRANT in before

    def reloads() -> int:
        return broker.log.read_text().count("Reloading config")

    async def write(rights: str) -> None:
        mode = acl.stat().st_mode
        acl.write_text(before.replace(GRANT, f"user {SERVER_ACCOUNT}\n{rights}\n"))
        acl.chmod(mode)
        assert broker.pid is not None
        known = reloads()
        os.kill(broker.pid, signal.SIGHUP)
        await eventually(lambda: reloads() > known, what="the broker's new rules")

    return write


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        ("topic write imqtt/#", "may not read imqtt/$servers, nor read imqtt/+/up/+. "),
        ("topic readwrite imqtt/$servers\ntopic write imqtt/+/up/+\ntopic readwrite imqtt/+/down",
         "may not read imqtt/+/up/+. "),
        ("topic readwrite imqtt/$servers\ntopic readwrite imqtt/+/up/+",
         "may not publish to imqtt/+/down (not authorized (0x87)). "),
        ("topic read imqtt/#", "nor publish to imqtt/+/up/+ (not authorized (0x87)), nor publish to"),
    ],
)  # fmt: skip
async def test_a_server_is_ready_only_once_it_may_read_and_write(
    broker: Mosquitto,
    tmp_path: Path,
    device: Device,
    grant: Grant,
    caplog: pytest.LogCaptureFixture,
    rights: str,
    missing: str,
) -> None:
    await grant(rights)
    ready = asyncio.Event()

    async def serve() -> None:
        async with serving(config_for(broker, tmp_path)):
            ready.set()
            alice = await device("alice@phone")
            assert isinstance(await alice.send("u:alice", "1"), Accepted)

    server = asyncio.create_task(serve())
    await eventually(lambda: missing in caplog.text, what=f"{missing} in the log")
    assert f"the account '{SERVER_ACCOUNT}' may not" in caplog.text
    assert "`topic readwrite imqtt/#`" in caplog.text
    assert not ready.is_set()
    await grant("topic readwrite imqtt/#")
    await server
    await eventually(lambda: "let this server do its work, after" in caplog.text)
    assert caplog.text.count("keep this server from its work: ") == 1


async def test_rights_that_are_revoked_later_are_reported_and_devices_are_unaffected(
    broker: Mosquitto,
    tmp_path: Path,
    device: Device,
    grant: Grant,
) -> None:
    async with serving(config_for(broker, tmp_path)) as server:
        alice = await device("alice@phone")
        assert isinstance(await alice.send("u:alice", "1"), Accepted)
        await grant("topic write imqtt/#")
        await eventually(lambda: "may not read" in server.health().broker)
        assert "may not read" in server.worker.trouble
        assert server.health().status == "degraded"
        await grant("topic readwrite imqtt/#")
        await eventually(lambda: server.health().status == "ok")
        assert isinstance(await alice.send("u:alice", "2"), Accepted)
        assert server.counters.received == 2  # no session got any of the server's own messages
