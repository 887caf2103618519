"""Failed writes, and frames from earlier connections."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from imqtt.client import Client, Phase
from imqtt.errors import DeviceStoreError
from imqtt.model import Hello, Presence, Status
from imqtt.mosquitto.broker import Mosquitto
from tests.client import fake_server
from tests.client.conftest import Devices, held
from tests.client.fake_server import FakeServer
from tests.client.test_catching_up import whole, whole_is
from tests.client.test_connection import cut
from tests.client.test_messages import TALK, take
from tests.services import WITHIN, eventually


async def refuse(client: Client, what: str) -> None:
    """Makes the client's store fail when it inserts `what`."""
    statement = f"CREATE TEMP TRIGGER full BEFORE INSERT ON {what} BEGIN SELECT raise(ABORT, 'no room'); END"
    await client._parts.store._database.submit(lambda it: it.execute(statement))


async def test_an_event_that_is_not_stored_is_not_skipped_though_its_connection_is_lost_meanwhile(
    little: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Receiving waits for the store, so the device notices the end of the connection only when it sends. With
    # this setting, it keeps sending its status.
    monkeypatch.setattr(fake_server, "LIMITS", replace(fake_server.LIMITS, presence=1))
    async with device(stored=True) as alice:
        events, named = alice.events(), alice.events("bot")
        await little.tell("alice@phone", little.store(TALK, "first"))
        assert await take(events, 1) == await take(named, 1) == little.logs[TALK]
        await refuse(alice, "events WHEN new.seq = 2")
        with held(alice):
            await little.tell("alice@phone", little.store(TALK, "second"))
            await eventually(lambda: alice._parts.replica.logs[TALK].cursor.seq == 2)
            little.store(TALK, "third")
            cut(alice)  # the next connection resumes after the second
            await eventually(lambda: alice._parts.replica.logs[TALK].cursor.seq == 3)
        for iterator in (events, named):
            with pytest.raises(DeviceStoreError, match="no room"):
                await asyncio.wait_for(anext(iterator), WITHIN)
        assert alice.state.phase is Phase.CLOSED
        with pytest.raises(DeviceStoreError, match="no room"):
            await alice.send(TALK, "more")
    async with device(stored=True) as alice:
        assert await take(alice.events("bot"), 2) == little.logs[TALK][1:]
        assert await whole(alice) == little.logs[TALK]


@pytest.mark.parametrize(
    ("ask", "what"), [(lambda it: it.mark_read(TALK, 2), "marks"), (lambda it: it.history(TALK), "events")]
)
async def test_what_a_program_asks_for_and_cannot_be_stored_ends_the_client(
    little: FakeServer, device: Devices, ask: Callable[[Client], Awaitable[object]], what: str
) -> None:
    old = [little.store(TALK, str(number)) for number in range(3)]
    little.store("d:alice:carol", "newer", "carol@phone")  # so only the head of the other is sent unasked
    async with device(stored=True) as alice:
        waiting = asyncio.create_task(anext(alice.events()))
        nonce = alice._parts.uplink.nonce
        await refuse(alice, what)
        for _ in range(2):  # the second time too: it is still not stored
            with pytest.raises(DeviceStoreError, match="no room"):
                await ask(alice)
        with pytest.raises(DeviceStoreError, match="no room"):
            await asyncio.wait_for(waiting, WITHIN)
        assert alice.state.phase is Phase.CLOSED
        await eventually(lambda: Status("offline", nonce) in little.commands(Status))
    async with device(stored=True) as alice:
        await eventually(lambda: whole_is(alice, old))
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.read == 0


async def test_a_client_that_has_ended_does_not_cancel_a_program_that_asks_it_for_something(
    little: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    """The calling task used to get `CancelledError` unless the store had failed."""
    stored = [little.store(TALK, str(number)) for number in range(2)]
    async with device(stored=True) as alice:
        broker.passwords.remove_all(["alice@phone"])
        await little.disconnect()
        await broker.kill()
        await broker.start()
        await eventually(lambda: alice.state.phase is Phase.CLOSED)
        await alice.mark_read(TALK, 1)
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.read == 1
        assert await whole(alice) == stored
    for ask in (alice.mark_read(TALK, 2), alice.history(TALK)):
        with pytest.raises(DeviceStoreError, match="closed"):
            await ask


async def test_a_peer_who_left_while_the_device_was_away_does_not_seem_to_be_there(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        notices = alice.notices()
        for user in ("bob", "carol"):
            await little.tell("alice@phone", Presence(user, "online", 1_000))
        await eventually(lambda: len(little.commands(Hello)) == 1 and alice.presence_of("carol"))
        little.present = [Presence("carol", "away", 2_000)]
        cut(alice)
        await eventually(lambda: len(little.commands(Hello)) == 2)
        await eventually(lambda: alice.presence_of("carol") == Presence("carol", "away", 2_000))
        assert alice.presence_of("bob") == Presence("bob", "offline")
        told: list[Presence] = []
        async with asyncio.timeout(WITHIN):
            while len(told) < 4:
                told += [it for it in [await anext(notices)] if isinstance(it, Presence)]
        assert [(it.user, it.state) for it in told] == [
            ("bob", "online"),
            ("carol", "online"),
            ("carol", "away"),
            ("bob", "offline"),
        ]
