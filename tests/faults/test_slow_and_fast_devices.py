"""Devices that never read and devices that send too fast: others are unaffected, and no message is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from imqtt.model import Accepted, Content, Cursor, Event, Page, Send, Sync
from imqtt.mosquitto.broker import Mosquitto
from imqtt.serving import serving
from tests.device import RawDevice
from tests.server.conftest import config_for

Make = Callable[..., Awaitable[RawDevice]]


async def test_a_device_that_never_reads_does_not_affect_others(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path, device_burst=10_000)))
    alice, deaf, tablet = await device("alice@phone"), await device("bob@deaf"), await device("bob@tablet")
    for each in (alice, deaf, tablet):
        await each.hello()
    await deaf.stop_reading()
    count = 3_000
    for number in range(count):
        await alice.command(Send("d:alice:bob", f"m{number}", Content(text="x" * 2_000)))
    await tablet.until(lambda frame: isinstance(frame, Event) and frame.seq == count)
    assert [event.seq for event in tablet.events("d:alice:bob")] == list(range(1, count + 1))
    # A sync then returns the events that the broker dropped.
    await deaf.disconnect()
    await deaf.connect()
    start = len(deaf.frames)
    await deaf.command(Sync((Cursor("d:alice:bob", count - 20),)))
    page = await deaf.frame(Page, since=start)
    assert [event.seq for event in page.slices[0].events] == list(range(count - 19, count + 1))


async def test_a_device_that_sends_faster_than_the_server_stores_is_fully_served(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(
        serving(config_for(broker, tmp_path, device_rate=100_000, device_burst=100_000))
    )
    flooding, other = await device("alice@phone"), await device("carol@phone")
    count = 15_000
    flood = asyncio.gather(
        *(
            flooding.command(Send("d:alice:bob", f"m{number}", Content(text="x" * 200)))
            for number in range(count)
        )
    )
    await flooding.frame(Accepted)
    between = await other.send("u:carol", "c1")
    assert isinstance(between, Accepted)
    await flood
    last = await flooding.until(
        lambda frame: isinstance(frame, Accepted) and frame.client_msg_id == f"m{count - 1}"
    )
    assert isinstance(last, Accepted)
    assert last.seq == count
    assert between.id < last.id  # by the server's clock: it did not wait for the flood
