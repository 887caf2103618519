from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.config import ServerConfig
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server.app import Server
from imqtt.serving import serving
from tests.device import RawDevice

Device = Callable[..., RawDevice]


def config_for(broker: Mosquitto, folder: Path, **settings: object) -> ServerConfig:
    """Settings of a server on this broker, with its store in `folder`."""
    given = {
        "broker_port": broker.internal_port,
        "broker_password": broker.server_password,
        "store": f"sqlite:///{folder / 'imqtt.db'}",
        **settings,
    }
    return ServerConfig.from_environment({}, **given)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Contexts entered here are exited in reverse order when the test ends."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def running(broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack) -> Server:
    """A server in this process."""
    return await stack.enter_async_context(serving(config_for(broker, tmp_path)))


@pytest.fixture
def device(broker: Mosquitto, stack: AsyncExitStack) -> Callable[..., object]:
    """`await device("alice@phone")`: a connected device, disconnected when the test ends."""

    async def make(name: str, **options: object) -> RawDevice:
        return await stack.enter_async_context(RawDevice(broker, name, **options))  # type: ignore[arg-type]

    return make
