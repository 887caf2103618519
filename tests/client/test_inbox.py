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
from tests.client.test_catching_up import all_history, has_log
from tests.client.test_connection import cut
from tests.client.test_messages import TALK, take
from tests.services import WITHIN, eventually


async def break_inserts(client: Client, what: str) -> None:
    """Makes the client's store fail when it inserts `what`."""
    statement = f"CREATE TEMP TRIGGER full BEFORE INSERT ON {what} BEGIN SELECT raise(ABORT, 'no room'); END"
    await client._parts.store._database.submit(lambda connection: connection.execute(statement))


async def test_an_event_that_is_not_stored_is_not_skipped_though_its_connection_is_lost_meanwhile(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Receiving waits for the store, so the device notices the end of the connection only when it sends. With
    # this setting, it keeps sending its status.
    monkeypatch.setattr(fake_server, "LIMITS", replace(fake_server.LIMITS, presence=1))
    async with device(stored=True) as alice:
        events, named = alice.events(), alice.events("bot")
        await fake.send("alice@phone", fake.store(TALK, "first"))
        assert await take(events, 1) == await take(named, 1) == fake.logs[TALK]
        await break_inserts(alice, "events WHEN new.seq = 2")
        with held(alice):
            await fake.send("alice@phone", fake.store(TALK, "second"))
            await eventually(lambda: alice._parts.replica.logs[TALK].cursor.seq == 2)
            fake.store(TALK, "third")
            cut(alice)  # the next connection resumes after the second
            await eventually(lambda: alice._parts.replica.logs[TALK].cursor.seq == 3)
        for iterator in (events, named):
            with pytest.raises(DeviceStoreError, match="no room"):
                await asyncio.wait_for(anext(iterator), WITHIN)
        assert alice.state.phase is Phase.CLOSED
        with pytest.raises(DeviceStoreError, match="no room"):
            await alice.send(TALK, "more")
    async with device(stored=True) as alice:
        assert await take(alice.events("bot"), 2) == fake.logs[TALK][1:]
        assert await all_history(alice) == fake.logs[TALK]


@pytest.mark.parametrize(
    ("ask", "what"),
    [(lambda client: client.mark_read(TALK, 2), "marks"), (lambda client: client.history(TALK), "events")],
)
async def test_a_call_whose_result_cannot_be_stored_ends_the_client(
    fake: FakeServer, device: Devices, ask: Callable[[Client], Awaitable[object]], what: str
) -> None:
    old = [fake.store(TALK, str(number)) for number in range(3)]
    fake.store("d:alice:carol", "newer", "carol@phone")  # so only the head of the other is sent unasked
    async with device(stored=True) as alice:
        waiting = asyncio.create_task(anext(alice.events()))
        nonce = alice._parts.uplink.nonce
        await break_inserts(alice, what)
        for _ in range(2):  # the second time too: it is still not stored
            with pytest.raises(DeviceStoreError, match="no room"):
                await ask(alice)
        with pytest.raises(DeviceStoreError, match="no room"):
            await asyncio.wait_for(waiting, WITHIN)
        assert alice.state.phase is Phase.CLOSED
        await eventually(lambda: Status("offline", nonce) in fake.commands(Status))
    async with device(stored=True) as alice:
        await eventually(lambda: has_log(alice, old))
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.read == 0


async def test_calls_on_a_client_that_has_ended_do_not_raise_cancelled_error(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    """The calling task used to get `CancelledError` unless the store had failed."""
    stored = [fake.store(TALK, str(number)) for number in range(2)]
    async with device(stored=True) as alice:
        broker.passwords.remove_all(["alice@phone"])
        await fake.disconnect()
        await broker.kill()
        await broker.start()
        await eventually(lambda: alice.state.phase is Phase.CLOSED)
        await alice.mark_read(TALK, 1)
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.read == 1
        assert await all_history(alice) == stored
    for ask in (alice.mark_read(TALK, 2), alice.history(TALK)):
        with pytest.raises(DeviceStoreError, match="closed"):
            await ask


async def test_a_peer_who_left_while_the_device_was_away_counts_as_offline(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        notices = alice.notices()
        for user in ("bob", "carol"):
            await fake.send("alice@phone", Presence(user, "online", 1_000))
        await eventually(lambda: len(fake.commands(Hello)) == 1 and alice.presence_of("carol"))
        fake.present = [Presence("carol", "away", 2_000)]
        cut(alice)
        await eventually(lambda: len(fake.commands(Hello)) == 2)
        await eventually(lambda: alice.presence_of("carol") == Presence("carol", "away", 2_000))
        assert alice.presence_of("bob") == Presence("bob", "offline")
        reported: list[Presence] = []
        async with asyncio.timeout(WITHIN):
            while len(reported) < 4:
                notice = await anext(notices)
                if isinstance(notice, Presence):
                    reported.append(notice)
        assert [(presence.user, presence.state) for presence in reported] == [
            ("bob", "online"),
            ("carol", "online"),
            ("carol", "away"),
            ("bob", "offline"),
        ]
