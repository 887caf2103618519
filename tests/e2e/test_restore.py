"""Devices notice nothing when the store is moved, and recover when it is restored from a backup."""

import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import msgspec
import pytest

from imqtt.client import Client, Restarted, catchup
from imqtt.model import Accepted, Content, Cursor, Event, Id, Marks, Send
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import Format
from imqtt.stores import attach_store
from tests.cli.commands import imqtt
from tests.client.conftest import QUICK, Devices, device
from tests.client.test_messages import TALK, take, texts
from tests.device import RawDevice
from tests.mongodb import database_url
from tests.redis_server import RedisServer
from tests.services import ServerProcess, eventually

__all__ = ["device"]  # the fixture

OFTEN = dataclasses.replace(QUICK, sync=0.5)  # a device that stays connected notices at its next sync
TO_CAROL = "d:alice:carol"
LOST = "d:alice:lost"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def stored(url: str, conversation: str) -> list[Event]:
    """The store's contents of a conversation."""
    store = await attach_store(url)
    try:
        return [record.event for record in await store.records_after(conversation, 0, 100_000)]
    finally:
        await store.close()


async def local(client: Client, conversation: str) -> list[Event]:
    """The device's stored events of a conversation."""
    return await client._parts.store.events(conversation, 1, 1 << 53)


async def agrees(client: Client, url: str, conversation: str = TALK) -> bool:
    """Whether the device holds the end of the store's log, and gets all of it on request."""
    whole, own = await stored(url, conversation), await local(client, conversation)
    return (
        own == whole[len(whole) - len(own) :]
        and bool(own) == bool(whole)
        and await client.history(conversation, limit=100_000) == whole
        and await local(client, conversation) == whole
    )


async def copy_store(source: str, target: str, *options: str) -> str:
    outcome = await imqtt("store", "copy", source, target, "--quiet", *options)
    assert outcome.status == 0, outcome.err
    return target


# --- moving


async def test_devices_notice_nothing_when_the_store_is_moved(
    broker: Mosquitto, device: Devices, stack: AsyncExitStack, tmp_path: Path
) -> None:
    first = f"sqlite:///{tmp_path / 'imqtt.db'}"
    server = await stack.enter_async_context(ServerProcess(broker, tmp_path, forked=True, store=first))
    alice = await stack.enter_async_context(device("alice@phone", start="beginning"))
    carol = await stack.enter_async_context(RawDevice(broker, "carol@sensor"))
    notices, everything = alice.notices(), alice.events("everything")
    async with device("bob@phone", stored=True, start="beginning") as bob:
        for number in range(20):
            await alice.send(TALK, f"a{number}")
            await bob.send(TALK, f"b{number}")
        await bob.mark_read(TALK, 31)
        await eventually(lambda: marked(alice, 31))
    await carol.hello()
    answered = await carol.send(TO_CAROL, "m1", "one")
    assert isinstance(answered, Accepted)
    url, seq = first, 40
    for number, target in enumerate((database_url(), f"sqlite:///{tmp_path / 'back.db'}"), 1):
        await server.stop()
        await alice.post(TALK, f"posted while nobody serves {number}")
        start = len(carol.frames)
        await carol.command(Send(TO_CAROL, f"unanswered-{number}", Content(text="hi")))
        url = await copy_store(url, target)
        server = await stack.enter_async_context(ServerProcess(broker, tmp_path, forked=True, store=url))
        # Unanswered messages are answered once, and answered ones get the same answer again.
        accepted = await carol.answer(f"unanswered-{number}", since=start)
        assert isinstance(accepted, Accepted)
        assert accepted.seq == number + 1
        assert await carol.send(TO_CAROL, "m1", "one") == answered
        # Only the first answer to a message has `previous`.
        assert accepted.previous
        again = await carol.send(TO_CAROL, f"unanswered-{number}")
        assert again == msgspec.structs.replace(accepted, previous=Id(0))
        seq += 1
        await eventually(lambda seq=seq: reached(alice, seq))
        async with device("bob@phone", stored=True) as bob:
            events = bob.events("reader")
            bobs = bob.notices()
            await alice.send(TALK, f"after {number}")
            seq += 1
            await eventually(lambda seq=seq, bob=bob: reached(bob, seq))
            assert await agrees(bob, url)
            assert (await bob.marks(TALK))["bob"].read == 31
            assert not any(isinstance(notice, Restarted) for notice in bobs.waiting)
            del events
        assert await agrees(alice, url)
    assert not any(isinstance(notice, Restarted) for notice in notices.waiting)
    log = [event for event in await take(everything, 47) if event.conversation == TALK]
    assert [event.seq for event in log] == list(range(1, 45))
    names = [event.client_msg_id for event in await stored(url, TO_CAROL)]
    assert names == ["m1", "unanswered-1", "unanswered-2"]


