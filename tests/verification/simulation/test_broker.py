"""One suite for two brokers: Mosquitto with this project's configuration, and the simulated one.

Where Mosquitto behaves unexpectedly, the test describes it, and the simulated broker does the same.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from imqtt.broker.errors import Closed, ConnackRefused
from imqtt.broker.link import Link, LinkSettings, Packet, Received, Will, connect
from imqtt.client.mqtt import Mqtt
from imqtt.client.settings import Address
from imqtt.client.transport import Login, LoginRefused, Lost, Untaken
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from tests.given_mosquitto import installed_version
from tests.services import WITHIN, eventually
from tests.verification.simulation.broker import Broker, State
from tests.verification.simulation.link import connector_to
from tests.verification.simulation.loop import simulated
from tests.verification.simulation.mqtt import SimMqtt
from tests.verification.simulation.release import DEBIAN, RELEASES, Release

MAX_QUEUED = 40  # few, so that queues overflow soon
SEEDS = range(10)  # of the simulated broker: each body runs in several worlds
TOPIC = "imqtt/alice@phone/up/0"
WILLS = "imqtt/alice@phone/up/1"


class Side(Protocol):
    """The operations that both brokers offer to tests."""

    release: Release

    async def connect(self, client_id: str, *, persistent: bool = True, **settings: Any) -> Link:
        """`persistent`: no clean start and an expiry of an hour; otherwise a clean start and no expiry."""

    async def device(self, name: str, **login: Any) -> Mqtt | SimMqtt: ...

    async def save(self) -> None:
        """Makes the broker save its state, as it does once a minute."""

    async def keep(self) -> object:
        """A copy of the last saved state."""

    async def kill(self) -> None:
        """SIGKILL."""

    async def start(self, *, wiped: bool = False, kept: object = None) -> None:
        """Starts with the last saved state, with none, or with a copy."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...


class RealSide:
    """Mosquitto, in real time."""

    def __init__(self, directory: Path) -> None:
        self.release = Release(installed_version())
        self._mosquitto = _Bounded(directory)
        self._passwords: dict[str, str] = {}

    async def __aenter__(self) -> "RealSide":
        await self._mosquitto.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resume()
        await self._mosquitto.kill()

    async def connect(self, client_id: str, *, persistent: bool = True, **settings: Any) -> Link:
        return await connect(
            LinkSettings(
                INTERNAL_HOST,
                self._mosquitto.internal_port,
                client_id,
                SERVER_ACCOUNT,
                self._mosquitto.server_password,
                **{"timeout": WITHIN} | _session(persistent) | settings,
            )
        )

    async def device(self, name: str, **login: Any) -> Mqtt | SimMqtt:
        if name not in self._passwords:
            self._passwords[name] = self._mosquitto.passwords.add(name)
        given = _login(name, self._passwords[name]) | {"timeout": WITHIN} | login
        return await Mqtt.open(Address("127.0.0.1", self._mosquitto.port), Login(**given))

    @property
    def _database(self) -> Path:
        return self._mosquitto.files.state

    async def save(self) -> None:
        self._database.unlink(missing_ok=True)
        self._signal(signal.SIGUSR1)
        await eventually(self._database.exists)  # written to a temporary file and renamed

    async def keep(self) -> object:
        return self._database.read_bytes()

    async def kill(self) -> None:
        await self._mosquitto.kill()

    async def start(self, *, wiped: bool = False, kept: object = None) -> None:
        if wiped:
            self._database.unlink(missing_ok=True)
        if isinstance(kept, bytes):
            self._database.write_bytes(kept)
        await self._mosquitto.start()

    async def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._mosquitto.pid is not None:
            os.kill(self._mosquitto.pid, number)


class _Bounded(Mosquitto):
    """Mosquitto with a short queue."""

    def _prepare(self) -> None:
        super()._prepare()
        text = self.files.configuration.read_text()
        short = text.replace("max_queued_messages 100000", f"max_queued_messages {MAX_QUEUED}")
        assert short != text
        self.files.configuration.write_text(short)


