"""Each fault of a proxied connection has its effect and counts it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from imqtt.broker.errors import LinkError
from imqtt.model import Accepted, Content, Event, Send
from imqtt.mosquitto.broker import Mosquitto
from tests.device import RawDevice
from tests.services import WITHIN, ServerProcess, eventually
from tests.verification.chaos.proxy import MAX_HELD_BYTES, SWALLOW_SECONDS, Effect, Proxy
from tests.verification.checker.history import now

TALK = "d:alice:bob"
SOON = 0.2  # seconds in which nothing may happen


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def hears(self, data: bytes) -> bool:
        async with asyncio.timeout(WITHIN):
            return await self.reader.readexactly(len(data)) == data

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SOON):
                return not await self.reader.read(1)
        except TimeoutError:
            return True

    async def is_reset(self) -> bool:
        try:
            async with asyncio.timeout(WITHIN):
                await self.reader.read()
        except ConnectionResetError:
            return True
        return False

    async def is_ended(self) -> bool:
        async with asyncio.timeout(WITHIN):
            return not await self.reader.read()


class Listener:
    """Accepts connections and does nothing with them on its own."""

    def __init__(self) -> None:
        self.port = 0
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._peers: list[Peer] = []

    async def __aenter__(self) -> "Listener":
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._peers.append(Peer(reader, writer))
            await self._accepted.put(self._peers[-1])

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self._peers:
            peer.writer.transport.abort()

    async def next(self) -> Peer:
        async with asyncio.timeout(WITHIN):
            return await self._accepted.get()


Meet = Callable[[], Awaitable[tuple[Peer, Peer]]]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener() as listener:
        yield listener


@pytest.fixture
async def proxy(listener: Listener) -> AsyncIterator[Proxy]:
    async with Proxy(listener.port, "client to server") as proxy:
        yield proxy


@pytest.fixture
async def call(proxy: Proxy) -> AsyncIterator[Callable[[], Awaitable[Peer]]]:
    """`await call()`: the client's end of a new connection."""
    async with AsyncExitStack() as stack:

        async def call() -> Peer:
            peer = Peer(*await asyncio.open_connection("127.0.0.1", proxy.port))
            stack.callback(peer.writer.transport.abort)
            return peer

        yield call


@pytest.fixture
def meet(listener: Listener, call: Callable[[], Awaitable[Peer]]) -> Meet:
    """`near, far = await meet()`: both ends of a new connection that has carried bytes."""

    async def meet() -> tuple[Peer, Peer]:
        near = await call()
        far = await listener.next()
        near.writer.write(b"?")
        far.writer.write(b"!")
        assert await far.hears(b"?")
        assert await near.hears(b"!")
        return near, far

    return meet


