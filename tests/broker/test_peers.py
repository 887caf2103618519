"""Peers that are not brokers, or stop behaving like one: the link ends with a reason, and no call hangs."""

import asyncio

import mqtt5
import pytest

from imqtt.broker import Closed, ConnackRefused, Packet, Received, connect
from tests.broker.peers import WITHIN, Peer, eventually, packet

CONNACK = mqtt5.ConnAckPacket().write()


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await packet(reader)
    writer.write(CONNACK)


async def test_a_peer_that_never_answers_connect_times_out() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)

    async with Peer(talk) as peer:
        with pytest.raises(TimeoutError):
            await connect(peer.settings(timeout=0.2))


async def test_connecting_to_a_peer_that_hangs_up_raises_closed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.close()

    async with Peer(talk) as peer:
        with pytest.raises(Closed, match="instead of answering"):
            await connect(peer.settings())


async def test_connecting_to_a_peer_that_does_not_speak_mqtt_raises_closed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200))

    async with Peer(talk) as peer:
        with pytest.raises(Closed, match="CONNACK"):
            await connect(peer.settings())


async def test_a_broker_of_mqtt_3_refuses_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x02\x00\x01")

    async with Peer(talk) as peer:
        with pytest.raises(ConnackRefused) as refused:
            await connect(peer.settings())

        assert refused.value.code == 1


async def test_a_link_to_a_silent_peer_ends_after_one_and_a_half_keep_alives() -> None:
    async with Peer(accept) as peer:
        link = await connect(peer.settings(keep_alive=1))
        began = asyncio.get_running_loop().time()
        published = link.publish([Packet("t", b"")])

        async with asyncio.timeout(WITHIN):
            closed = await link.wait_closed()
            with pytest.raises(Closed):
                await published

        assert "silent" in closed.reason
        assert asyncio.get_running_loop().time() - began > 1.4


async def test_pings_keep_an_idle_link() -> None:
    pings = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        await accept(reader, writer)
        while await packet(reader) == b"\xc0\x00":
            pings += 1
            writer.write(b"\xd0\x00")
        writer.close()  # like a broker after DISCONNECT; the link waits for it

    async with Peer(talk) as peer:
        link = await connect(peer.settings(keep_alive=1))

        await eventually(lambda: pings >= 3)

        assert link.closed is None
        await link.close()


async def test_malformed_bytes_end_the_link_with_a_disconnect_with_the_reason() -> None:
    received_packets: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        writer.write(b"\x32\x03\xff\xff\xff")
        received_packets.append(await packet(reader))

    async with Peer(talk) as peer:
        link = await connect(peer.settings())

        with pytest.raises(Closed) as closed:
            await link.receive(1)

        assert closed.value.code == 0x81
        await eventually(lambda: received_packets == [b"\xe0\x01\x81"])


async def test_a_disconnect_is_read_with_its_reason() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        writer.write(
            mqtt5.DisconnectPacket(
                reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER, reason_str="somebody else"
            ).write()
        )

    async with Peer(talk) as peer:
        link = await connect(peer.settings())

        closed = await link.wait_closed()

        assert (closed.code, closed.reason) == (0x8E, "somebody else")


async def test_a_peer_that_ignores_receive_maximum_is_not_read_further() -> None:
    sent = 0
    acks: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await accept(reader, writer)
        for number in range(20_000):
            packet_id = number % 65_535 + 1
            writer.write(
                mqtt5.PublishPacket(
                    "t", bytes(1_000), qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=packet_id
                ).write()
            )
            sent += 1
            await writer.drain()
        while (ack := await packet(reader))[0] == 0x40:
            acks.append(ack)
        writer.close()

    async with Peer(talk) as peer:
        link = await connect(peer.settings(receive_max=50, keep_alive=0))
        await eventually(lambda: not link._reading)
        held: list[Received] = []
        while len(held) <= 50:
            held += await link.receive(1_000)
        assert len(held) < 600  # the bound, and one read of the socket
        assert sent < 20_000

        received = len(held)
        while received < 20_000:
            for one in held:
                link.ack(one)
            held = await link.receive(1_000)
            received += len(held)
        for one in held:
            link.ack(one)

        await eventually(lambda: len(acks) == 20_000)
        assert acks == [b"\x40\x02" + (number % 65_535 + 1).to_bytes(2, "big") for number in range(20_000)]
        await link.close()


async def test_a_peer_that_does_not_read_holds_back_publications() -> None:
    async with Peer(accept) as peer:
        link = await connect(peer.settings(keep_alive=0))
        published = link.publish([Packet("t", bytes(100_000))] * 1_000)

        await eventually(lambda: not link._writable)

        assert link._transport.get_write_buffer_size() < 1_000_000
        link.abort()
        with pytest.raises(Closed):
            await published


async def test_close_gives_up_on_a_peer_that_does_not_read() -> None:
    async with Peer(accept) as peer:
        link = await connect(peer.settings(timeout=2.0, keep_alive=0))
        link.publish([Packet("t", bytes(100_000))] * 1_000)
        await eventually(lambda: not link._writable)

        async with asyncio.timeout(WITHIN):
            await link.close()
            await link.wait_closed()
