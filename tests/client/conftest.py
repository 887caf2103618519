"""A broker, a fake server that misbehaves on demand, and devices."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from imqtt.client import Client, Timing
from imqtt.mosquitto.broker import Mosquitto
from tests.client.fake_server import FakeServer
from tests.services import WITHIN

LONG = 10 * WITHIN  # a test that waits this long fails first

# Tests count commands, so none is repeated because an answer is late on a busy machine, and no periodic sync
# replaces a missing command.
PATIENT = Timing(
    connect=LONG, answer=LONG, patience=LONG, silence=LONG, farewell=LONG, sync=LONG,
    untaken=0.2, retry=0.1, retry_most=0.5, hole=0.05, marks=0.05,
)  # fmt: skip
# For tests of repeated commands that do not count them.
QUICK = replace(PATIENT, answer=0.4, patience=2.0)

Devices = Callable[..., Client]


@contextmanager
def held(client: Client) -> Iterator[None]:
    """Blocks the client's store until this context ends."""
    go_on = Event()
    client._parts.store._database.submit(lambda _: go_on.wait(LONG))
    try:
        yield
    finally:
        go_on.set()


def after(ticks: int, do: Callable[[], object]) -> None:
    """Calls `do` after `ticks` iterations of the event loop."""
    if ticks:
        asyncio.get_running_loop().call_soon(after, ticks - 1, do)
    else:
        do()


@pytest.fixture
async def fake(broker: Mosquitto) -> AsyncIterator[FakeServer]:
    async with FakeServer(broker) as server:
        yield server


@pytest.fixture
def device(broker: Mosquitto, tmp_path: Path) -> Devices:
    """`device("alice@phone")` makes a client; `stored=True` gives it a file that the next client opens."""
    passwords: dict[str, str] = {}

    def make(name: str = "alice@phone", *, stored: bool = False, **settings: Any) -> Client:
        if "password" in settings:
            passwords[name] = settings["password"]
        elif name not in passwords:
            passwords[name] = broker.passwords.add(name)
        user, device = name.split("@")
        given = {
            "password": passwords[name], "brokers": f"{broker.host}:{broker.port}", "timing": PATIENT,
            "wait": WITHIN, "store": tmp_path / f"{user}-{device}.db" if stored else None, **settings,
        }  # fmt: skip
        return Client(user=user, device=device, **given)

    return make
