"""The presence that peers receive is correct when it is published, whichever part was unavailable before."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from pathlib import Path

import pytest

from imqtt.broker.link import Packet
from imqtt.errors import StoreUnreachable
from imqtt.model import AnyFrame, Device, Head, Hello, Id, Presence, Registration, Status
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import decode_frames
from imqtt.protocol.topics import down
from imqtt.server.app import Server
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.presence import Presences
from imqtt.server.problems import Problems
from imqtt.serving import serving
from imqtt.state.redis.state import RedisState
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import log
from tests.device import RawDevice
from tests.redis_server import RedisServer, open_state
from tests.server.conftest import config_for
from tests.server.test_marks_and_presence import Make, start_conversation
from tests.services import eventually

ALICE, BOB, CAROL = Device("alice", "phone"), Device("bob", "laptop"), Device("carol", "phone")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path / "redis") as redis:
        yield redis


class Harness:
    """Presences on a real store and a real Redis. Bob has a conversation with every user and is online."""

    def __init__(self, redis: RedisServer, store: SqliteStore, state: RedisState) -> None:
        self.redis = redis
        self.store = store
        self.state = state
        self.now = 1_000
        self.published: list[Presence] = []  # to Bob
        self.presences = Presences(
            store=store,
            state=state,
            devices=Devices(store, state, Problems(), lambda: self.now),
            publish=self._publish,
            counters=Counters(),
            max_packet=1 << 20,
            ttl=300_000,
            clock=lambda: self.now,
        )

    async def start(self) -> None:
        await self.store.put_devices([Registration(BOB, "json")])
        await self.add_peer("alice")
        await self.receive(BOB, Hello("b"))
        await self.expect_published()

    async def add_peer(self, user: str) -> None:
        conversation = f"d:{min(user, 'bob')}:{max(user, 'bob')}"
        await self.store.put_members([(user, conversation), ("bob", conversation)])
        await self.store.append(log(conversation, 1, 1))

    async def receive(self, device: Device, command: Hello | Status) -> None:
        self.now += 1
        await self.presences.note([(device, command)])

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.presences.run())
        yield
        task.cancel()
        await asyncio.wait([task])

    @property
    def idle(self) -> bool:
        queues = (self.presences._changed, self.presences._newcomers, self.presences._acquainted)
        return all(queue.idle for queue in queues)

    async def expect_published(self, *states: tuple[str, str]) -> None:
        """Publishes until nothing is left. Bob is told exactly these states of users."""
        async with self.publishing():
            await eventually(lambda: self.idle, what="nothing left to publish")
        assert [(presence.user, presence.state) for presence in self.published] == list(states)
        self.published.clear()

    def _publish(self, messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        for message in messages:
            if message.topic == down(BOB):
                self.published += [
                    frame for frame in decode_frames(message.payload) if isinstance(frame, Presence)
                ]
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        done.set_result([])
        return done


@pytest.fixture
async def harness(redis: RedisServer, tmp_path: Path) -> AsyncIterator[Harness]:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    state = await open_state(redis.url)
    harness = Harness(redis, store, state)
    await harness.start()
    yield harness
    await state.close()
    await store.close()


def follow(monkeypatch: pytest.MonkeyPatch, state: RedisState, what: str, then: Callable[[], object]) -> None:
    """Calls `then` whenever the state has answered a call of `what`."""
    call: Callable[..., Awaitable[object]] = getattr(state, what)

    async def followed(*given: object) -> object:
        answer = await call(*given)
        then()
        return answer

    monkeypatch.setattr(state, what, followed)


def fail(monkeypatch: pytest.MonkeyPatch, store: SqliteStore, *, times: float = inf) -> list[str]:
    """Lets the next `times` reads of users' conversations fail. Returns the growing list of their users."""
    read, failed = store.conversations_of, list[str]()

    async def conversations_of(after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        if len(failed) < times:
            failed.extend(after)
            raise StoreUnreachable("a primary is being elected")
        return await read(after, limit)

    monkeypatch.setattr(store, "conversations_of", conversations_of)
    return failed


async def reconnected(state: RedisState) -> None:
    await eventually(lambda: not state.trouble, what="Redis in use again")


# --- Redis is unavailable


async def test_no_user_is_reported_offline_because_redis_was_lost_between_two_reads(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.receive(ALICE, Hello("old"))
    await harness.expect_published(("alice", "online"))
    with monkeypatch.context() as patch:
        follow(
            patch, harness.state, "arrive", lambda: harness.redis.command("CLIENT", "KILL", "TYPE", "normal")
        )
        await harness.receive(ALICE, Hello("new"))
    assert "is away and the store is read instead" in caplog.text
    await reconnected(harness.state)
    await harness.expect_published(("alice", "online"))


async def test_users_who_came_and_went_while_redis_was_away_are_reported_with_their_final_state(
    harness: Harness,
) -> None:
    await harness.add_peer("carol")
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    harness.redis.pause(harness.state)
    await harness.receive(ALICE, Status("offline", "a"))
    await harness.receive(Device("carol", "phone"), Hello("c"))
    await harness.receive(Device("carol", "phone"), Status("away", "c"))
    harness.redis.resume(harness.state)
    await reconnected(harness.state)
    await harness.expect_published(("alice", "offline"), ("carol", "away"))


async def test_changes_wait_for_redis_before_they_are_published(harness: Harness) -> None:
    await harness.receive(ALICE, Hello("a"))
    harness.redis.pause(harness.state)
    async with harness.publishing():
        await eventually(lambda: harness.state.trouble, what="Redis away")
        harness.redis.resume(harness.state)
        await eventually(lambda: harness.published)
    await harness.expect_published(("alice", "online"))


async def test_a_device_that_fell_silent_when_redis_was_lost_is_reported_offline(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    harness.now += 299_999
    await harness.presences.refresh([BOB])
    harness.now += 1
    monkeypatch.setattr(harness.presences, "ttl", 5_000)  # checks every half second
    with monkeypatch.context() as patch:
        follow(
            patch, harness.state, "expired", lambda: harness.redis.command("CLIENT", "KILL", "TYPE", "normal")
        )
        async with harness.publishing():
            await eventually(lambda: harness.published)
    await harness.expect_published(("alice", "offline"))


async def test_a_presence_that_a_wiped_redis_has_lost_is_not_published(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.add_peer("carol")
    await harness.receive(ALICE, Hello("old"))
    await harness.expect_published(("alice", "online"))
    with monkeypatch.context() as patch:
        follow(patch, harness.state, "arrive", lambda: harness.redis.command("FLUSHALL"))
        await harness.receive(ALICE, Hello("new"))
    await harness.receive(BOB, Status("online", "b"))
    await harness.receive(Device("carol", "phone"), Hello("c"))
    await harness.expect_published(("carol", "online"), ("carol", "online"))  # a change, and Bob is back


async def test_a_user_whose_presence_redis_cannot_read_delays_no_other(harness: Harness) -> None:
    await harness.add_peer("mallory")
    await harness.receive(Device("mallory", "phone"), Hello("m"))
    await harness.receive(ALICE, Hello("a"))
    harness.redis.command("SET", "imqtt:c:presence:mallory", "not a hash")
    await harness.expect_published(("alice", "online"))


async def test_a_hello_while_redis_is_away_is_answered_at_once_and_published_afterwards(
    broker: Mosquitto, redis: RedisServer, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    config = config_for(broker, tmp_path, state=redis.url)
    server: Server = await stack.enter_async_context(serving(config))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await start_conversation(alice, bob)
    redis.pause()
    await eventually(lambda: server.health().state != "ok", what="Redis away")
    await alice.hello(nonce="a")
    redis.resume()
    await alice_is(bob, "online")
    redis.pause()
    await eventually(lambda: server.health().state != "ok", what="Redis away")
    await alice.command(Status("offline", "a"))
    await alice.send("u:alice", "later")
    redis.resume()
    await alice_is(bob, "offline")


async def test_a_device_that_says_hello_while_redis_is_away_receives_its_peers_presence_afterwards(
    harness: Harness,
) -> None:
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    harness.redis.pause(harness.state)
    assert await harness.presences.for_newcomer(BOB, [Head("d:alice:bob", 1, Id(1))], more=False) == []
    harness.redis.resume(harness.state)
    await reconnected(harness.state)
    await harness.expect_published(("alice", "online"))


async def test_a_device_that_was_active_while_redis_was_away_and_wiped_is_reported_online(
    harness: Harness,
) -> None:
    harness.redis.pause(harness.state)
    await harness.presences.refresh([ALICE])
    harness.redis.resume(harness.state)
    await reconnected(harness.state)
    await eventually(lambda: harness.state._appeared, what="Alice's presence in Redis")
    await harness.presences.refresh([BOB])
    await harness.expect_published(("alice", "online"))


async def test_a_device_that_is_active_after_redis_was_wiped_is_reported_online(harness: Harness) -> None:
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    harness.redis.command("FLUSHALL")
    await harness.presences.refresh([ALICE, BOB])
    await harness.expect_published(("alice", "online"))
    await harness.receive(BOB, Status("online", "b"))
    await harness.expect_published(("alice", "online"))  # because Bob is back and may have missed something
    await harness.receive(ALICE, Status("offline", "a"))
    await harness.expect_published(("alice", "offline"))


@pytest.mark.parametrize("command", [None, Status("online", "b")])
async def test_a_device_that_falls_silent_when_the_state_is_lost_is_reported_offline_after_the_ttl(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, command: Status | None
) -> None:
    harness.now = 400 * 86_400_000
    seen = harness.now - 86_400_000
    await harness.add_peer("carol")
    await harness.add_peer("dave")
    await harness.store.put_devices(
        [Registration(device, "json", seen=seen) for device in (ALICE, CAROL)]
        + [Registration(Device("dave", "phone"), "json", seen=seen - 86_400_000)]
    )
    for device in (ALICE, CAROL):
        await harness.receive(device, Hello("n"))
    await harness.expect_published(("alice", "online"), ("carol", "online"))
    harness.redis.command("FLUSHALL")
    if command is None:
        await harness.presences.refresh([BOB])
    else:
        await harness.receive(BOB, command)
    await harness.expect_published()
    harness.now += 299_000
    await harness.presences.refresh([BOB, CAROL])
    await harness.expect_published(("carol", "online"))
    harness.now += 1_000
    monkeypatch.setattr(harness.presences, "ttl", 5_000)  # checks every half second
    async with harness.publishing():
        await eventually(lambda: len(harness.published) == 2)
    assert Presence("alice", "offline") in harness.published  # the stored last-seen time is a day old
    await harness.expect_published(("alice", "offline"), ("carol", "online"))  # Dave was not online lately


async def lose_state(harness: Harness) -> None:
    """The state loses the presence of Alice and Carol, and then Bob sends something."""
    harness.now = 400 * 86_400_000
    await harness.add_peer("carol")
    await harness.store.put_devices(
        [Registration(device, "json", seen=harness.now) for device in (ALICE, CAROL)]
    )
    for device in (ALICE, CAROL):
        await harness.receive(device, Hello("n"))
    await harness.expect_published(("alice", "online"), ("carol", "online"))
    harness.redis.command("FLUSHALL")
    await harness.presences.refresh([BOB])
    await harness.expect_published()


async def check_silent(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the check for silent devices."""
    monkeypatch.setattr(harness.presences, "ttl", 5_000)  # checks every half second
    looked = asyncio.Event()
    with monkeypatch.context() as patch:
        follow(patch, harness.state, "expired", looked.set)
        async with harness.publishing():
            await looked.wait()
            looked.clear()
            await looked.wait()  # the first check is complete
            await eventually(lambda: harness.idle, what="nothing left to publish")


async def test_the_wait_starts_over_if_the_state_is_lost_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_state(harness)
    harness.now += 299_000
    harness.redis.command("FLUSHALL")
    await harness.presences.refresh([BOB])
    harness.now += 1_000
    await check_silent(harness, monkeypatch)
    await harness.expect_published()  # neither Alice nor Carol is known to be offline
    assert harness.presences._unknown


async def test_a_device_that_has_gone_offline_itself_receives_no_offline_peers_later(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is a device that connects for a single command each time, without a `Hello`."""
    await lose_state(harness)
    harness.now += 300_000
    await check_silent(harness, monkeypatch)
    await harness.expect_published()
    assert not harness.presences._unknown


async def test_a_device_that_says_hello_meanwhile_receives_no_offline_peers_later(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_state(harness)
    await harness.receive(BOB, Hello("b2"))
    harness.now += 299_999
    await harness.presences.refresh([BOB])
    await check_silent(harness, monkeypatch)
    await harness.expect_published()
    assert not harness.presences._unknown


@pytest.mark.parametrize("command", [None, Status("online", "b")])
async def test_a_device_that_wakes_up_on_its_old_connection_learns_which_peers_have_gone_offline(
    harness: Harness, command: Status | None
) -> None:
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    harness.now += 300_000
    await harness.presences.refresh([ALICE])
    assert [presence.device for presence in await harness.state.expired(harness.now)] == [BOB]
    await harness.receive(ALICE, Status("offline", "a"))
    await harness.expect_published()
    if command is None:
        await harness.presences.refresh([BOB])
    else:
        await harness.receive(BOB, command)
    await harness.expect_published(("alice", "offline"))


async def alice_is(bob: RawDevice, state: str) -> None:
    def matches(frame: AnyFrame) -> bool:
        return isinstance(frame, Presence) and (frame.user, frame.state) == ("alice", state)

    await bob.until(matches)


# --- the store is unavailable


async def test_a_change_waits_for_the_store_and_gives_way_to_a_newer_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "imqtt.server")
    await harness.receive(ALICE, Hello("a"))
    async with harness.publishing():
        with monkeypatch.context() as patch:
            failed = fail(patch, harness.store)
            await eventually(lambda: len(failed) >= 2)
            await harness.receive(ALICE, Status("away", "a"))
        await eventually(lambda: harness.published)
    await harness.expect_published(("alice", "away"))
    assert set(failed) == {"alice"}
    assert len(caplog.records) == 1


async def test_after_a_failure_changes_are_published_in_their_order(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.add_peer("carol")
    fail(monkeypatch, harness.store, times=1)
    await harness.receive(ALICE, Hello("a"))
    await harness.receive(Device("carol", "phone"), Hello("c"))
    await harness.expect_published(("alice", "online"), ("carol", "online"))


# --- many changes


async def test_many_changes_are_published_in_their_order(harness: Harness) -> None:
    devices = [Device(f"user{number}", "phone") for number in range(30)]
    for device in devices:
        await harness.add_peer(device.user)
    await harness.presences.note([(device, Hello("n")) for device in devices])
    await harness.expect_published(*((device.user, "online") for device in devices))
    for device in devices:
        await harness.receive(device, Status("offline", "n"))
    await harness.expect_published(*((device.user, "offline") for device in devices))


async def test_silent_devices_are_found_however_long_publishing_takes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, on = harness.store.conversations_of, asyncio.Event()

    async def conversations_of(after: Mapping[str, str], limit: int) -> dict[str, list[str]]:
        await on.wait()
        return await read(after, limit)

    monkeypatch.setattr(harness.store, "conversations_of", conversations_of)
    await harness.receive(ALICE, Hello("a"))
    harness.now += 300_000
    await harness.presences.refresh([BOB])
    monkeypatch.setattr(harness.presences, "ttl", 5_000)  # checks every half second

    async def found() -> bool:
        return (await harness.state.presence(["alice"]))["alice"][0].state == "offline"

    async with harness.publishing():
        await eventually(found)
        on.set()
        await eventually(lambda: harness.published)
    assert {(presence.user, presence.state) for presence in harness.published} == {("alice", "offline")}


async def test_users_who_start_a_conversation_never_receive_an_older_presence_after_a_newer_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.store.put_devices([Registration(ALICE, "json")])
    await harness.receive(ALICE, Hello("a"))
    await harness.expect_published(("alice", "online"))
    first: list[asyncio.Future[list[int]]] = []  # the broker does not confirm the first publish for a while
    publish = harness._publish

    def held(messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        done = publish(messages)
        if first:
            return done
        first.append(asyncio.get_running_loop().create_future())
        return first[0]

    monkeypatch.setattr(harness.presences, "publish", held)
    async with harness.publishing():
        harness.presences.acquaint("bob", "alice")
        await eventually(lambda: first)
        await harness.receive(ALICE, Status("offline", "a"))
        await eventually(lambda: any(presence.state == "offline" for presence in harness.published))
        first[0].set_result([])
        await eventually(lambda: harness.idle)
    assert [presence.state for presence in harness.published] == ["online", "offline"]
