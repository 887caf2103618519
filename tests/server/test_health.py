"""The health page: 200 while the worker serves, otherwise the problem in words."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.errors import SetupError
from imqtt.model import AnyCommand, Typing
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server.app import Server
from imqtt.serving import serving
from tests.device import RawDevice
from tests.mongodb import MongoServer
from tests.ports import free_port
from tests.server.conftest import config_for
from tests.services import WITHIN, eventually
from tests.verification.chaos.proxy import Proxy

Make = Callable[..., Awaitable[RawDevice]]


async def ask(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> tuple[str, bytes]:
    """The status line and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), WITHIN)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().partition("\r\n")[0], body


async def test_a_worker_that_serves_is_healthy(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack
) -> None:
    port = free_port()
    await stack.enter_async_context(serving(config_for(broker, tmp_path, health=f"127.0.0.1:{port}")))
    status, body = await ask(port)
    assert status == "HTTP/1.1 200 OK"
    health = json.loads(body)
    assert (health["status"], health["store"], health["state"], health["broker"]) == ("ok",) * 4
    assert health["partitions"] == list(range(16))
    assert (await ask(port, b"HEAD /x HTTP/1.0\r\n\r\n"))[1] == b""
    assert (await ask(port, b"POST / HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 405")
    assert (await ask(port, b"x" * 20_000 + b"\r\n\r\n")) == ("", b"")


async def test_a_worker_without_its_broker_is_unhealthy(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack
) -> None:
    port = free_port()
    await stack.enter_async_context(serving(config_for(broker, tmp_path, health=f"127.0.0.1:{port}")))
    await broker.stop()

    async def unhealthy() -> bool:
        status, body = await ask(port)
        return status.startswith("HTTP/1.1 503") and "Connection refused" in json.loads(body)["broker"]

    await eventually(unhealthy)
    await broker.start()

    async def healthy() -> bool:
        return (await ask(port))[0].startswith("HTTP/1.1 200")

    await eventually(healthy)


@pytest.mark.parametrize("address", ["80000", "127.0.0.1:80000", "127.0.0.1:x", "192.0.2.1:1234"])
async def test_an_address_that_cannot_be_listened_on_is_an_error(
    broker: Mosquitto, tmp_path: Path, address: str
) -> None:
    with pytest.raises(SetupError, match="health"):
        async with serving(config_for(broker, tmp_path, health=address)):
            pass


async def done(server: Server, device: RawDevice, command: AnyCommand) -> None:
    """Returns when the server has finished a command that gets no answer."""
    received = server.counters.received
    await device.command(command)
    await eventually(lambda: server.counters.received > received and not server.health().unfinished)


async def test_an_unreachable_store_is_reported_though_nothing_is_written(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    mongo = await stack.enter_async_context(MongoServer(tmp_path / "mongodb"))
    proxy = await stack.enter_async_context(Proxy(mongo.port))
    store = mongo.url.replace(str(mongo.port), str(proxy.port))
    server = await stack.enter_async_context(serving(config_for(broker, tmp_path, store=store)))
    alice = await device("alice@phone")
    await alice.hello()
    await done(server, alice, Typing("u:alice"))  # from now on this user's devices are cached
    proxy.cut()
    await eventually(lambda: server.health().store.startswith("the store does not answer since"))
    assert server.health().status == "degraded"
    # A command that needs no read of the store shows nothing about it.
    await done(server, alice, Typing("u:alice"))
    assert server.health().status == "degraded"
    proxy.repair()
    await eventually(lambda: server.health().status == "ok")