async def marked(client: Client, read: int) -> bool:
    marks = (await client.marks(TALK)).get("bob")
    return marks is not None and marks.read == read


async def reached(client: Client, seq: int) -> bool:
    summary = await client.conversation(TALK)
    return summary is not None and summary.last is not None and summary.last.seq == seq


# --- restoring


class Installation:
    """A server whose store can be backed up and restored. `state`: what happens to Redis meanwhile."""

    def __init__(self, broker: Mosquitto, directory: Path, kind: str, state: str) -> None:
        self._broker = broker
        self._directory = directory
        self._kind = kind
        self._state = state
        self._redis: RedisServer | None = None
        self.url = database_url() if kind == "mongodb" else f"sqlite:///{directory / 'imqtt.db'}"
        self.server = self._new_server()

    def _new_server(self) -> ServerProcess:
        state = {} if self._redis is None else {"state": self._redis.url}
        return ServerProcess(self._broker, self._directory, forked=True, store=self.url, **state)

    async def __aenter__(self) -> "Installation":
        if self._state != "memory":
            self._redis = RedisServer(self._directory / "redis")
            await self._redis.start()
            self.server = self._new_server()
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.kill()
        if self._redis is not None:
            await self._redis.kill()

    async def back_up(self) -> None:
        """Backs up while the server runs."""
        path, backup = self._directory / "imqtt.db", self._directory / "backup.db"
        if self._kind == ".backup":
            with closing(sqlite3.connect(path)) as served, closing(sqlite3.connect(backup)) as into:
                served.backup(into)
        elif self._kind == "VACUUM INTO":
            with closing(sqlite3.connect(path)) as served:
                served.execute("VACUUM INTO ?", (str(backup),))
        else:
            await copy_store(self.url, f"sqlite:///{backup}", "--live")

    async def restore(self) -> None:
        """Stops everything and restores the store; the server is not running afterwards."""
        await self.server.stop()
        backup = self._directory / "backup.db"
        if self._kind == "mongodb":
            self.url = await copy_store(f"sqlite:///{backup}", database_url())
        else:
            for suffix in ("", "-wal", "-shm"):
                self._directory.joinpath(f"imqtt.db{suffix}").unlink(missing_ok=True)
            backup.rename(self._directory / "imqtt.db")
        if self._state == "redis flushed":
            assert self._redis is not None
            self._redis.command("FLUSHALL")
        self.server = self._new_server()


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (".backup", "memory"),
        ("VACUUM INTO", "memory"),
        ("store copy", "memory"),
        ("store copy", "redis kept"),
        ("store copy", "redis flushed"),
        ("mongodb", "memory"),
        ("mongodb", "redis kept"),
    ],
)
async def test_devices_recover_from_a_restored_backup_by_themselves(
    broker: Mosquitto, device: Devices, stack: AsyncExitStack, tmp_path: Path, kind: str, state: str
) -> None:
    place = await stack.enter_async_context(Installation(broker, tmp_path, kind, state))
    online = await stack.enter_async_context(device("alice@phone", timing=OFTEN, start="beginning"))
    raw = await stack.enter_async_context(RawDevice(broker, "bob@raw"))
    await raw.hello()
    bob = await stack.enter_async_context(device("bob@phone", timing=OFTEN))
    for number in range(10):
        await bob.send(TALK, f"kept {number}")
    kept = await raw.send(TALK, "kept", "kept by name")
    await bob.mark_read(TALK, 5)
    await eventually(lambda: marked(online, 5))
    async with device("alice@early", stored=True), device("alice@late", stored=True):
        await place.back_up()
        for number in range(10):
            await bob.send(TALK, f"lost {number}")
        lost = await raw.send(TALK, "lost", "lost by name")
        assert isinstance(lost, Accepted)
        await raw.send("d:bob:zoe", "z", "lost wholly")
        await online.send(LOST, "lost wholly")
        await bob.mark_read(TALK)
        newcomer = await stack.enter_async_context(device("bob@newcomer", timing=OFTEN, start="beginning"))
        for client in (online, newcomer):
            await eventually(lambda client=client: reached(client, 22))
    (before,) = [event for event in await stored(place.url, TALK) if event.seq == 22]
    restarts = {client: client.notices() for client in (online, bob)}
    await place.restore()
    assert [event.seq for event in await stored(place.url, TALK)] == list(range(1, 12))
    await online.post(TALK, "posted while nobody served")
    await place.server.start()
    url = place.url

    # A device that reconnects before anything new is stored: its cursor is past the end.
    await eventually(lambda: nothing_unsent(online))
    early = await stack.enter_async_context(device("alice@early", stored=True))
    _, page = await raw.hello(Cursor(TALK, 22, before.id), Cursor("d:bob:zoe", 1, Id(1 << 60)), nonce="n2")
    slices = {part.conversation: part for part in page.slices}
    assert slices[TALK].restart
    assert slices[TALK].events == tuple(await stored(url, TALK))
    assert slices["d:bob:zoe"].restart
    assert slices["d:bob:zoe"].events == ()

    # Accepted messages that the backup lacks are stored again; stored ones stay as they are.
    known = await raw.send(TALK, "kept", "kept by name")
    assert isinstance(kept, Accepted)
    assert isinstance(known, Accepted)
    assert (known.seq, known.id, known.previous) == (kept.seq, kept.id, 0)
    assert kept.previous
    again = await raw.send(TALK, "lost", "lost by name")
    assert isinstance(again, Accepted)
    assert (again.seq, again.id) != (lost.seq, lost.id)
    found = {event.client_msg_id: event for event in await stored(url, TALK)}
    assert (found["lost"].seq, found["lost"].id) == (again.seq, again.id)

    # The log grows past the old end: the cursor's seq exists again, with another id.
    for number in range(15):
        await bob.send(TALK, f"new {number}")
    late = await stack.enter_async_context(device("alice@late", stored=True))
    _, page = await raw.hello(Cursor(TALK, 22, before.id), nonce="n3")
    assert [part.restart for part in page.slices] == [True]
    assert page.slices[0].events == tuple(await stored(url, TALK))

    for client in (online, bob, newcomer, early, late):
        await eventually(lambda client=client: agrees(client, url), what=client.settings.name)
    for client in (online, early, late):
        await eventually(lambda client=client: agrees(client, url, LOST))
    assert (await online.conversations())[0].head.seq == 28
    for queue in restarts.values():
        assert TALK in [notice.conversation for notice in queue.waiting if isinstance(notice, Restarted)]
    await bob.mark_read(TALK)
    await eventually(lambda: marked(online, 28))


