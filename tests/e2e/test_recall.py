"""Recalled messages on the real server: how devices show them, and how the server's pages carry them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imqtt.client import Client
from imqtt.core.conversation_view import Message
from imqtt.errors import AlreadyRecalled, NotAllowed, NotFound
from imqtt.model import Content, Cursor, Event, History, Id, Page, Position, Recall, Rejected, Sync
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import Format
from imqtt.server.app import Server
from tests.client.conftest import QUICK, Devices
from tests.client.conftest import device as client
from tests.client.test_messages import TALK, take
from tests.device import RawDevice
from tests.server.conftest import device, running, stack
from tests.services import ServerProcess, eventually

__all__ = ["client", "device", "running", "stack"]  # fixtures


async def shown(client: Client) -> list[tuple[str | None, bool]]:
    items = (await client.view(TALK)).items
    return [(item.content.text, item.recalled) for item in items if isinstance(item, Message)]


async def test_all_devices_show_a_recalled_message_without_its_content(
    server: ServerProcess, client: Devices, tmp_path: Path
) -> None:
    async with client("alice@phone") as alice, client("bob@phone", stored=True) as bob:
        events = bob.events()
        first = await alice.send(TALK, "secret")
        await alice.send(TALK, "and more")
        await take(events, 2)
        assert await bob.unread(TALK) == 2
        with pytest.raises(NotAllowed):
            await bob.recall(TALK, Position(first.seq, first.id))
        with pytest.raises(NotFound):
            await alice.recall("bob", Position(9, first.id))
        await alice.recall("bob", Position(first.seq, first.id))
        with pytest.raises(AlreadyRecalled):
            await alice.recall("bob", Position(first.seq, first.id))
        (event,) = await take(events, 1)
        assert (event.kind, event.content) == ("recall", Content())
        for each in (alice, bob):
            assert await shown(each) == [(None, True), ("and more", False)]
            assert [event.content.text for event in await each.history(TALK)] == [None, "and more", None]
        assert await bob.unread(TALK) == 1
        summary = await bob.conversation(TALK)
        assert summary is not None
        assert summary.unread == 1
    stores = [path.read_bytes() for path in tmp_path.rglob("bob*")] or [b""]
    assert any(b"and more" in text for text in stores)
    assert not any(b"secret" in text for text in stores)
    async with client("bob@tablet") as tablet:
        await tablet.history(TALK)
        assert await shown(tablet) == [(None, True), ("and more", False)]
        assert await tablet.outbox() == []


async def test_an_iterator_that_has_read_ahead_returns_a_recalled_message_without_its_content(
    server: ServerProcess, client: Devices
) -> None:
    async with client("alice@phone") as alice, client("bob@phone") as bob:
        events, named = bob.events(), bob.events("bot")
        await alice.send(TALK, "first")
        secret = await alice.send(TALK, "secret")
        await eventually(lambda: _shows(bob, [("first", False), ("secret", False)]))
        for each in (events, named):
            assert [event.content.text for event in await take(each, 1)] == ["first"]
        await alice.recall(TALK, Position(secret.seq, secret.id))
        await eventually(lambda: _shows(bob, [("first", False), (None, True)]))
        for each in (events, named):
            later = await take(each, 2)
            assert [(event.kind, event.content) for event in later] == [
                ("message", Content()), ("recall", Content()),
            ]  # fmt: skip


async def _shows(client: Client, expected: list[tuple[str | None, bool]]) -> bool:
    return await shown(client) == expected


async def test_a_recall_without_a_connection_is_sent_later(
    broker: Mosquitto, server: ServerProcess, client: Devices
) -> None:
    async with client("alice@phone", stored=True) as alice:
        accepted = await alice.send(TALK, "oops")
        await server.kill()
    async with client("alice@phone", stored=True, wait=0.1, timing=QUICK) as alice:
        entry = Recall(TALK, "r1", Position(accepted.seq, accepted.id))
        await alice._parts.sender.put(entry)
        assert [each.command for each in await alice.outbox()] == [entry]
        await server.start()
        await eventually(lambda: _empty(alice))
        assert await shown(alice) == [(None, True)]


async def _empty(client: Client) -> bool:
    return not await client.outbox()


@pytest.mark.parametrize("format", list(Format))
async def test_a_page_has_the_recalls_that_lie_beyond_it(
    running: Server, device: Callable[..., object], format: Format
) -> None:
    alice: RawDevice = await device("alice@phone", format=format)  # type: ignore[misc]
    bob: RawDevice = await device("bob@phone", format=format)  # type: ignore[misc]
    placed = [await alice.send(TALK, f"m{number}", f"text {number}") for number in range(1, 7)]
    for number in (2, 5):
        at = placed[number - 1]
        await alice.command(Recall(TALK, f"r{number}", Position(at.seq, at.id)))  # type: ignore[union-attr]
        await alice.answer(f"r{number}")
    await bob.hello()
    start = len(bob.frames)
    await bob.command(History(TALK, before=4))
    page = await bob.frame(Page, since=start)
    (part,) = page.slices
    assert [(event.seq, event.content.text) for event in part.events] == [
        (1, "text 1"), (2, None), (3, "text 3"),
    ]  # fmt: skip
    assert [event.seq for event in part.registers] == [7]
    start = len(bob.frames)
    await bob.command(Sync((Cursor(TALK, 3, placed[2].id),)))  # type: ignore[union-attr]
    page = await bob.frame(Page, since=start)
    (part,) = page.slices
    assert [(event.seq, event.kind, event.content.text) for event in part.events] == [
        (4, "message", "text 4"), (5, "message", None), (6, "message", "text 6"),
        (7, "recall", None), (8, "recall", None),
    ]  # fmt: skip
    assert part.registers == ()  # the page has the recall itself


async def test_a_full_page_of_recalled_messages_fits_the_smallest_packet(
    running: Server, device: Callable[..., object]
) -> None:
    """Each message of a page brings its recall along, and every page still moves the cursor."""
    alice: RawDevice = await device("alice@phone")  # type: ignore[misc]
    placed = [await alice.send("u:alice", f"m{number}", "x" * 500) for number in range(40)]
    for number, at in enumerate(placed):
        await alice.command(Recall("u:alice", f"r{number}", Position(at.seq, at.id)))  # type: ignore[union-attr]
    await alice.answer("r39")
    tablet: RawDevice = await device("alice@tablet")  # type: ignore[misc]
    await tablet.hello(max_packet=2048)
    cursor, seen = Cursor("u:alice"), list[Event]()
    while len(seen) < 80:
        start = len(tablet.frames)
        await tablet.command(Sync((cursor,)))
        part = (await tablet.frame(Page, since=start)).slices[0]
        assert part.events
        held = {event.recall.target.seq for event in (*part.events, *part.registers) if event.recall}
        assert {event.seq for event in part.events if event.kind == "message"} <= held
        seen += part.events
        cursor = Cursor("u:alice", part.events[-1].seq, part.events[-1].id)
    assert [event.seq for event in seen] == list(range(1, 81))
    assert all(event.content == Content() for event in seen)


async def test_a_malformed_recall_is_rejected(running: Server, device: Callable[..., object]) -> None:
    alice: RawDevice = await device("alice@phone")  # type: ignore[misc]
    base = {"type": "recall", "conversation": "u:alice", "client_msg_id": "r1"}
    targets = (None, {}, {"seq": 1}, {"seq": -1, "id": "1"}, {"seq": 1, "id": str(1 << 63)}, "1")
    for target in targets:
        start = len(alice.frames)
        await alice.raw(json.dumps({**base, "target": target}).encode())
        rejected = await alice.frame(Rejected, since=start)
        assert (rejected.code, rejected.command, rejected.client_msg_id) == ("malformed", "recall", "r1")
    start = len(alice.frames)
    await alice.command(Recall("u:alice", "r1", Position(1, Id(1))))
    assert (await alice.frame(Rejected, since=start)).code == "not_found"
