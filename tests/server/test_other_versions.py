"""Servers of different versions on the same Redis and the same store."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path

import msgspec

from imqtt.model import Accepted, Content, Cursor, Device, Event, History, Page, Presence, Registration
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import Format
from imqtt.serving import serving
from imqtt.stores.base import Identity, Record
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import record
from tests.redis_server import RedisServer
from tests.server.conftest import config_for

D = "d:alice:bob"
Make = Callable[..., object]


async def test_a_presence_state_that_a_newer_server_wrote_counts_as_online(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    redis = await stack.enter_async_context(RedisServer(tmp_path / "redis"))
    server = await stack.enter_async_context(serving(config_for(broker, tmp_path, state=redis.url)))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    assert isinstance(await alice.send(D, "1"), Accepted)
    link = server._state._link
    [key] = await link.call("KEYS", "imqtt:*:presence:bob")
    newer = msgspec.msgpack.encode(["n1", "invisible", 1_000, 1 << 50])
    await link.call("HSET", key, "laptop", newer)
    await alice.hello(nonce="a")
    presence = await alice.frame(Presence)
    assert (presence.user, presence.state) == ("bob", "online")
    assert isinstance(await bob.send(D, "2"), Accepted)


async def test_a_device_of_a_format_that_only_a_newer_server_knows_receives_json(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.put_devices([Registration(Device("bob", "tv"), "cbor", max_packet=5)])
    await store.close()
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice, tv = await device("alice@phone", format=Format.PROTOBUF), await device("bob@tv")
    assert isinstance(await alice.send(D, "1"), Accepted)
    assert (await tv.frame(Event)).content == Content(text="hi")


async def test_events_of_a_newer_kind_keep_their_places_in_every_page(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    poll = record(D, 2)
    body = b'{"text":["red","blue"],"closes":7}'
    poll = Record(
        msgspec.structs.replace(poll.event, kind="poll"), body, blake2b(body, digest_size=16).digest()
    )
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.put_members([("alice", D), ("bob", D)])
    await store.append([record(D, 1), poll])
    await store.close()
    await stack.enter_async_context(serving(config_for(broker, tmp_path)))
    alice = await device("alice@phone")
    _, page = await alice.hello(Cursor(D))
    assert [(event.seq, event.kind, event.content.text) for event in page.slices[0].events] == [
        (1, "message", "message 1"), (2, "poll", None),
    ]  # fmt: skip
    start = len(alice.frames)
    await alice.command(History(D))
    assert len((await alice.frame(Page, since=start)).slices[0].events) == 2
    accepted = await alice.send(D, "next")
    assert isinstance(accepted, Accepted)
    assert accepted.seq == 3
