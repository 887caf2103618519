"""Iterators return every event, even if a program cancels a wait or the client is closed."""

import asyncio

import pytest

from tests.client.conftest import Devices, held
from tests.client.fake_server import FakeServer
from tests.client.test_catching_up import has_log
from tests.client.test_messages import TALK, take
from tests.services import eventually


async def test_a_consumer_whose_first_wait_is_cancelled_misses_nothing(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        await fake.send("alice@phone", *[fake.store(TALK, str(number)) for number in range(5)])
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        events = alice.events("bot")
        with held(alice):
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0)  # its read is submitted
            waiting.cancel()
            await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert await take(events, 5) == fake.logs[TALK]


async def test_iterators_of_a_closed_client_stop_and_resume_after_the_last_processed_event(
    fake: FakeServer, device: Devices
) -> None:
    async with device(stored=True) as alice:
        unnamed, idle, busy = alice.events(), alice.events("idle"), alice.events("busy")
        await fake.send("alice@phone", fake.store(TALK, "first"), fake.store(TALK, "second"))
        assert await take(busy, 1) == fake.logs[TALK][:1]
    for events in (unnamed, idle, busy):
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with device(stored=True) as alice:
        assert await take(alice.events("busy"), 2) == fake.logs[TALK]
