import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.core.partitions import partition_of
from imqtt.model import (
    AnyCommand,
    AnyFrame,
    Content,
    Cursor,
    Hello,
    History,
    Mark,
    Marks,
    PeerTyping,
    Presence,
    Rejected,
    Send,
    Status,
    Sync,
    Typing,
)
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server.app import Server
from imqtt.serving import serving
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import record
from tests.device import RawDevice
from tests.server.conftest import config_for
from tests.services import eventually

Make = Callable[..., Awaitable[RawDevice]]


async def test_marks_are_sent_to_all_other_devices_of_the_members(running: Server, device: Make) -> None:
    alice, bob, tablet = await device("alice@phone"), await device("bob@laptop"), await device("bob@tablet")
    for client in (alice, bob, tablet):
        await client.hello()
    for name in ("1", "2", "3"):
        await alice.send("d:alice:bob", name)
    await bob.command(Mark("d:alice:bob", delivered=3, read=2))
    for client in (alice, tablet):
        assert await client.frame(Marks) == Marks("d:alice:bob", "bob", 3, 2)
    assert not [frame for frame in bob.frames if isinstance(frame, Marks)]


async def test_marks_only_grow_and_never_past_the_head(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await alice.hello()
    for name in ("1", "2"):
        await alice.send("d:alice:bob", name)
    for mark in (Mark("d:alice:bob", read=1), Mark("d:alice:bob", delivered=1), Mark("d:alice:bob", read=99)):
        await bob.command(mark)
    await alice.until(lambda frame: frame == Marks("d:alice:bob", "bob", 2, 2))
    # Together or one by one: a server that has just started repeats some, which its predecessor may have
    # sent.
    marks = [(frame.delivered, frame.read) for frame in alice.frames if isinstance(frame, Marks)]
    assert marks == sorted(marks)
    assert {(2, 2)} <= set(marks) <= {(1, 1), (2, 2)}


async def test_a_new_device_learns_marks_from_its_heads(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await alice.hello()
    await alice.send("d:alice:bob", "1")
    await bob.command(Mark("d:alice:bob", read=1))
    await alice.frame(Marks)
    tablet = await device("bob@tablet")
    _, page = await tablet.hello(Cursor("d:alice:bob"))
    assert page.heads[0].marks == (Marks("d:alice:bob", "bob", 1, 1),)


async def test_a_mark_by_a_user_who_is_not_a_member_is_rejected(running: Server, device: Make) -> None:
    eve = await device("eve@phone")
    await eve.command(Mark("d:alice:bob", read=1))
    rejected = await eve.frame(Rejected)
    assert (rejected.code, rejected.command, rejected.conversation) == ("not_allowed", "mark", "d:alice:bob")


async def test_typing_is_sent_to_the_other_member(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    await alice.command(Typing("d:alice:bob"))
    assert await bob.frame(PeerTyping) == PeerTyping("d:alice:bob", "alice")
    await alice.command(Typing("d:alice:bob", typing=False))
    await bob.until(lambda frame: frame == PeerTyping("d:alice:bob", "alice", typing=False))


async def start_conversation(alice: RawDevice, bob: RawDevice) -> None:
    """Starts a conversation of the two."""
    await alice.send("d:alice:bob", "hello")
    await bob.hello(Cursor("d:alice:bob"))


async def test_peers_are_told_when_a_user_comes_and_goes(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="first")
    online = await bob.until(lambda frame: isinstance(frame, Presence) and frame.user == "alice")
    assert isinstance(online, Presence)
    assert online.state == "online"
    assert abs(online.last_seen - time.time() * 1000) < 60_000
    await alice.command(Status("away", "first"))
    await bob.until(lambda frame: isinstance(frame, Presence) and frame.state == "away")
    await alice.command(Status("offline", "first"))
    await bob.until(lambda frame: isinstance(frame, Presence) and frame.state == "offline")


async def test_hello_is_answered_with_the_presence_of_online_peers(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello()
    online = await alice.frame(Presence)
    assert (online.user, online.state) == ("bob", "online")


async def test_an_old_will_is_ignored(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="old")
    await alice.hello(nonce="new")
    await alice.command(Status("offline", "old"))
    await alice.command(Status("away", "new"))
    await bob.until(lambda frame: isinstance(frame, Presence) and frame.state == "away")
    states = [frame.state for frame in bob.frames if isinstance(frame, Presence)]
    assert "offline" not in states


async def test_a_user_is_present_while_any_device_is(running: Server, device: Make) -> None:
    alice, tablet, bob = await device("alice@phone"), await device("alice@tablet"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="p")
    await tablet.hello(nonce="t")
    await alice.command(Status("offline", "p"))
    await tablet.command(Status("background", "t"))
    await bob.until(lambda frame: isinstance(frame, Presence) and frame.state == "background")
    assert "offline" not in [frame.state for frame in bob.frames if isinstance(frame, Presence)]


async def test_a_device_that_falls_silent_is_offline_after_a_while(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    await stack.enter_async_context(serving(config_for(broker, tmp_path, presence_ttl=1)))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.command(Hello("n1"))
    await bob.until(lambda frame: isinstance(frame, Presence) and frame.state == "online")

    async def stay() -> None:
        await bob.command(Status("online", "n1"))

    for _ in range(100):
        await stay()
        if any(isinstance(frame, Presence) and frame.state == "offline" for frame in bob.frames):
            break
        try:
            await bob.until(
                lambda frame: isinstance(frame, Presence) and frame.state == "offline", within=0.3
            )
        except AssertionError:
            continue
    assert any(isinstance(frame, Presence) and frame.state == "offline" for frame in bob.frames)


@pytest.mark.parametrize(
    "command",
    [Mark("d:alice:bob", read=1), Typing("d:alice:bob"), Sync(ref="s"), History("d:alice:bob", ref="h"),
     Send("d:alice:bob", "m2", Content(text="hi")), Status("online", "a"), Hello("a")],
    ids=lambda case: case.name,
)  # fmt: skip
async def test_after_a_restart_any_command_makes_a_device_present_and_its_will_ends_that(
    broker: Mosquitto, tmp_path: Path, device: Make, command: AnyCommand
) -> None:
    async with serving(config_for(broker, tmp_path)):
        alice, bob = await device("alice@phone"), await device("bob@laptop")
        await start_conversation(alice, bob)
        await alice.hello(nonce="a")
    async with serving(config_for(broker, tmp_path)):
        await bob.command(Status("online", "n1"))
        start = len(bob.frames)
        await alice.command(command)
        await receives_presence(bob, "alice", "online", since=start)
        await alice.command(Status("offline", "a"))
        await receives_presence(bob, "alice", "offline", since=start)


async def test_a_server_that_does_not_know_a_device_tells_peers_of_its_will(
    broker: Mosquitto, tmp_path: Path, device: Make
) -> None:
    async with serving(config_for(broker, tmp_path)):
        alice, bob = await device("alice@phone"), await device("bob@laptop")
        await start_conversation(alice, bob)
        await alice.hello(nonce="a")
    async with serving(config_for(broker, tmp_path)):
        await bob.command(Status("online", "n1"))
        start = len(bob.frames)
        await alice.command(Status("offline", "a"))
        await receives_presence(bob, "alice", "offline", since=start)


async def test_a_will_at_partition_0_is_forwarded(running: Server, device: Make) -> None:
    """A client that does not know the number of partitions yet publishes its will there."""
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="a")
    await receives_presence(bob, "alice", "online")
    assert partition_of("u:alice", 16) != 0
    await alice.command(Status("offline", "a"), to=0)
    await receives_presence(bob, "alice", "offline")
    assert not [frame for frame in alice.frames if isinstance(frame, Rejected)]


async def test_a_silent_device_is_present_again_after_any_command(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    server = await stack.enter_async_context(serving(config_for(broker, tmp_path, presence_ttl=1)))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="a")
    stay = asyncio.create_task(keep_saying(bob, Status("online", "n1")))
    await receives_presence(bob, "alice", "offline")
    start = len(bob.frames)
    await alice.command(Mark("d:alice:bob", read=1))
    await receives_presence(bob, "alice", "online", since=start)
    assert server.counters.failures == 0
    stay.cancel()


async def keep_saying(device: RawDevice, command: AnyCommand) -> None:
    while True:
        await device.command(command)
        await asyncio.sleep(0.1)


async def receives_presence(device: RawDevice, user: str, state: str, since: int = 0) -> None:
    def matches(frame: AnyFrame) -> bool:
        return isinstance(frame, Presence) and (frame.user, frame.state) == (user, state)

    await device.until(matches, since=since)


async def test_late_commands_do_not_make_a_device_present_that_has_gone_offline(
    running: Server, device: Make
) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    await alice.hello(nonce="a")
    await receives_presence(bob, "alice", "online")
    start = len(bob.frames)
    await alice.command(Status("offline", "a"))
    await receives_presence(bob, "alice", "offline", since=start)
    await alice.command(Mark("d:alice:bob", read=1))  # it would have come before the final status
    await bob.frame(Marks, since=start)
    await alice.hello(nonce="b")
    await receives_presence(bob, "alice", "online", since=start)
    states = [frame.state for frame in bob.frames[start:] if isinstance(frame, Presence)]
    assert states == ["offline", "online"]


async def test_a_will_registers_no_device(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await alice.command(Status("offline", "a"))
    await eventually(lambda: running.counters.received and not running.health().unfinished)
    assert await running._store.devices(["alice"]) == {"alice": ()}


async def test_two_users_who_start_a_conversation_are_told_of_each_others_presence(
    running: Server, device: Make
) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await alice.hello(nonce="a")
    await bob.hello(nonce="b")
    await alice.send("d:alice:bob", "hello")
    await receives_presence(alice, "bob", "online")
    await receives_presence(bob, "alice", "online")


async def test_hello_is_answered_with_every_online_peer_and_later_changes_follow(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    peers = [f"peer{number:03}" for number in range(450)]
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    for number, peer in enumerate(peers, 1):
        conversation = f"d:alice:{peer}"
        await store.put_members([("alice", conversation), (peer, conversation)])
        await store.append([record(conversation, 1, number=number)])
    await store.close()
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    online = [await device(f"{peers[number]}@phone") for number in (0, 200, 449)]
    for client in online:
        await client.hello(nonce="p")
    alice = await device("alice@phone")
    await alice.hello()
    for client in online:
        await receives_presence(alice, client.device.user, "online")
    start = len(alice.frames)
    for client in online:
        await client.command(Status("offline", "p"))
        await receives_presence(alice, client.device.user, "offline", since=start)