class SimSide:
    """The simulated broker, in virtual time."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.release = broker.release
        self._connect = connector_to(broker)
        self._saved: State | None = None

    async def connect(self, client_id: str, *, persistent: bool = True, **settings: Any) -> Link:
        return await self._connect(LinkSettings("broker", 1884, client_id, **_session(persistent) | settings))

    async def device(self, name: str, **login: Any) -> Mqtt | SimMqtt:
        return await SimMqtt.open(self.broker, Address("broker", 1883), Login(**_login(name, "") | login))

    async def save(self) -> None:
        self._saved = self.broker.snapshot()

    async def keep(self) -> object:
        return self._saved

    async def kill(self) -> None:
        self.broker.kill()

    async def start(self, *, wiped: bool = False, kept: object = None) -> None:
        if wiped:
            self._saved = None
        if isinstance(kept, tuple):
            self._saved = kept
        self.broker.start(self._saved)

    async def pause(self) -> None:
        self.broker.loop.pause(self.broker.process)

    async def resume(self) -> None:
        self.broker.loop.resume(self.broker.process)


def _session(persistent: bool) -> dict[str, Any]:
    return {"session_expiry": 3_600 if persistent else 0, "clean_start": not persistent}


def _login(name: str, password: str) -> dict[str, Any]:
    return {
        "name": name, "password": password, "will_topic": f"imqtt/{name}/up/1", "will": b"gone",
        "keep_alive": 30, "timeout": 2.0, "tls": None,
    }  # fmt: skip


def on_both(body: Callable[[Side], Awaitable[None]]) -> Callable[..., None]:
    """Turns a body into tests: on Mosquitto, and on each simulated release in several worlds."""

    @pytest.mark.parametrize(
        "simulated", [None, *RELEASES], ids=lambda release: f"simulated {release}" if release else "mosquitto"
    )
    def test(simulated: Release | None, tmp_path: Path) -> None:
        if simulated is None:
            asyncio.run(_on_mosquitto(body, tmp_path / "broker"))
        else:
            on_simulated(body, simulated)

    test.__name__ = body.__name__
    return test


async def _on_mosquitto(body: Callable[[Side], Awaitable[None]], directory: Path) -> None:
    async with RealSide(directory) as side, asyncio.timeout(WITHIN):
        await body(side)


def on_simulated(
    body: Callable[[SimSide], Awaitable[None]], release: Release = DEBIAN, seeds: Iterable[int] = SEEDS
) -> None:
    for seed in seeds:
        with simulated(seed) as loop:

            async def run(side: SimSide) -> None:
                async with asyncio.timeout(WITHIN * 10):
                    await body(side)

            loop.run_until_complete(run(SimSide(Broker(loop, release=release, max_queued=MAX_QUEUED))))
            assert not loop.errors, (seed, loop.errors)


# --- helpers


def numbered(*numbers: int, qos: int = 1, topic: str = TOPIC) -> list[Packet]:
    return [Packet(topic, str(number).encode(), qos) for number in numbers]


async def take(link: Link, count: int) -> list[Received]:
    """Receives `count` messages without acking them."""
    received: list[Received] = []
    async with asyncio.timeout(WITHIN):
        while len(received) < count:
            received += await link.receive(count - len(received))
    return received


def numbers(received: list[Received]) -> list[int]:
    return [int(message.payload) for message in received]


def ack(link: Link, received: list[Received]) -> None:
    for message in received:
        link.ack(message)


async def nothing_more(link: Link, publisher: Link, topic: str = TOPIC) -> None:
    """The broker holds nothing for this link: the next message is one that is published now."""
    assert await publisher.publish([Packet(topic, b"-1")]) == [0]
    assert numbers(await take(link, 1)) == [-1]


# --- delivery


@on_both
async def test_messages_arrive_with_their_payload_and_properties(side: Side) -> None:
    link = await side.connect("one")
    await link.subscribe("imqtt/+/up/0")
    message = Packet(TOPIC, b"\x00payload", 1, (("a", "b"), ("a", "c")))

    assert await link.publish([message]) == [0]

    (received,) = await take(link, 1)
    assert received[:2] == (TOPIC, b"\x00payload")
    assert (received.properties, received.qos, received.dup) == ((("a", "b"), ("a", "c")), 1, False)


@on_both
async def test_messages_of_each_publisher_keep_their_order(side: Side) -> None:
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    publishers = [await side.connect(f"publisher-{number}") for number in range(3)]

    done = [
        publisher.publish(numbered(*range(100 * number + part, 100 * number + part + 5)))
        for part in range(0, 50, 5)
        for number, publisher in enumerate(publishers)
    ]

    received = numbers(await take(receiver, 150))
    for number in range(3):
        own = [message for message in received if message // 100 == number]
        assert own == list(range(100 * number, 100 * number + 50))
    assert [code for codes in await asyncio.gather(*done) for code in codes] == [0] * 150


@on_both
async def test_a_publisher_receives_messages_that_match_its_own_subscriptions(side: Side) -> None:
    link = await side.connect("one", persistent=False)
    await link.subscribe(TOPIC)

    assert await link.publish(numbered(1)) == [0]

    assert numbers(await take(link, 1)) == [1]


@on_both
async def test_qos_0_messages_arrive_in_order_without_a_packet_id(side: Side) -> None:
    link = await side.connect("one")
    await link.subscribe(TOPIC)

    await link.publish([*numbered(1), *numbered(2, qos=0), *numbered(3)])

    received = await take(link, 3)
    assert numbers(received) == [1, 2, 3]
    assert [message.qos for message in received] == [1, 0, 1]
    assert received[1].packet_id is None


@on_both
async def test_topic_filters_match_as_mqtt_specifies(side: Side) -> None:
    publisher = await side.connect("publisher")
    await (await side.connect("one")).subscribe("imqtt/+/+/up/0")
    await (await side.connect("two")).subscribe("imqtt/x/#")

    topics = {
        "imqtt/a/b/up/0": 0x00, "imqtt/a/b/up/1": 0x10, "imqtt/a/b/up": 0x10, "imqtt/a/b/up/0/c": 0x10,
        "imqtt/a//up/0": 0x00, "imqtt/x": 0x00, "imqtt/x/y/z": 0x00, "imqtt/xy": 0x10,
        "imqtt/$a/$b/up/0": 0x00, "imqtt": 0x10,
    }  # fmt: skip
    codes = await publisher.publish([Packet(topic, b"") for topic in topics if topic != "imqtt"])

    assert codes == [code for topic, code in topics.items() if topic != "imqtt"]


@on_both
async def test_a_client_with_two_matching_filters_receives_the_message_twice(side: Side) -> None:
    # MQTT leaves that open; 2.0.11 would send it once to a client of MQTT 3.1.1.
    link = await side.connect("one")
    await link.subscribe(TOPIC, "imqtt/+/up/0")
    await link.subscribe(TOPIC)  # a repeated subscription changes nothing

    await link.publish(numbered(1, 2))

    assert numbers(await take(link, 4)) == [1, 1, 2, 2]
    await link.publish(numbered(3))
    assert numbers(await take(link, 2)) == [3, 3]


# --- subscribers


@on_both
async def test_a_message_without_subscribers_is_acked_with_0x10(side: Side) -> None:
    publisher = await side.connect("publisher")
    assert await publisher.publish(numbered(1)) == [0x10]
    receiver = await side.connect("receiver", persistent=False)
    await receiver.subscribe(TOPIC)
    assert await publisher.publish(numbered(2)) == [0x00]

    await receiver.close()

    assert await publisher.publish(numbered(3)) == [0x10]


@on_both
async def test_an_offline_persistent_session_counts_as_a_subscriber(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await receiver.close()

    assert await publisher.publish(numbered(1)) == [0x00]


# --- sessions


@on_both
async def test_messages_for_an_offline_client_are_queued_except_qos_0(side: Side) -> None:
    publisher = await side.connect("publisher")
    first = await side.connect("receiver")
    assert not first.session_present
    await first.subscribe(TOPIC)
    await first.close()
    await publisher.publish([*numbered(1, 2), *numbered(3, qos=0), *numbered(4)])

    second = await side.connect("receiver")

    assert second.session_present
    received = await take(second, 3)
    assert numbers(received) == [1, 2, 4]
    assert not any(message.dup for message in received)
    await nothing_more(second, publisher)


@on_both
async def test_unacked_messages_are_redelivered_in_order_before_queued_ones(side: Side) -> None:
    publisher = await side.connect("publisher")
    first = await side.connect("receiver")
    await first.subscribe(TOPIC)
    await publisher.publish(numbered(*range(10)))
    held = await take(first, 10)
    ack(first, [*held[:3], held[5]])  # 5 waits for 3
    await first.close()
    await publisher.publish(numbered(10, 11))

    second = await side.connect("receiver")

    received = await take(second, 9)
    assert numbers(received) == [*range(3, 10), 10, 11]
    assert [message.dup for message in received] == [True] * 7 + [False] * 2
    assert [message.packet_id for message in received[:7]] == [message.packet_id for message in held[3:]]
    ack(second, received)
    await nothing_more(second, publisher)


@on_both
async def test_a_connection_with_the_same_client_id_takes_over_the_session(side: Side) -> None:
    publisher = await side.connect("publisher")
    first = await side.connect("receiver")
    await first.subscribe(TOPIC)
    await publisher.publish(numbered(*range(20)))
    held = await take(first, 20)
    waiting = asyncio.ensure_future(first.receive(1))

    second = await side.connect("receiver")

    assert second.session_present
    assert (await first.wait_closed()).code == (0x8E if side.release.tells_of_takeover else None)
    with pytest.raises(Closed):
        await waiting
    first.ack(held[0])
    received = await take(second, 20)
    assert numbers(received) == list(range(20))
    assert all(message.dup for message in received)
    await nothing_more(second, publisher)


@on_both
async def test_a_session_taken_over_repeatedly_keeps_its_messages_in_order(side: Side) -> None:
    publisher = await side.connect("publisher")
    link = await side.connect("receiver")
    await link.subscribe(TOPIC)
    published = publisher.publish(numbered(*range(200)))
    seen: list[int] = []
    while len(set(seen)) < 200:
        received = await take(link, 1)
        received += await take(link, 4) if len(seen) < 100 else []
        seen += numbers(received)
        assert numbers(received) == list(range(int(received[0].payload), int(received[-1].payload) + 1))
        ack(link, received[:3])
        if len(seen) % 2:
            link = await side.connect("receiver")

    assert await published == [0] * 200
    first_seen = list(dict.fromkeys(seen))
    assert first_seen == sorted(first_seen)


@on_both
async def test_a_clean_start_discards_the_session_and_its_messages(side: Side) -> None:
    publisher = await side.connect("publisher")
    owner = await side.connect("receiver")
    await owner.subscribe(TOPIC)
    await publisher.publish(numbered(1, 2, 3))
    await take(owner, 3)

    hijacker = await side.connect("receiver", persistent=False)

    assert not hijacker.session_present
    await owner.wait_closed()
    assert await publisher.publish(numbered(4)) == [0x10]
    await hijacker.close()
    owner = await side.connect("receiver")
    assert not owner.session_present
    assert await publisher.publish(numbered(5)) == [0x10]
    await owner.subscribe(TOPIC)
    await nothing_more(owner, publisher)


@on_both
async def test_a_session_without_expiry_ends_with_its_connection(side: Side) -> None:
    publisher = await side.connect("publisher")
    first = await side.connect("receiver", session_expiry=0)
    await first.subscribe(TOPIC)
    second = await side.connect("receiver", session_expiry=0)
    assert not second.session_present
    await first.wait_closed()
    assert await publisher.publish(numbered(1)) == [0x10]

    await second.subscribe(TOPIC)
    await second.close()

    assert await publisher.publish(numbered(2)) == [0x10]
    assert not (await side.connect("receiver")).session_present


@on_both
async def test_a_session_ends_when_its_expiry_has_passed(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", session_expiry=1)
    await receiver.subscribe(TOPIC)
    await receiver.close()
    assert await publisher.publish(numbered(1)) == [0x00]

    async def gone() -> bool:
        return await publisher.publish(numbered(2)) == [0x10]

    await eventually(gone)
    assert not (await side.connect("receiver")).session_present


@on_both
async def test_a_client_without_a_client_id_is_assigned_one(side: Side) -> None:
    link = await side.connect("", persistent=False)

    assert link.client_id


# --- PUBACKs


@on_both
async def test_acks_sent_before_a_close_are_processed(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", ack_delay=5.0)
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(*range(30)))
    ack(receiver, list(reversed(await take(receiver, 30))))

    await receiver.close()

    receiver = await side.connect("receiver")
    assert receiver.session_present
    await nothing_more(receiver, publisher)


@on_both
async def test_delayed_acks_are_lost_with_the_connection(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", ack_delay=5.0)
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(1, 2))
    ack(receiver, await take(receiver, 2))

    receiver.abort()

    receiver = await side.connect("receiver")
    assert numbers(await take(receiver, 2)) == [1, 2]


@on_both
async def test_acks_are_sent_after_their_delay(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", ack_delay=0.05)
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(1, 2))
    ack(receiver, await take(receiver, 2))
    await eventually(lambda: not receiver._connection.owing)
    await nothing_more(receiver, receiver)  # after the PUBACKs

    receiver = await side.connect("receiver")

    assert numbers(await take(receiver, 1)) == [-1]


# --- bounds


@on_both
async def test_a_full_queue_drops_the_newest_message_and_acks_it_with_success(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(*range(5)))
    await take(receiver, 5)
    await receiver.close()

    assert await publisher.publish(numbered(*range(5, 60))) == [0x00] * 55

    receiver = await side.connect("receiver")
    held = MAX_QUEUED if side.release.counts_in_flight else MAX_QUEUED + 5
    assert numbers(await take(receiver, held)) == list(range(held))
    await nothing_more(receiver, publisher)


@on_both
async def test_beyond_the_receive_maximum_messages_are_queued_and_then_dropped(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", receive_max=5)
    await receiver.subscribe(TOPIC)

    assert await publisher.publish(numbered(*range(60))) == [0x00] * 60

    held = MAX_QUEUED + (5 if side.release.counts_in_flight else 10)
    seen: list[int] = []
    while len(seen) < held:
        received = await take(receiver, 1)
        seen += numbers(received)
        ack(receiver, received)
    assert seen == list(range(held))
    await nothing_more(receiver, publisher)


@on_both
async def test_a_puback_releases_one_message_or_the_receive_maximum_in_old_mosquittos(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver", receive_max=5)
    # The link would stop reading at its own limits.
    receiver._connection._settings = replace(receiver._settings, receive_max=1_000)
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(*range(30)))
    received = await take(receiver, 5)
    await publisher.publish(numbered(100, qos=0))
    assert numbers(await take(receiver, 1)) == [100]

    receiver.ack(received[0])

    released = 1 if side.release.keeps_receive_maximum else 5
    assert numbers(await take(receiver, released)) == list(range(5, 5 + released))
    await publisher.publish(numbered(101, qos=0))
    assert numbers(await take(receiver, 1)) == [101]


# --- wills


async def witness(side: Side) -> Link:
    link = await side.connect("witness")
    await link.subscribe(WILLS)
    return link


def will(number: int) -> Will:
    return Will(WILLS, str(number).encode())


@on_both
async def test_the_will_is_published_when_the_connection_ends_without_a_disconnect(side: Side) -> None:
    watching = await witness(side)
    for number, persistent in enumerate((True, False)):
        closed = await side.connect("closed", persistent=persistent, will=will(10 + number))
        await closed.close()
        cut = await side.connect("cut", persistent=persistent, will=will(number))

        cut.abort()

        (received,) = await take(watching, 1)
        assert numbers([received]) == [number]
        assert received.qos == 1
    await nothing_more(watching, watching, WILLS)


@on_both
async def test_the_will_of_a_session_without_expiry_is_published_when_it_is_taken_over(side: Side) -> None:
    watching = await witness(side)
    for clean in (True, False):
        first = await side.connect("one", persistent=False, will=will(1))
        second = await side.connect("one", session_expiry=0, clean_start=clean)
        second.publish(numbered(2, topic=WILLS))

        assert numbers(await take(watching, 2)) == [1, 2]
        await first.wait_closed()
        await second.close()
    await nothing_more(watching, watching, WILLS)


@on_both
async def test_the_will_of_a_persistent_session_is_not_published_when_it_is_taken_over(side: Side) -> None:
    watching = await witness(side)
    first = await side.connect("one", will=will(1))

    second = await side.connect("one")

    await first.wait_closed()
    await nothing_more(watching, second, WILLS)


@on_both
async def test_the_will_of_a_persistent_session_is_published_when_a_clean_start_ends_it(side: Side) -> None:
    watching = await witness(side)
    await side.connect("one", will=will(1))

    await side.connect("one", persistent=False, will=will(2))

    assert numbers(await take(watching, 1)) == [1]
    await nothing_more(watching, watching, WILLS)


@on_both
async def test_a_session_that_is_taken_over_has_the_will_of_its_new_connection(side: Side) -> None:
    watching = await witness(side)
    await side.connect("one", will=will(1))
    second = await side.connect("one", will=will(2))

    second.abort()

    assert numbers(await take(watching, 1)) == [2]


@on_both
async def test_a_killed_broker_never_publishes_its_wills(side: Side) -> None:
    watching = await witness(side)
    link = await side.connect("one", will=will(1))
    await side.save()

    await side.kill()

    await link.wait_closed()
    await watching.wait_closed()
    await side.start()
    watching = await side.connect("witness")
    assert watching.session_present
    assert (await side.connect("one")).session_present
    await nothing_more(watching, watching, WILLS)


# --- the broker's end


@on_both
async def test_killing_a_broker_ends_every_pending_call(side: Side) -> None:
    link = await side.connect("one")
    receiving = asyncio.ensure_future(link.receive(1))
    await side.pause()
    published = link.publish(numbered(1))
    subscribed = asyncio.ensure_future(link.subscribe(TOPIC))
    await asyncio.sleep(0)

    await side.kill()

    for waiting in (receiving, published, subscribed):
        with pytest.raises(Closed):
            await waiting
    assert (await link.wait_closed()).code is None
    with pytest.raises(Closed):
        await link.publish(numbered(2))
    with pytest.raises(ConnectionRefusedError):
        await side.connect("one")
    await side.start()
    assert not (await side.connect("one")).session_present


@on_both
async def test_saved_state_is_restored_after_a_kill(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(1, 2, 3))
    ack(receiver, (await take(receiver, 3))[:1])
    await receiver.close()
    await publisher.publish(numbered(4, 5))
    await side.save()
    await side.kill()
    await side.start()

    publisher = await side.connect("publisher")
    assert publisher.session_present
    assert await publisher.publish(numbered(6)) == [0x00]  # the subscription was restored
    receiver = await side.connect("receiver")

    assert receiver.session_present
    received = await take(receiver, 5)
    assert numbers(received) == [2, 3, 4, 5, 6]
    assert [message.dup for message in received] == [True, True, False, False, False]
    ack(receiver, received)
    await nothing_more(receiver, publisher)


@on_both
async def test_unsaved_state_is_lost_after_a_kill(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await side.save()
    await publisher.publish(numbered(1, 2))
    await take(receiver, 2)
    await side.kill()
    await side.start()

    receiver = await side.connect("receiver")

    assert receiver.session_present
    await nothing_more(receiver, await side.connect("publisher"))


@on_both
async def test_a_wiped_broker_has_no_sessions(side: Side) -> None:
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await receiver.publish(numbered(1))
    await side.save()
    await side.kill()
    await side.start(wiped=True)

    receiver = await side.connect("receiver")

    assert not receiver.session_present
    assert await receiver.publish(numbered(2)) == [0x10]


@on_both
async def test_an_old_state_redelivers_messages_acked_since(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await publisher.publish(numbered(1, 2))
    received = await take(receiver, 2)
    await side.save()
    old = await side.keep()
    ack(receiver, received)
    await publisher.publish(numbered(3))
    ack(receiver, await take(receiver, 1))
    await receiver.close()
    await side.save()
    await side.kill()
    await side.start(kept=old)

    receiver = await side.connect("receiver")

    received = await take(receiver, 2)
    assert numbers(received) == [1, 2]
    assert all(message.dup for message in received)
    await nothing_more(receiver, await side.connect("publisher"))


@on_both
async def test_a_session_that_began_with_a_clean_start_is_not_saved(side: Side) -> None:
    link = await side.connect("one", clean_start=True)
    await link.subscribe(TOPIC)
    await side.save()
    await side.kill()
    await side.start()

    link = await side.connect("one")

    assert not link.session_present
    assert await link.publish(numbered(1)) == [0x10]


@on_both
async def test_old_mosquittos_save_sessions_without_expiry_and_restore_them_without_a_client(
    side: Side,
) -> None:
    link = await side.connect("one", session_expiry=0)
    await link.subscribe(TOPIC)
    await side.save()
    await side.kill()
    await side.start()
    publisher = await side.connect("publisher")
    assert await publisher.publish(numbered(1)) == [0x00 if side.release.saves_without_expiry else 0x10]

    link = await side.connect("one", session_expiry=0)

    assert not link.session_present
    assert await publisher.publish(numbered(2)) == [0x10]


# --- restarts of the broker


@on_both
async def test_a_paused_broker_continues_where_it_was(side: Side) -> None:
    publisher = await side.connect("publisher")
    receiver = await side.connect("receiver")
    await receiver.subscribe(TOPIC)
    await side.pause()
    published = publisher.publish(numbered(1, 2))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(published), 0.2)

    await side.resume()

    assert await published == [0, 0]
    assert numbers(await take(receiver, 2)) == [1, 2]


@on_both
async def test_a_connect_abandoned_while_the_broker_was_paused_still_takes_over_the_session(
    side: Side,
) -> None:
    watching = await witness(side)
    owner = await side.connect("one")
    await side.pause()
    with pytest.raises(TimeoutError):
        await side.connect("one", timeout=2.0, will=will(1))

    await side.resume()

    await owner.wait_closed()
    assert numbers(await take(watching, 1)) == [1]
    assert (await side.connect("one")).session_present


# --- devices, on paho or its simulation


@on_both
async def test_a_device_publishes_and_receives(side: Side) -> None:
    server = await side.connect("server")
    await server.subscribe(TOPIC)
    device = await side.device("alice@phone")
    await device.subscribe("imqtt/alice@phone/down")

    await device.publish(TOPIC, b"1")
    await device.publish(TOPIC, b"2")
    assert numbers(await take(server, 2)) == [1, 2]
    down = [Packet("imqtt/alice@phone/down", str(number).encode()) for number in range(5)]
    assert await server.publish(down) == [0] * 5

    received: list[bytes] = []
    while len(received) < 5:
        received += await device.receive(2)
    assert received == [b"0", b"1", b"2", b"3", b"4"]
    await device.close()


@on_both
async def test_a_will_is_published_for_a_dropped_device_but_not_for_a_closed_one(side: Side) -> None:
    watching = await side.connect("witness")
    await watching.subscribe("imqtt/+/up/1")
    # From another device: this `close` does not wait until the broker has read the message.
    await (await side.device("alice@tablet", will=b"1")).close()
    device = await side.device("alice@phone", will=b"2")

    device.drop()

    assert numbers(await take(watching, 1)) == [2]
    with pytest.raises(Lost):
        await device.publish(TOPIC, b"")
    with pytest.raises(Lost):
        await device.subscribe("imqtt/alice@phone/down")
    await nothing_more(watching, watching, WILLS)


@on_both
async def test_a_device_processes_received_messages_before_the_loss_of_its_broker(side: Side) -> None:
    server = await side.connect("server")
    device = await side.device("alice@phone")
    await device.subscribe("imqtt/alice@phone/down")
    await server.publish([Packet("imqtt/alice@phone/down", b"1"), Packet("imqtt/alice@phone/down", b"2")])
    with pytest.raises(Untaken, match="0x10"):
        await device.publish(TOPIC, b"")  # its PUBACK follows them
    assert await device.receive(1) == [b"1"]
    await side.pause()
    publishing = asyncio.ensure_future(device.publish(TOPIC, b"3"))
    await asyncio.sleep(0)

    await side.kill()

    assert await device.receive(1) == [b"2"]
    with pytest.raises(Lost):
        await device.receive(1)
    with pytest.raises(Lost):
        await publishing
    with pytest.raises(Lost):
        await device.publish(TOPIC, b"4")
    with pytest.raises(Lost):
        await side.device("alice@phone")
    with contextlib.suppress(Lost):
        await device.close()


@on_both
async def test_a_publish_without_a_puback_returns_after_the_timeout(side: Side) -> None:
    device = await side.device("alice@phone", timeout=2.0)
    await side.pause()
    began = asyncio.get_running_loop().time()

    await device.publish(TOPIC, b"1")

    assert asyncio.get_running_loop().time() - began > 1.9
    await side.resume()
    device.drop()


@on_both
async def test_a_second_process_with_the_same_client_id_takes_over_the_connection(side: Side) -> None:
    watching = await side.connect("witness")
    await watching.subscribe(WILLS)
    first = await side.device("alice@phone", will=b"1")

    second = await side.device("alice@phone", will=b"2")

    with pytest.raises(Lost):
        await first.receive()
    assert numbers(await take(watching, 1)) == [1]
    await second.close()
    first.drop()


# --- faults of the simulated network


def in_worlds(body: Callable[[SimSide], Awaitable[None]]) -> Callable[[], None]:
    """Turns a body into a test in several simulated worlds."""

    def test() -> None:
        on_simulated(body)

    test.__name__ = body.__name__
    return test


@in_worlds
async def test_killing_a_process_closes_its_connections_and_publishes_its_will(
    side: SimSide,
) -> None:
    watching = await witness(side)
    loop = side.broker.loop
    for name, opening in (("link", side.connect("one", will=will(1))), ("device", side.device("a/b"))):
        process = loop.new_process(name)
        await process.spawn(opening)
        await watching.subscribe("imqtt/a/b/up/1")
        assert len(side.broker.connections(process)) == 1
        began = loop.time()

        loop.kill(process)
        side.broker.close_connections_of(process)

        (received,) = await take(watching, 1)
        assert received.payload == (b"1" if name == "link" else b"gone")
        assert loop.time() - began < 1.0
        assert side.broker.connections(process) == []


@in_worlds
async def test_cutting_a_connection_loses_packets_in_flight_and_both_ends_notice(
    side: SimSide,
) -> None:
    watching = await witness(side)
    process = side.broker.loop.new_process("one")
    link = await process.spawn(side.connect("one", will=will(1)))
    (connection,) = side.broker.connections(process)
    published = link.publish(numbered(7, topic=WILLS))
    while not connection.up.in_flight and not published.done():
        await asyncio.sleep(0)

    connection.cut()

    with pytest.raises(Closed):
        await published
    assert numbers(await take(watching, 1)) == [1]
    await nothing_more(watching, watching, WILLS)


async def seconds(end: Awaitable[object]) -> float:
    """The duration of an await."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await end
    return loop.time() - began


