"""Fixtures for everybody. A test that needs a broker gets one of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from tests.services import ServerProcess


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A running Mosquitto. `broker.passwords.add("alice@phone")` gives a password that works at once."""
    broker = Mosquitto(tmp_path / "broker")
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def server(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A running `imqtt serve` on `broker`, a process of its own."""
    async with ServerProcess(broker, tmp_path) as server:
        yield server
