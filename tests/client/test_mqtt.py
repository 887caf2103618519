"""The connection over aiomqtt: cancellations are not lost, and no packet is dropped silently."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from imqtt.client import mqtt as module
from imqtt.client.mqtt import Mqtt
from imqtt.client.settings import Address
from imqtt.client.transport import Login
from imqtt.model import Device
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol.topics import down, up
from tests.client.conftest import Devices, after
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK, take
from tests.services import WITHIN

ALICE = Device("alice", "phone")
UP = up(ALICE, 0)


@pytest.fixture
async def mqtt(broker: Mosquitto) -> AsyncIterator[Mqtt]:
    login = Login(
        name=str(ALICE),
        password=broker.passwords.add(str(ALICE)),
        will_topic=UP,
        will=b"",
        keep_alive=30,
        timeout=WITHIN,
        tls=None,
    )
    mqtt = await Mqtt.open(Address(broker.host, broker.port), login)
    yield mqtt
    mqtt.drop()


@pytest.mark.parametrize("ticks", range(5))
@pytest.mark.parametrize(
    ("answer", "call"),
    [
        ("on_publish", lambda mqtt: mqtt.publish(UP, b"")),
        ("on_subscribe", lambda mqtt: mqtt.subscribe(down(ALICE))),
    ],
    ids=["PUBACK", "SUBACK"],
)
async def test_a_cancellation_that_coincides_with_the_answer_is_not_lost(
    mqtt: Mqtt, answer: str, call: Callable[[Mqtt], Awaitable[None]], ticks: int
) -> None:
    async def call_and_wait() -> None:
        await call(mqtt)
        await asyncio.get_running_loop().create_future()

    calling = asyncio.create_task(call_and_wait())
    paho = mqtt._client._client
    heard = getattr(paho, answer)

    def hear(*given: object) -> None:
        heard(*given)
        after(ticks, calling.cancel)

    setattr(paho, answer, hear)
    done, _ = await asyncio.wait([calling], timeout=WITHIN)
    calling.cancel()
    assert done, "the cancellation was lost"


async def test_a_connection_ends_at_the_first_packet_that_finds_no_room(
    fake: FakeServer, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, device: Devices
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    may_take = asyncio.Event()
    async with device() as alice:
        inbox = alice._parts.inbox
        taken = inbox.take

        async def take_later(*given: object) -> None:
            await may_take.wait()
            await taken(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(inbox, "take", take_later)
        events = alice.events()
        sent = [fake.store(TALK, str(number)) for number in range(40)]
        for event in sent:
            await fake.send("alice@phone", fake.live(event))
        await alice.typing(TALK)  # its PUBACK is sent after all of them
        may_take.set()
        assert await take(events, 40) == sent
