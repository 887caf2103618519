"""Presence that peers are told is correct when they are told, whatever part is unavailable meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
from tests.server.test_marks_and_presence import Make, together
from tests.services import eventually

ALICE, BOB, CAROL = Device("alice", "phone"), Device("bob", "laptop"), Device("carol", "phone")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path / "redis") as redis:
        yield redis


class Room:
    """Presences on a real store and a real Redis. Bob has a conversation with every user and is online."""

    def __init__(self, redis: RedisServer, store: SqliteStore, state: RedisState) -> None:
        self.redis = redis
        self.store = store
        self.state = state
        self.now = 1_000
        self.told: list[Presence] = []  # to Bob
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

    async def begin(self) -> None:
        await self.store.put_devices([Registration(BOB, "json")])
        await self.know("alice")
        await self.hear(BOB, Hello("b"))
        await self.hears()

    async def know(self, user: str) -> None:
        conversation = f"d:{min(user, 'bob')}:{max(user, 'bob')}"
        await self.store.put_members([(user, conversation), ("bob", conversation)])
        await self.store.append(log(conversation, 1, 1))

    async def hear(self, device: Device, command: Hello | Status) -> None:
        self.now += 1
        await self.presences.note([(device, command)])

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.presences.run())
        yield
        task.cancel()
        await asyncio.wait([task])

    @property
    def idle(self) -> bool:
        queues = (self.presences._changed, self.presences._newcomers, self.presences._acquainted)
        return all(queue.idle for queue in queues)

    async def hears(self, *told: tuple[str, str]) -> None:
        """Bob is told exactly these states of users."""
        async with self.telling():
            await eventually(lambda: self.idle, what="nothing left to tell")
        assert [(it.user, it.state) for it in self.told] == list(told)
        self.told.clear()

    def _publish(self, messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        for message in messages:
            if message.topic == down(BOB):
                self.told += [it for it in decode_frames(message.payload) if isinstance(it, Presence)]
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        done.set_result([])
        return done


@pytest.fixture
async def room(redis: RedisServer, tmp_path: Path) -> AsyncIterator[Room]:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    state = await open_state(redis.url)
    room = Room(redis, store, state)
    await room.begin()
    yield room
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

    async def conversations_of(user: str, after: str, limit: int) -> list[str]:
        if len(failed) < times:
            failed.append(user)
            raise StoreUnreachable("a primary is being elected")
        return await read(user, after, limit)

    monkeypatch.setattr(store, "conversations_of", conversations_of)
    return failed


async def back(state: RedisState) -> None:
    await eventually(lambda: not state.trouble, what="Redis in use again")


# --- Redis away


async def test_nobody_is_told_offline_because_redis_dropped_between_two_looks(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await room.hear(ALICE, Hello("old"))
    await room.hears(("alice", "online"))
    with monkeypatch.context() as patch:
        follow(patch, room.state, "arrive", lambda: room.redis.command("CLIENT", "KILL", "TYPE", "normal"))
        await room.hear(ALICE, Hello("new"))
    assert "is away and the store is read instead" in caplog.text
    await back(room.state)
    await room.hears(("alice", "online"))


async def test_who_came_and_went_while_redis_was_away_is_told_as_he_is_afterwards(room: Room) -> None:
    await room.know("carol")
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    room.redis.pause(room.state)
    await room.hear(ALICE, Status("offline", "a"))
    await room.hear(Device("carol", "phone"), Hello("c"))
    await room.hear(Device("carol", "phone"), Status("away", "c"))
    room.redis.resume(room.state)
    await back(room.state)
    await room.hears(("alice", "offline"), ("carol", "away"))


async def test_changes_that_were_to_be_told_wait_for_redis(room: Room) -> None:
    await room.hear(ALICE, Hello("a"))
    room.redis.pause(room.state)
    async with room.telling():
        await eventually(lambda: room.state.trouble, what="Redis away")
        room.redis.resume(room.state)
        await eventually(lambda: room.told)
    await room.hears(("alice", "online"))


async def test_who_fell_silent_as_redis_dropped_is_told_of(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    room.now += 299_999
    await room.presences.refresh([BOB])
    room.now += 1
    monkeypatch.setattr(room.presences, "ttl", 5_000)  # checks every half second
    with monkeypatch.context() as patch:
        follow(patch, room.state, "expired", lambda: room.redis.command("CLIENT", "KILL", "TYPE", "normal"))
        async with room.telling():
            await eventually(lambda: room.told)
    await room.hears(("alice", "offline"))


async def test_what_a_wiped_redis_has_forgotten_is_not_told(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.know("carol")
    await room.hear(ALICE, Hello("old"))
    await room.hears(("alice", "online"))
    with monkeypatch.context() as patch:
        follow(patch, room.state, "arrive", lambda: room.redis.command("FLUSHALL"))
        await room.hear(ALICE, Hello("new"))
    await room.hear(BOB, Status("online", "b"))
    await room.hear(Device("carol", "phone"), Hello("c"))
    await room.hears(("carol", "online"), ("carol", "online"))  # as a change, and because Bob is back


async def test_a_user_of_whom_redis_refuses_to_tell_holds_up_nobody(room: Room) -> None:
    await room.know("mallory")
    await room.hear(Device("mallory", "phone"), Hello("m"))
    await room.hear(ALICE, Hello("a"))
    room.redis.command("SET", "imqtt:c:presence:mallory", "not a hash")
    await room.hears(("alice", "online"))


async def test_a_hello_while_redis_is_away_is_answered_and_told_of_afterwards(
    broker: Mosquitto, redis: RedisServer, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    config = config_for(broker, tmp_path, state=redis.url)
    server: Server = await stack.enter_async_context(serving(config))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await together(alice, bob)
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


async def test_a_device_that_says_hello_while_redis_is_away_is_told_of_its_peers_afterwards(
    room: Room,
) -> None:
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    room.redis.pause(room.state)
    assert await room.presences.for_newcomer(BOB, [Head("d:alice:bob", 1, Id(1))], more=False) == []
    room.redis.resume(room.state)
    await back(room.state)
    await room.hears(("alice", "online"))


async def test_whoever_spoke_while_redis_was_away_and_wiped_is_told_of(room: Room) -> None:
    room.redis.pause(room.state)
    await room.presences.refresh([ALICE])
    room.redis.resume(room.state)
    await back(room.state)
    await eventually(lambda: room.state._appeared, what="Alice's presence in Redis")
    await room.presences.refresh([BOB])
    await room.hears(("alice", "online"))


async def test_whoever_speaks_to_a_wiped_redis_is_told_of(room: Room) -> None:
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    room.redis.command("FLUSHALL")
    await room.presences.refresh([ALICE, BOB])
    await room.hears(("alice", "online"))
    await room.hear(BOB, Status("online", "b"))
    await room.hears(("alice", "online"))  # because Bob is back and may have missed something
    await room.hear(ALICE, Status("offline", "a"))
    await room.hears(("alice", "offline"))


@pytest.mark.parametrize("command", [None, Status("online", "b")])
async def test_who_falls_silent_as_the_state_is_lost_is_told_as_gone_once_that_is_certain(
    room: Room, monkeypatch: pytest.MonkeyPatch, command: Status | None
) -> None:
    room.now = 400 * 86_400_000
    seen = room.now - 86_400_000
    await room.know("carol")
    await room.know("dave")
    await room.store.put_devices(
        [Registration(it, "json", seen=seen) for it in (ALICE, CAROL)]
        + [Registration(Device("dave", "phone"), "json", seen=seen - 86_400_000)]
    )
    for device in (ALICE, CAROL):
        await room.hear(device, Hello("n"))
    await room.hears(("alice", "online"), ("carol", "online"))
    room.redis.command("FLUSHALL")
    if command is None:
        await room.presences.refresh([BOB])
    else:
        await room.hear(BOB, command)
    await room.hears()
    room.now += 299_000
    await room.presences.refresh([BOB, CAROL])
    await room.hears(("carol", "online"))
    room.now += 1_000
    monkeypatch.setattr(room.presences, "ttl", 5_000)  # checks every half second
    async with room.telling():
        await eventually(lambda: len(room.told) == 2)
    assert Presence("alice", "offline") in room.told  # the stored time when she was last seen is a day old
    await room.hears(("alice", "offline"), ("carol", "online"))  # Dave was not online lately


async def lose_memory(room: Room) -> None:
    """The state loses the presence of Alice and Carol, and then Bob sends something."""
    room.now = 400 * 86_400_000
    await room.know("carol")
    await room.store.put_devices([Registration(it, "json", seen=room.now) for it in (ALICE, CAROL)])
    for device in (ALICE, CAROL):
        await room.hear(device, Hello("n"))
    await room.hears(("alice", "online"), ("carol", "online"))
    room.redis.command("FLUSHALL")
    await room.presences.refresh([BOB])
    await room.hears()


async def look(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the check for silent devices."""
    monkeypatch.setattr(room.presences, "ttl", 5_000)  # checks every half second
    looked = asyncio.Event()
    with monkeypatch.context() as patch:
        follow(patch, room.state, "expired", looked.set)
        async with room.telling():
            await looked.wait()
            looked.clear()
            await looked.wait()  # all of the first look has been done
            await eventually(lambda: room.idle, what="nothing left to tell")