@in_worlds
async def test_an_unnoticed_cut_is_detected_by_keep_alive(side: SimSide) -> None:
    watching = await witness(side)
    for client, broker in ((True, False), (False, True), (False, False)):
        process = side.broker.loop.new_process("one")
        link = await process.spawn(side.connect("one", will=will(1), keep_alive=10))
        (connection,) = side.broker.connections(process)
        connection.cut(client=client, broker=broker)

        at_client, at_broker = await asyncio.gather(seconds(link.wait_closed()), seconds(take(watching, 1)))
        assert at_client < 1.0 if client else 1.0 < at_client <= 1.5 * 10 + 1
        assert at_broker < 1.0 if broker else 1.0 < at_broker <= 1.5 * 10 + 2 * 6 + 1


@in_worlds
async def test_a_takeover_of_a_half_open_connection_receives_the_messages_sent_into_it(side: SimSide) -> None:
    publisher = await side.connect("publisher")
    process = side.broker.loop.new_process("one")
    link = await process.spawn(side.connect("receiver"))
    await link.subscribe(TOPIC)
    side.broker.connections(process)[0].cut(broker=False)
    await link.wait_closed()
    assert await publisher.publish(numbered(1, 2)) == [0, 0]

    link = await side.connect("receiver")

    assert numbers(await take(link, 2)) == [1, 2]