async def test_bytes_pass_unchanged(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    data = bytes(range(256)) * 40_000
    near.writer.write(data)
    far.writer.write(data[::-1])
    assert all(await asyncio.gather(far.hears(data), near.hears(data[::-1])))
    assert (proxy.connections, proxy.open, proxy.bytes) == (1, 1, 2 * len(data) + 2)
    near.writer.close()
    assert await far.is_ended()
    await eventually(lambda: proxy.open == 0)
    assert proxy.repair() is None


async def test_a_peer_that_does_not_read_stops_the_sender(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    data = bytes(64 * 1024 * 1024)
    near.writer.write(data)
    await asyncio.sleep(SOON)
    assert near.writer.transport.get_write_buffer_size() > len(data) // 2
    assert await far.hears(data)


async def test_a_cut_resets_and_refuses_connections_until_it_is_repaired(
    proxy: Proxy, meet: Meet, call: Callable[[], Awaitable[Peer]]
) -> None:
    ends = [await meet() for _ in range(3)]
    effect = proxy.cut()
    assert effect == Effect("cut", 3, 0, {1, 2, 3})
    assert all([await end.is_reset() for pair in ends for end in pair])
    assert await (await call()).is_reset()
    assert effect.connections == 4
    assert proxy.repair() is effect
    await meet()
    assert effect.connections == 4


async def test_a_cut_without_a_connection_has_no_effect(proxy: Proxy) -> None:
    assert not proxy.cut()
    assert not proxy.drop()


async def test_a_drop_resets_open_connections_and_admits_new_ones(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    effect = proxy.drop()
    assert effect.connections == 1
    assert await near.is_reset()
    assert await far.is_reset()
    await meet()
    assert effect.connections == 1


async def test_a_slowed_proxy_delays_every_byte(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    effect = proxy.slow(0.15)
    assert not effect
    since = now()
    near.writer.write(b"question")
    assert await far.hears(b"question")
    assert now() - since >= 0.15
    far.writer.write(b"answer")
    assert await near.hears(b"answer")
    assert now() - since >= 0.3
    assert (effect.connections, effect.bytes) == (1, 14)
    proxy.repair()
    since = now()
    near.writer.write(b"question")
    assert await far.hears(b"question")
    assert now() - since < 0.15
    assert effect.bytes == 14


async def test_a_slowed_proxy_limits_the_rate_in_each_direction(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    effect = proxy.slow(0.0, 200_000)
    data = bytes(range(250)) * 400
    since = now()
    near.writer.write(data)
    far.writer.write(data)
    assert await far.hears(data[:50_000])
    assert now() - since < 0.45  # it arrives in chunks
    assert await far.hears(data[50_000:])
    assert await near.hears(data)
    assert 0.5 <= now() - since < 0.95
    assert effect.bytes == 200_000


async def test_bytes_held_back_by_a_slowed_proxy_pass_at_once_when_it_is_repaired(
    proxy: Proxy, meet: Meet
) -> None:
    near, far = await meet()
    proxy.slow(60.0, 1_000)
    near.writer.write(b"x" * 100_000)
    near.writer.close()
    await eventually(lambda: proxy.effect is not None and proxy.effect.bytes == 100_000)
    assert await far.hears_nothing()
    proxy.repair()
    assert await far.hears(b"x" * 100_000)
    assert await far.is_ended()


async def test_a_stall_keeps_connections_open_and_silent(
    proxy: Proxy, listener: Listener, meet: Meet, call: Callable[[], Awaitable[Peer]]
) -> None:
    near, far = await meet()
    gone, left = await meet()
    effect = proxy.stall()
    assert not effect
    near.writer.write(b"question")
    gone.writer.close()
    late = await call()
    late.writer.write(b"late")
    late_far = await listener.next()
    assert all(await asyncio.gather(*(end.hears_nothing() for end in (far, left, late_far))))
    assert (effect.connections, effect.bytes) == (2, 12)
    proxy.repair()
    assert await far.hears(b"question")
    assert await left.is_ended()
    assert await late_far.hears(b"late")
    far.writer.write(b"answer")
    assert await near.hears(b"answer")
    assert effect.bytes == 12


async def test_a_stall_buffers_a_limited_number_of_bytes(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    effect = proxy.stall()
    data = bytes(64 * 1024 * 1024)
    near.writer.write(data)
    await eventually(lambda: effect.bytes > MAX_HELD_BYTES)
    await asyncio.sleep(SOON)
    assert effect.bytes < 4 * MAX_HELD_BYTES
    proxy.repair()
    assert await far.hears(data)


async def test_a_request_is_carried_out_although_its_answer_is_dropped(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    silent, silent_far = await meet()
    effect = proxy.swallow()
    near.writer.write(b"insert")
    assert await far.hears(b"insert")
    assert not effect
    since = now()
    far.writer.write(b"done")
    assert await near.is_reset()  # without receiving a byte
    assert now() - since >= SWALLOW_SECONDS * 0.9
    assert await far.is_reset()
    assert (effect.connections, effect.bytes) == (1, 4)
    await meet()  # a new connection passes, so the client can learn the outcome
    assert proxy.repair() is effect
    silent_far.writer.write(b"late")
    assert await silent.hears(b"late")
    assert effect.connections == 1


async def test_no_bytes_follow_a_dropped_answer(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    effect = proxy.swallow()
    far.writer.write(b"first")
    await eventually(lambda: effect.bytes == 5)
    proxy.repair()
    far.writer.write(b"second")
    assert await near.is_reset()


async def test_new_connections_go_to_the_current_target(proxy: Proxy, meet: Meet) -> None:
    near, far = await meet()
    async with Listener() as other:
        proxy.to = other.port
        late = Peer(*await asyncio.open_connection("127.0.0.1", proxy.port))
        late_far = await other.next()
        late.writer.write(b"late")
        assert await late_far.hears(b"late")
        near.writer.write(b"early")
        assert await far.hears(b"early")
        late.writer.close()


async def test_a_proxy_without_a_target_resets_connections(
    proxy: Proxy, listener: Listener, call: Callable[[], Awaitable[Peer]]
) -> None:
    async with Listener() as other:
        proxy.to = other.port
    assert await (await call()).is_reset()


async def test_a_message_whose_answer_is_dropped_is_stored(server: ServerProcess, broker: Mosquitto) -> None:
    async with Proxy(broker.port, "device to broker") as proxy, RawDevice(broker, "bob@phone") as bob:
        await bob.hello()
        alice = RawDevice(broker, "alice@phone")
        await alice.connect(port=proxy.port)
        effect = proxy.swallow()
        with pytest.raises(LinkError):
            await alice.command(Send(TALK, "m1", Content(text="hi")))
        assert (await bob.frame(Event)).client_msg_id == "m1"
        assert effect.connections == 1
        assert effect.bytes >= 4  # a PUBACK
        assert alice.frames == []
        await alice.connect(port=proxy.port)
        answer = await alice.send(TALK, "m1")
        assert isinstance(answer, Accepted)
        assert answer.seq == 1
        await alice.disconnect()