async def test_the_wait_begins_anew_if_the_state_is_lost_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_memory(room)
    room.now += 299_000
    room.redis.command("FLUSHALL")
    await room.presences.refresh([BOB])
    room.now += 1_000
    await look(room, monkeypatch)
    await room.hears()  # neither Alice nor Carol is known to be offline
    assert room.presences._unknown


async def test_a_device_that_has_gone_itself_is_told_of_nobody_later(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example one that connects for a single command each time, without a `Hello`."""
    await lose_memory(room)
    room.now += 300_000
    await look(room, monkeypatch)
    await room.hears()
    assert not room.presences._unknown


async def test_a_device_that_says_hello_meanwhile_is_told_of_nobody_later(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose_memory(room)
    await room.hear(BOB, Hello("b2"))
    room.now += 299_999
    await room.presences.refresh([BOB])
    await look(room, monkeypatch)
    await room.hears()
    assert not room.presences._unknown


@pytest.mark.parametrize("command", [None, Status("online", "b")])
async def test_a_device_that_wakes_up_on_its_old_connection_is_told_who_has_gone(
    room: Room, command: Status | None
) -> None:
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    room.now += 300_000
    await room.presences.refresh([ALICE])
    assert [it.device for it in await room.state.expired(room.now)] == [BOB]
    await room.hear(ALICE, Status("offline", "a"))
    await room.hears()
    if command is None:
        await room.presences.refresh([BOB])
    else:
        await room.hear(BOB, command)
    await room.hears(("alice", "offline"))


async def alice_is(bob: RawDevice, state: str) -> None:
    def told(frame: AnyFrame) -> bool:
        return isinstance(frame, Presence) and (frame.user, frame.state) == ("alice", state)

    await bob.until(told)


# --- the store away


async def test_a_change_waits_for_the_store_and_gives_way_to_a_newer_one(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "imqtt.server")
    await room.hear(ALICE, Hello("a"))
    async with room.telling():
        with monkeypatch.context() as broken:
            failed = fail(broken, room.store)
            await eventually(lambda: len(failed) >= 2)
            await room.hear(ALICE, Status("away", "a"))
        await eventually(lambda: room.told)
    await room.hears(("alice", "away"))
    assert set(failed) == {"alice"}
    assert len(caplog.records) == 1


async def test_after_a_failure_the_first_to_change_is_told_first(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.know("carol")
    fail(monkeypatch, room.store, times=1)
    await room.hear(ALICE, Hello("a"))
    await room.hear(Device("carol", "phone"), Hello("c"))
    await room.hears(("alice", "online"), ("carol", "online"))


# --- many changes


async def test_the_first_to_leave_is_told_first(room: Room) -> None:
    devices = [Device(f"user{number}", "phone") for number in range(30)]
    for device in devices:
        await room.know(device.user)
    await room.presences.note([(device, Hello("n")) for device in devices])
    await room.hears(*((device.user, "online") for device in devices))
    for device in devices:
        await room.hear(device, Status("offline", "n"))
    await room.hears(*((device.user, "offline") for device in devices))


async def test_silence_is_found_however_long_telling_takes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, on = room.store.conversations_of, asyncio.Event()

    async def conversations_of(user: str, after: str, limit: int) -> list[str]:
        await on.wait()
        return await read(user, after, limit)

    monkeypatch.setattr(room.store, "conversations_of", conversations_of)
    await room.hear(ALICE, Hello("a"))
    room.now += 300_000
    await room.presences.refresh([BOB])
    monkeypatch.setattr(room.presences, "ttl", 5_000)  # checks every half second

    async def found() -> bool:
        return (await room.state.presence(["alice"]))["alice"][0].state == "offline"

    async with room.telling():
        await eventually(found)
        on.set()
        await eventually(lambda: room.told)
    assert {(it.user, it.state) for it in room.told} == {("alice", "offline")}


async def test_two_users_who_begin_to_talk_are_told_nothing_old_after_something_newer(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.store.put_devices([Registration(ALICE, "json")])
    await room.hear(ALICE, Hello("a"))
    await room.hears(("alice", "online"))
    first: list[asyncio.Future[list[int]]] = []  # the broker does not confirm the first publish for a while
    publish = room._publish

    def held(messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        done = publish(messages)
        if first:
            return done
        first.append(asyncio.get_running_loop().create_future())
        return first[0]

    monkeypatch.setattr(room.presences, "publish", held)
    async with room.telling():
        room.presences.acquaint("bob", "alice")
        await eventually(lambda: first)
        await room.hear(ALICE, Status("offline", "a"))
        await eventually(lambda: any(it.state == "offline" for it in room.told))
        first[0].set_result([])
        await eventually(lambda: room.idle)
    assert [it.state for it in room.told] == ["online", "offline"]
