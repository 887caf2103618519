"""A command without subscriber (PUBACK 0x10) is published again soon, since no answer will come.

The timeouts for answers are much longer than these tests may take.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from imqtt.client.transport import Lost, Untaken
from imqtt.client.uplink import Uplink
from imqtt.model import AnyCommand, Hello, History, Mark, Send, Status, Sync
from imqtt.mosquitto.broker import Mosquitto
from tests.broker.peers import HOST, packet
from tests.client.conftest import PATIENT, Devices
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK
from tests.services import WITHIN, eventually


@pytest.fixture
async def fake(broker: Mosquitto) -> AsyncIterator[FakeServer]:
    """A server that is not connected."""
    server = FakeServer(broker)
    yield server
    await server.disconnect()


@pytest.fixture
def untaken(monkeypatch: pytest.MonkeyPatch) -> list[type[AnyCommand]]:
    """The types of the commands for which the broker had no subscriber."""
    met: list[type[AnyCommand]] = []
    publish = Uplink.publish

    async def publish_and_note(uplink: Uplink, command: AnyCommand, **given: bool) -> None:
        try:
            await publish(uplink, command, **given)
        except Untaken:
            met.append(type(command))
            raise

    monkeypatch.setattr(Uplink, "publish", publish_and_note)
    return met


async def test_hello_is_repeated_soon_after_the_server_connects(
    fake: FakeServer, device: Devices, untaken: list[type[AnyCommand]]
) -> None:
    async with device(wait=0) as alice:
        await eventually(lambda: untaken.count(Hello) >= 2)
        await fake.connect()
        async with asyncio.timeout(WITHIN):
            await alice.caught_up()
        assert len({hello.nonce for hello in fake.commands(Hello)}) == 1  # type: ignore[union-attr]


async def test_commands_published_while_the_server_is_away_arrive_soon_after_its_return(
    fake: FakeServer, device: Devices, untaken: list[type[AnyCommand]]
) -> None:
    await fake.connect()
    older = fake.store(TALK, "older")
    async with device(keep=1) as alice:
        await alice.caught_up()
        await fake.send("alice@phone", fake.live(fake.store(TALK, "newer")))
        await eventually(lambda: alice._parts.replica.logs[TALK].cursor.seq == 2)
        await fake.disconnect()
        before = len(fake.received)
        await alice.mark_read(TALK)
        asking = [
            asyncio.create_task(alice.send(TALK, "mine")),
            asyncio.create_task(alice._parts.requests.ask(Sync(heads=True))),
            asyncio.create_task(alice._parts.requests.ask(History(TALK, 2))),
        ]
        await eventually(lambda: {Mark, Send, Sync, History} <= set(untaken))
        assert not any(call.done() for call in asking)
        await fake.connect()
        async with asyncio.timeout(WITHIN):
            accepted, _, page = await asyncio.gather(*asking)
            assert accepted.seq == 3  # type: ignore[union-attr]
            assert page.slices[0].events == (older,)  # type: ignore[union-attr]
            await eventually(lambda: fake.commands(Mark))
        published = [type(command) for _, _, command in fake.received[before:]]
        assert published.count(Send) == 1
        assert Hello not in published


async def test_the_latest_status_is_repeated_until_there_is_a_subscriber(
    fake: FakeServer, device: Devices, untaken: list[type[AnyCommand]]
) -> None:
    await fake.connect()
    async with device() as alice:
        await alice.caught_up()
        await fake.disconnect()
        await alice.set_status("away")
        await alice.set_status("background")  # no subscriber for this either
        await eventually(lambda: untaken.count(Status) >= 2)
        await fake.connect()
        await eventually(lambda: fake.commands(Status))
        assert fake.commands(Status)[0].state == "background"  # type: ignore[union-attr]


async def test_a_status_of_online_is_repeated_until_there_is_a_subscriber(
    fake: FakeServer, device: Devices
) -> None:
    await fake.connect()
    async with device() as alice:
        await alice.caught_up()
        await alice.set_status("away")
        await eventually(lambda: fake.commands(Status))
        await fake.disconnect()
        await alice.set_status("online")
        await fake.connect()
        await eventually(lambda: len(fake.commands(Status)) == 2)
        assert fake.commands(Status)[1].state == "online"  # type: ignore[union-attr]


async def test_a_broker_without_a_server_is_reported(fake: FakeServer, device: Devices) -> None:
    async with device(timing=replace(PATIENT, silence=0.5), wait=0) as alice:
        reason = "no imqtt server has connected to the broker yet"
        await eventually(lambda: reason in alice.state.reason)


async def test_publishing_raises_an_error_with_the_brokers_reason_code(
    broker: Mosquitto, device: Devices, tmp_path: Path
) -> None:
    async with device(wait=0) as alice:
        await eventually(lambda: alice._parts.uplink.mqtt)
        mqtt = alice._parts.uplink.mqtt
        assert mqtt is not None
        with pytest.raises(Untaken, match=r"up/0: nobody is subscribed \(0x10\)") as caught:
            await mqtt.publish("imqtt/alice@phone/up/0", b"")
        assert caught.value.puback == 0x10
        with pytest.raises(Lost, match=r"does not let this device publish to imqtt/bob@phone/up/0 \(0x87"):
            await mqtt.publish("imqtt/bob@phone/up/0", b"")


async def test_waiting_for_a_puback_raises_lost_when_the_connection_is_lost(
    broker: Mosquitto, device: Devices
) -> None:
    async with device(wait=0) as alice:
        await eventually(lambda: alice._parts.uplink.mqtt)
        mqtt = alice._parts.uplink.mqtt
        assert mqtt is not None
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        publishing = asyncio.create_task(mqtt.publish("imqtt/alice@phone/up/0", b""))
        await asyncio.sleep(0)
        await broker.kill()
        async with asyncio.timeout(WITHIN):
            with pytest.raises(Lost):
                await publishing


async def refuse_first(
    port: int, refused: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Forwards a device's packets to the broker, except the first publish of each payload.

    It answers that one with PUBACK 0x97, like a broker whose quota is exceeded.
    """
    from_broker, to_broker = await asyncio.open_connection(HOST, port)

    async def answers() -> None:
        while data := await from_broker.read(4_096):
            writer.write(data)

    answering = asyncio.create_task(answers())
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            whole = await packet(reader)
            if whole[0] & 0xF6 == 0x32 and whole[-16:] not in refused:  # QoS 1, not sent again
                refused.append(whole[-16:])
                at = 1 + next(place for place, byte in enumerate(whole[1:], 1) if byte < 0x80)
                at += 2 + int.from_bytes(whole[at : at + 2])  # after the topic
                writer.write(bytes((0x40, 3)) + whole[at : at + 2] + bytes((0x97,)))
            else:
                to_broker.write(whole)
    answering.cancel()
    to_broker.close()
    writer.close()


async def test_commands_that_exceed_the_brokers_quota_are_published_again_soon(
    broker: Mosquitto, fake: FakeServer, device: Devices
) -> None:
    await fake.connect()
    refused: list[bytes] = []
    way = await asyncio.start_server(partial(refuse_first, broker.port, refused), HOST, 0)
    async with way:
        port = way.sockets[0].getsockname()[1]
        async with device(brokers=f"{HOST}:{port}") as alice, asyncio.timeout(WITHIN):
            await alice.caught_up()
            assert (await alice.send(TALK, "mine")).seq == 1
            await alice.mark_read(TALK, 1)
            await eventually(lambda: fake.commands(Mark))
    assert len(refused) >= 3  # `hello`, the message and the mark
    assert len(fake.commands(Send)) == 1
