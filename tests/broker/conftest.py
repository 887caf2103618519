"""The folder under test stands alone, so its tests bring their own small Mosquitto."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.broker.peers import Broker


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Transports differ in when they pause, report and close; the server runs on uvloop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running Mosquitto without limits of its own."""
    async with Broker(tmp_path) as broker:
        yield broker
