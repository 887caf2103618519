"""The permissions that the broker's configuration gives to a device."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiomqtt
import pytest

from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from tests.services import WITHIN


def device(broker: Mosquitto, username: str, password: str, identifier: str = "any") -> aiomqtt.Client:
    return aiomqtt.Client(
        broker.host, broker.port, username=username, password=password, identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5, timeout=WITHIN,
    )  # fmt: skip


@pytest.fixture
async def server(broker: Mosquitto) -> AsyncIterator[aiomqtt.Client]:
    """The server's account on the internal listener, subscribed to the commands of all devices."""
    client = aiomqtt.Client(
        INTERNAL_HOST, broker.internal_port, username=SERVER_ACCOUNT, password=broker.server_password,
        identifier="imqtt-server-0", protocol=aiomqtt.ProtocolVersion.V5, timeout=WITHIN,
    )  # fmt: skip
    async with client:
        await client.subscribe("imqtt/+/up/0", qos=1)
        yield client


async def topics_up_to(client: aiomqtt.Client, end: str) -> list[str]:
    """The topics that a client receives, up to the topic `end`."""
    topics: list[str] = []
    async with asyncio.timeout(WITHIN):
        async for message in client.messages:
            topics.append(message.topic.value)
            if topics[-1] == end:
                break
    return topics


async def test_a_device_can_publish_only_to_its_own_topics(broker: Mosquitto, server: aiomqtt.Client) -> None:
    passwords = broker.passwords.add_all(["alice@phone", "bob@phone"])
    async with device(broker, "alice@phone", passwords["alice@phone"]) as alice:
        for topic in ("imqtt/bob@phone/up/0", "imqtt/alice@tablet/up/0", "imqtt/alice@phone/up/0"):
            with contextlib.suppress(aiomqtt.MqttError):
                await alice.publish(topic, "{}", qos=1)
    assert await topics_up_to(server, "imqtt/alice@phone/up/0") == ["imqtt/alice@phone/up/0"]


async def test_a_device_receives_only_packets_on_its_own_topic(
    broker: Mosquitto, server: aiomqtt.Client
) -> None:
    password = broker.passwords.add("alice@phone")
    async with device(broker, "alice@phone", password) as alice:
        await alice.subscribe("#", qos=1)
        await alice.subscribe("imqtt/bob@phone/down", qos=1)
        for topic in ("imqtt/bob@phone/down", "imqtt/alice@phone/up/0", "imqtt/alice@phone/down"):
            await server.publish(topic, "{}", qos=1)
        assert await topics_up_to(alice, "imqtt/alice@phone/down") == ["imqtt/alice@phone/down"]


async def test_a_device_cannot_take_over_the_servers_session(
    broker: Mosquitto, server: aiomqtt.Client
) -> None:
    password = broker.passwords.add("alice@phone")
    async with device(broker, "alice@phone", password, identifier="imqtt-server-0") as alice:
        await alice.publish("imqtt/alice@phone/up/0", "{}", qos=1)
    assert await topics_up_to(server, "imqtt/alice@phone/up/0") == ["imqtt/alice@phone/up/0"]


async def test_connecting_without_a_credential_is_refused(broker: Mosquitto) -> None:
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori[sz]ed"):
        async with aiomqtt.Client(broker.host, broker.port):
            pass


async def test_a_client_that_retains_a_message_is_disconnected(broker: Mosquitto) -> None:
    password = broker.passwords.add("alice@phone")
    async with device(broker, "alice@phone", password) as alice:
        publishing = asyncio.create_task(alice.publish("imqtt/alice@phone/up/0", "{}", qos=1, retain=True))
        with pytest.raises(aiomqtt.MqttError):
            await topics_up_to(alice, "nothing")
        publishing.cancel()
