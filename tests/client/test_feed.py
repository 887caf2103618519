"""Iterators return every event, even if a program cancels a wait or the client is closed."""

import asyncio

import pytest

from tests.client.conftest import Devices, held
from tests.client.fake_server import FakeServer
from tests.client.test_catching_up import whole_is
from tests.client.test_messages import TALK, take
from tests.services import eventually


async def test_a_consumer_that_gives_up_while_its_place_is_looked_up_misses_nothing(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        await little.tell("alice@phone", *[little.store(TALK, str(number)) for number in range(5)])
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        events = alice.events("bot")
        with held(alice):
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0)  # its read is submitted
            waiting.cancel()
            await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert await take(events, 5) == little.logs[TALK]


async def test_who_is_busy_while_the_client_is_closed_is_told_of_the_end_and_gets_the_rest_next_time(
    little: FakeServer, device: Devices
) -> None:
    async with device(stored=True) as alice:
        unnamed, idle, busy = alice.events(), alice.events("idle"), alice.events("busy")
        await little.tell("alice@phone", little.store(TALK, "first"), little.store(TALK, "second"))
        assert await take(busy, 1) == little.logs[TALK][:1]
    for events in (unnamed, idle, busy):
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with device(stored=True) as alice:
        assert await take(alice.events("busy"), 2) == little.logs[TALK]
