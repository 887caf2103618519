"""The link on a real Mosquitto."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from imqtt.broker import (
    Closed,
    ConnackRefused,
    Link,
    LinkSettings,
    Packet,
    Received,
    SubscriptionRefused,
    Will,
    connect,
)
from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS
from tests.broker.peers import WITHIN, Broker, eventually


class Open(Protocol):
    """Connects a link, which is closed at the end of the test."""

    async def __call__(self, settings: LinkSettings) -> Link: ...


@pytest.fixture
async def open_link() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_link(settings: LinkSettings) -> Link:
            link = await connect(settings)
            stack.push_async_callback(link.close)
            return link

        yield open_link


async def take(link: Link, count: int) -> list[Received]:
    """The next `count` packets, not acked."""
    received: list[Received] = []
    async with asyncio.timeout(WITHIN):
        while len(received) < count:
            received += await link.receive(count - len(received))
    return received


def numbered(count: int, start: int = 0) -> list[Packet]:
    return [Packet("t/x", str(number).encode()) for number in range(start, start + count)]


def numbers(received: list[Received]) -> list[int]:
    return [int(one.payload) for one in received]


# --- publishing and receiving


async def test_messages_arrive_as_they_were_published(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("one"))
    await link.subscribe("t/+")

    codes = await link.publish([
        Packet("t/a", b"first", 1, (("name", "value"), ("name", "again"))),
        Packet("t/b", b"", 0),
        Packet("t/ç/none", b"nobody asked"),
    ])  # fmt: skip

    assert codes == [0, 0, 0x10]
    first, second = await take(link, 2)
    assert (first.topic, first.payload, first.qos, first.dup) == ("t/a", b"first", 1, False)
    assert first.properties == (("name", "value"), ("name", "again"))
    assert (second.topic, second.payload, second.qos, second.packet_id) == ("t/b", b"", 0, None)


async def test_five_thousand_messages_are_all_answered_and_arrive_in_order(
    broker: Broker, open_link: Open
) -> None:
    publisher = await open_link(broker.settings("publisher", clean_start=True))
    receiver = await open_link(broker.settings("receiver", receive_max=100))
    await receiver.subscribe("t/x")

    published = publisher.publish(numbered(5_000))
    received: list[Received] = []
    while len(received) < 5_000:
        batch = await receiver.receive(64)
        assert len(batch) <= 64
        received += batch
        for one in batch:
            receiver.ack(one)

    assert await published == [0] * 5_000
    assert numbers(received) == list(range(5_000))


async def test_publications_given_one_after_the_other_keep_their_order(
    broker: Broker, open_link: Open
) -> None:
    link = await open_link(broker.settings("one"))
    await link.subscribe("t/x")

    futures = [link.publish(numbered(7, start=7 * part)) for part in range(20)]
    await asyncio.gather(*futures)

    assert numbers(await take(link, 140)) == list(range(140))


async def test_the_brokers_receive_maximum_is_observed(tmp_path: Path, open_link: Open) -> None:
    async with Broker(tmp_path, receive_maximum=5) as broker:
        link = await open_link(broker.settings("one"))

        assert await link.publish(numbered(500)) == [0x10] * 500

        assert "Receive maximum exceeded" not in broker.log.read_text()


async def test_a_megabyte_arrives_whole(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("one"))
    await link.subscribe("t/x")
    payload = bytes(range(256)) * 4_096

    assert await link.publish([Packet("t/x", payload)] * 3) == [0, 0, 0]

    assert [one.payload == payload for one in await take(link, 3)] == [True] * 3


async def test_the_broker_refuses_a_large_message_with_a_code_and_the_link_lives(
    tmp_path: Path, open_link: Open
) -> None:
    # With unlimited queues, Mosquitto 2.0.11 ends the connection instead.
    bounds = "max_queued_messages 1000\nmessage_size_limit 1000"
    async with Broker(tmp_path, more=bounds) as broker:
        link = await open_link(broker.settings("one"))

        assert await link.publish([Packet("t", bytes(2_000)), Packet("t", b"")]) == [0x95, 0x10]


async def test_a_message_above_the_brokers_largest_packet_gets_a_code_and_the_link_lives(
    tmp_path: Path, open_link: Open
) -> None:
    async with Broker(tmp_path, more="max_packet_size 1000") as broker:
        link = await open_link(broker.settings("one"))

        assert link.max_packet_size == 1_000
        assert await link.publish([Packet("t", bytes(2_000)), Packet("t", b"")]) == [0x95, 0x10]


async def test_an_empty_publication_is_done_at_once(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("one"))

    assert await link.publish([]) == []


async def test_a_publication_larger_than_the_sockets_buffer_is_answered_completely(
    broker: Broker, open_link: Open
) -> None:
    link = await open_link(broker.settings("one"))

    published = link.publish([Packet("t", bytes(100_000))] * 500)
    await asyncio.sleep(0)  # the one write of this iteration of the loop

    assert link._transport.get_write_buffer_size() < 1_000_000
    assert await published == [0x10] * 500


# --- acking


async def test_unacked_packets_are_redelivered_in_order(broker: Broker, open_link: Open) -> None:
    publisher = await open_link(broker.settings("publisher"))
    settings = broker.settings("receiver", session_expiry=60)
    link = await open_link(settings)
    assert not link.session_present
    await link.subscribe("t/x")
    await publisher.publish(numbered(10))
    received = await take(link, 10)
    for one in received[:4]:
        link.ack(one)
    link.ack(received[7])  # while packets before it are not acked
    await link.close()

    link = await open_link(settings)

    assert link.session_present
    again = await take(link, 6)
    assert numbers(again) == [4, 5, 6, 7, 8, 9]
    assert all(one.dup for one in again)


async def test_acks_out_of_order_leave_in_order(broker: Broker, open_link: Open) -> None:
    publisher = await open_link(broker.settings("publisher"))
    settings = broker.settings("receiver", session_expiry=60)
    link = await open_link(settings)
    await link.subscribe("t/x")
    await publisher.publish(numbered(10))
    for one in reversed(await take(link, 10)):
        link.ack(one)
    await link.close()
    await publisher.publish(numbered(1, start=10))

    link = await open_link(settings)

    assert numbers(await take(link, 1)) == [10]


async def test_an_ack_on_a_link_that_has_ended_or_of_another_link_does_nothing(
    broker: Broker, open_link: Open
) -> None:
    publisher = await open_link(broker.settings("publisher"))
    settings = broker.settings("receiver", session_expiry=60)
    before = await open_link(settings)
    await before.subscribe("t/x")
    await publisher.publish(numbered(2))
    first, _ = await take(before, 2)
    await before.close()

    before.ack(first)
    link = await open_link(settings)
    link.ack(first)
    await link.close()

    link = await open_link(settings)
    assert numbers(await take(link, 2)) == [0, 1]


async def test_reading_pauses_at_the_bound_and_resumes_below_half_of_it(
    broker: Broker, open_link: Open
) -> None:
    publisher = await open_link(broker.settings("publisher"))
    link = await open_link(broker.settings("receiver", receive_bytes=100_000))
    await link.subscribe("t/x")

    # More than a socket holds. At most one read of the socket exceeds the bound.
    await publisher.publish([Packet("t/x", bytes(10_000))] * 900)
    await eventually(lambda: not link._reading)
    held = await take(link, 11)
    while not link._reading:
        link.ack(held.pop(0))
        held += await take(link, 1) if len(held) < 2 else []

    assert len(held) < 5


async def test_a_subscription_is_granted_while_reading_is_paused(broker: Broker, open_link: Open) -> None:
    publisher = await open_link(broker.settings("publisher"))
    settings = broker.settings("receiver", session_expiry=60, receive_bytes=100_000)
    link = await open_link(settings)
    await link.subscribe("t/x")
    await link.close()
    await publisher.publish([Packet("t/x", bytes(10_000))] * 500)

    link = await open_link(settings)
    await eventually(lambda: not link._reading)
    async with asyncio.timeout(WITHIN):
        await link.subscribe("t/x")

    for _ in range(500):
        for one in await take(link, 1):
            link.ack(one)


async def test_a_message_that_arrives_while_no_receive_waits_is_returned_by_the_next(
    broker: Broker, open_link: Open
) -> None:
    link = await open_link(broker.settings("one"))
    await link.subscribe("t/x")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(link.receive(10), 0.05)

    await link.publish(numbered(3))

    assert numbers(await take(link, 3)) == [0, 1, 2]


# --- the end of a link


async def test_a_second_connection_with_the_same_client_id_ends_the_first(
    broker: Broker, open_link: Open
) -> None:
    publisher = await open_link(broker.settings("publisher"))
    settings = broker.settings("receiver", session_expiry=60)
    first = await open_link(settings)
    await first.subscribe("t/x")
    await publisher.publish(numbered(5))
    held = await take(first, 5)
    waiting = asyncio.create_task(first.receive(1))

    second = await open_link(settings)

    async with asyncio.timeout(WITHIN):
        with pytest.raises(Closed):
            await waiting
        await first.wait_closed()
    first.ack(held[0])
    assert second.session_present
    assert numbers(await take(second, 5)) == [0, 1, 2, 3, 4]


async def test_a_broker_that_is_killed_ends_everything_that_waits_on_the_link(
    broker: Broker, open_link: Open
) -> None:
    settings = broker.settings("one")
    link = await open_link(settings)
    receiving = asyncio.create_task(link.receive(1))
    await asyncio.sleep(0)

    published = link.publish([Packet("t", bytes(10_000))] * 5_000)
    await broker.kill()

    async with asyncio.timeout(WITHIN):
        with pytest.raises(Closed):
            await published
        with pytest.raises(Closed):
            await receiving
        with pytest.raises(Closed):
            await link.publish(numbered(1))
        with pytest.raises(Closed):
            await link.subscribe("t")
        assert (await link.wait_closed()).code is None

    with pytest.raises(ConnectionRefusedError):
        await connect(settings)
    await broker.start()
    link = await open_link(settings)
    assert await link.publish(numbered(1)) == [0x10]


async def test_close_ends_waiting_calls_and_may_be_called_twice(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("one"))
    receiving = asyncio.create_task(link.receive(1))
    await asyncio.sleep(0)

    await link.close()
    await link.close()

    with pytest.raises(Closed, match="closed here"):
        await receiving


async def test_a_receive_that_is_cancelled_leaves_the_link_to_the_next(
    broker: Broker, open_link: Open
) -> None:
    link = await open_link(broker.settings("one"))
    await link.subscribe("t/x")
    receiving = asyncio.create_task(link.receive(1))
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait((receiving,))

    await link.publish(numbered(1))

    assert numbers(await take(link, 1)) == [0]


async def test_a_second_concurrent_receive_raises(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("one"))
    receiving = asyncio.create_task(link.receive(1))
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError):
        await link.receive(1)

    receiving.cancel()


async def test_the_will_is_published_when_the_link_is_cut_and_not_when_it_is_closed(
    broker: Broker, open_link: Open
) -> None:
    witness = await open_link(broker.settings("witness"))
    await witness.subscribe("wills/+")
    for name in ("closed", "cut"):
        will = Will(f"wills/{name}", b"gone")
        link = await open_link(broker.settings(name, will=will))
        if name == "cut":
            link.abort()
        else:
            await link.close()

    (will_received,) = await take(witness, 1)

    assert (will_received.topic, will_received.payload) == ("wills/cut", b"gone")


# --- refusals


async def test_a_wrong_password_is_refused_for_good(tmp_path: Path) -> None:
    async with Broker(tmp_path, more="allow_anonymous false") as broker:
        with pytest.raises(ConnackRefused) as refused:
            await connect(broker.settings("one", username="alice", password="wrong"))

        assert not refused.value.retryable


async def test_a_filter_that_the_broker_does_not_accept_is_refused(broker: Broker, open_link: Open) -> None:
    # Mosquitto ends the connection for most faults of a filter, and for topics of 200 levels or more. In
    # either case, the call does not wait.
    link = await open_link(broker.settings("one"))

    with pytest.raises((SubscriptionRefused, Closed)):
        await link.subscribe("a/" * 300 + "x")


async def test_the_broker_assigns_a_client_id_if_none_is_given(broker: Broker, open_link: Open) -> None:
    link = await open_link(broker.settings("", clean_start=True))

    assert link.client_id


async def test_connecting_to_a_port_without_a_listener_raises(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(Broker(tmp_path).settings("one"))


async def acked(broker: Broker, open_link: Open, count: int, *, ack_delay: float) -> Link:
    """A link that has received and acked this many packets."""
    receiver = await open_link(broker.settings("patient", ack_delay=ack_delay))
    sender = await open_link(broker.settings("sender"))
    await receiver.subscribe("t/#")
    await sender.publish(numbered(count))
    for received in await take(receiver, count):
        receiver.ack(received)
    return receiver


async def test_a_few_pubacks_wait_for_others_no_longer_than_ack_delay(
    broker: Broker, open_link: Open
) -> None:
    receiver = await acked(broker, open_link, 7, ack_delay=0.1)
    await asyncio.sleep(0)
    assert receiver._connection.owing == 7

    await eventually(lambda: not receiver._connection.owing)


async def test_many_pubacks_do_not_wait(broker: Broker, open_link: Open) -> None:
    receiver = await acked(broker, open_link, 8, ack_delay=3_600.0)

    await eventually(lambda: not receiver._connection.owing)


async def test_packets_are_handed_over_as_they_are_read(broker: Broker, open_link: Open) -> None:
    receiver = await open_link(broker.settings("receiver"))
    sender = await open_link(broker.settings("sender"))
    await receiver.subscribe("t/#")
    await sender.publish(numbered(1))
    await eventually(lambda: receiver._inbox)
    handed: list[Received] = []

    receiver.hand_to(handed.extend)
    assert [int(received.payload) for received in handed] == [0]
    await sender.publish(numbered(3)[1:])
    await eventually(lambda: len(handed) == 3)
    receiver.hand_to(None)
    await sender.publish(numbered(4)[3:])

    assert [int(received.payload) for received in handed] == [0, 1, 2]
    assert [int(received.payload) for received in await receiver.receive(10)] == [3]


async def test_packets_handed_over_count_until_they_are_acked_at_any_qos(
    broker: Broker, open_link: Open
) -> None:
    receiver = await open_link(broker.settings("receiver", receive_max=10))
    sender = await open_link(broker.settings("sender"))
    await receiver.subscribe("t/#")
    handed: list[Received] = []
    receiver.hand_to(handed.extend)

    for packet in numbered(200):  # a single read takes a third of them at most
        await sender.publish([packet._replace(payload=packet.payload.ljust(4_096), qos=0)])
    await eventually(lambda: not receiver._reading)
    assert len(handed) < 200
    acked = 0
    while acked < 200:
        await eventually(lambda: len(handed) > acked)  # noqa: B023
        receiver.ack(handed[acked])
        acked += 1

    assert [int(received.payload) for received in handed] == list(range(200))


async def test_the_answer_to_a_send_is_told_at_once_and_never_after_the_end(
    broker: Broker, open_link: Open
) -> None:
    link = await open_link(broker.settings("sender"))
    answers: list[list[int]] = []

    link.send(numbered(2), answers.append)
    await eventually(lambda: answers)
    assert answers == [[NO_MATCHING_SUBSCRIBERS] * 2]
    link.send(numbered(1), answers.append)
    link.abort()
    await link.wait_closed()

    assert len(answers) == 1