@in_worlds
async def test_a_device_abandons_a_silent_connection(side: SimSide) -> None:
    process = side.broker.loop.new_process("device")
    device = await process.spawn(side.device("alice@phone", keep_alive=10))
    (connection,) = side.broker.connections(process)
    connection.cut(client=False, broker=False)
    began = side.broker.loop.time()

    with pytest.raises(Lost):
        await device.receive()

    assert 9.0 < side.broker.loop.time() - began < 31.0


@in_worlds
async def test_a_stalled_connection_loses_no_packets(side: SimSide) -> None:
    process = side.broker.loop.new_process("one")
    link = await process.spawn(side.connect("one"))
    await link.subscribe(TOPIC)
    (connection,) = side.broker.connections(process)

    connection.stall(5.0)
    published = link.publish(numbered(*range(20)))
    began = side.broker.loop.time()

    assert await published == [0] * 20
    assert side.broker.loop.time() - began >= 5.0
    assert numbers(await take(link, 20)) == list(range(20))


@in_worlds
async def test_a_link_that_resumes_reading_after_a_pause_has_missed_no_packets(side: SimSide) -> None:
    publisher = await side.connect("publisher")
    link = await side.connect("one", receive_bytes=100)
    await link.subscribe(TOPIC)
    await publisher.publish([Packet(TOPIC, b"%050d" % number) for number in range(20)])
    await eventually(lambda: not link._reading)
    await asyncio.sleep(100)  # a link that does not read does not check the broker

    seen: list[int] = []
    while len(seen) < 20:
        received = await take(link, 1)
        seen += numbers(received)
        ack(link, received)
    assert seen == list(range(20))