async def delivered(client: Client, seq: int) -> bool:
    return (await client.marks(TALK)).get("bob", Marks(TALK, "bob")).delivered == seq


async def nothing_unsent(client: Client) -> bool:
    return not await client.outbox()


@pytest.mark.parametrize("kept", [0, 1])
async def test_a_device_notices_the_restore_of_each_of_hundreds_of_conversations(
    broker: Mosquitto,
    device: Devices,
    stack: AsyncExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:
    """There are more than fit into a `Hello` or the heads of a page, and others have written since.

    `kept`: how many events of each are in the backup. With none, no head names the conversation.
    """
    monkeypatch.setattr(catchup, "MARGIN", 0)  # as if the backup were older
    place = await stack.enter_async_context(Installation(broker, tmp_path, ".backup", "memory"))
    talks = [f"d:alice:user{number:03}" for number in range(230)]
    raw = await stack.enter_async_context(RawDevice(broker, "alice@raw"))

    async def send_all(name: str) -> None:
        start = len(raw.frames)
        for talk in talks:
            await raw.command(Send(talk, name, Content(text=name)))
        await eventually(lambda: sum(isinstance(f, Accepted) for f in raw.frames[start:]) == len(talks))

    await raw.send("d:alice:zoe", "z", "kept")
    if kept:
        await send_all("kept")
    await place.back_up()
    await send_all("lost")
    async with device("alice@phone", stored=True, start="beginning") as alice:
        await alice.caught_up()
        assert len(await alice.conversations()) == 231
    await place.restore()
    await place.server.start()
    await raw.send("d:alice:zoe", "new", "newer than all that the device has seen")
    alice = await stack.enter_async_context(device("alice@phone", stored=True))
    for talk in talks:
        await eventually(lambda talk=talk: agrees(alice, place.url, talk), what=talk)


async def test_a_program_gets_unread_events_although_its_device_restarts_the_log(
    broker: Mosquitto, device: Devices, stack: AsyncExitStack, tmp_path: Path
) -> None:
    place = await stack.enter_async_context(Installation(broker, tmp_path, ".backup", "memory"))
    alice = await stack.enter_async_context(device("alice@phone"))
    for number in range(10):
        await alice.send(TALK, f"kept {number}")
    await place.back_up()
    for number in range(5):
        await alice.send(TALK, f"lost {number}")
    async with device("bob@bot", stored=True, start="beginning") as bot:
        await bot.caught_up()
        assert len(await take(bot.events("reader"), 4)) == 4  # three of them finished
    await place.restore()
    await place.server.start()
    async with device("bob@bot", stored=True) as bot:
        await eventually(lambda: agrees(bot, place.url))
        await alice.send(TALK, "new")
        read = texts(await take(bot.events("reader"), 8))
        assert read == [*(f"kept {number}" for number in range(3, 10)), "new"]


@pytest.mark.parametrize("broker_stops", [True, False])
@pytest.mark.parametrize("format", [Format.JSON, Format.PROTOBUF])
@pytest.mark.parametrize("first", ["it sends", "it receives"])
async def test_a_device_that_the_backup_does_not_know_notices_the_restore_at_the_first_event(
    broker: Mosquitto,
    device: Devices,
    stack: AsyncExitStack,
    tmp_path: Path,
    broker_stops: bool,
    format: Format,
    first: str,
) -> None:
    """Nothing is published to the device until it sends something.

    By then the log has grown to its cursor. If the broker stops, the device compares its cursors on
    connecting. If its connection survives the restore, the first event that it receives names another
    previous event; its next sync is minutes away.
    """
    place = await stack.enter_async_context(Installation(broker, tmp_path, ".backup", "memory"))
    alice = await stack.enter_async_context(device("alice@phone"))
    for number in range(5):
        await alice.send(TALK, f"kept {number}")
    await place.back_up()
    newcomer = await stack.enter_async_context(device("bob@newcomer", start="beginning", format=format))
    for number in range(5):
        await alice.send(TALK, f"lost {number}")
    await eventually(lambda: delivered(alice, 10))  # it sends nothing from now on
    await place.server.stop()
    if broker_stops:
        await broker.stop()
    await place.restore()
    if broker_stops:
        await broker.start()
    await place.server.start()
    for number in range(5):
        await alice.send(TALK, f"new {number}")
    if not broker_stops:
        assert texts(await local(newcomer, TALK))[5:] == [f"lost {number}" for number in range(5)]
    if first == "it sends":
        await newcomer.send(TALK, "the event behind its cursor")
    else:
        await newcomer.typing(TALK)  # now it is registered
        await eventually(lambda: registered(place.url, newcomer))
        await alice.send(TALK, "the event behind its cursor")
    for client in (alice, newcomer):
        await eventually(lambda client=client: agrees(client, place.url))


async def registered(url: str, client: Client) -> bool:
    """Whether the store knows the device, so that events are published to it."""
    store = await attach_store(url)
    try:
        user, own = client.settings.device
        return own in [entry.device.device for entry in (await store.devices([user]))[user]]
    finally:
        await store.close()
