"""The package under test is independent of imqtt, so its tests start Mosquitto themselves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.broker.peers import Broker


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops, because their transports differ in when they pause, report and close."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running Mosquitto without limits."""
    async with Broker(tmp_path) as broker:
        yield broker