@in_worlds
async def test_a_paused_process_receives_everything_later_or_is_disconnected(side: SimSide) -> None:
    publisher = await side.connect("publisher")
    loop = side.broker.loop
    process = loop.new_process("receiver")
    link = await process.spawn(side.connect("receiver", keep_alive=10))
    await link.subscribe(TOPIC)
    loop.pause(process)
    await publisher.publish(numbered(1, 2))
    await asyncio.sleep(2.0)
    loop.resume(process)
    received = await take(link, 2)
    assert numbers(received) == [1, 2]
    loop.pause(process)
    await asyncio.sleep(60.0)
    assert side.broker.connections(process) == []
    loop.resume(process)

    await link.wait_closed()

    assert numbers(await take(await side.connect("receiver"), 2)) == [1, 2]


@in_worlds
async def test_a_process_that_is_cut_off_from_the_broker_gets_no_connection(side: SimSide) -> None:
    process = side.broker.loop.new_process("far")
    side.broker.unreachable.add("far")
    with pytest.raises(TimeoutError):
        await process.spawn(side.connect("one", timeout=2.0))
    with pytest.raises(Lost):
        await process.spawn(side.device("alice@phone"))

    side.broker.unreachable.clear()

    await (await process.spawn(side.connect("one"))).close()


@in_worlds
async def test_a_refused_client_receives_the_reason_code(side: SimSide) -> None:
    side.broker.refusals.update({"one": 0x87, "alice@phone": 0x86})

    with pytest.raises(ConnackRefused) as refused:
        await side.connect("one")
    with pytest.raises(LoginRefused):
        await side.device("alice@phone")

    assert refused.value.code == 0x87
    assert side.broker.connections() == []
