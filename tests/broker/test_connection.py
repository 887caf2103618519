"""The MQTT connection as a state machine, without a socket."""

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.broker.connection import Connected, Connection, Ended, Event, Subscribed
from imqtt.broker.errors import Closed, ConnackRefused
from imqtt.broker.publications import Publication
from imqtt.broker.values import LinkSettings, Packet, Received

ROOM = 1 << 20


def settings(**more: object) -> LinkSettings:
    return LinkSettings("host", 1883, "one", **{"keep_alive": 10} | more)  # type: ignore[arg-type] # by name


def opened(**connack: object) -> Connection:
    connection = Connection(settings(), 0.0)
    connection.send(0.0, ROOM)
    connection.receive(mqtt5.ConnAckPacket(**connack).write(), 0.0)  # type: ignore[arg-type] # by name
    return connection


def sent(connection: Connection) -> list[mqtt5.Packet]:
    """All packets that the connection sends now."""
    found: list[mqtt5.Packet] = []
    while connection.pending or connection.owing:
        data, _ = connection.send(0.0, ROOM)
        view = memoryview(data)
        while view:
            packet, size = mqtt5.read(view)
            found.append(packet)
            view = view[size:]
    return found


def puback(packet_id: int, code: int = 0) -> bytes:
    return b"\x40\x03" + packet_id.to_bytes(2, "big") + bytes((code,))


def publish(number: int, qos: int = 1) -> bytes:
    return mqtt5.PublishPacket(
        f"t/{number}", bytes(number), qos=mqtt5.QoS(qos), packet_id=number if qos else None
    ).write()


def outcome(event: Event) -> object:
    """An event without its receipt, which differs between connections."""
    if isinstance(event, Received):
        return event._replace(receipt=0)
    if isinstance(event, Publication):
        return tuple(event.codes)
    if isinstance(event, Ended):
        return type(event.error), event.error.code
    return event


# --- the stream


def whole_conversation() -> bytes:
    return b"".join([
        mqtt5.ConnAckPacket(session_present=True, receive_max=50).write(),
        mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write(),
        *(publish(number, qos=number % 2) for number in range(1, 300, 37)),
        puback(2), puback(3, 0x95), puback(4, 0x10),
        mqtt5.PingRespPacket().write(),
        publish(9),
    ])  # fmt: skip


ENDINGS = [
    b"",
    b"\xe0\x00" + publish(1),
    b"\xe0\x01\x8e",
    b"\x00\x00",
    b"\x30\xff\xff\xff\xff\xff",
    b"\x36\x06\x00\x01t\x00\x01\x00",
    b"\x32\x05\x00\x90t\x00\x07" + publish(1),
    b"\x32\x06\x00\x01\xff\x00\x07\x00" + publish(1),
    mqtt5.PublishPacket("t", b"", qos=mqtt5.QoS.EXACTLY_ONCE, packet_id=5).write(),
    b"\x20\x03\x00\x00\x00",
]


def events_of(stream: bytes, cuts: list[int]) -> list[object]:
    connection = Connection(settings(), 0.0)
    connection.subscribe(["t/#"])
    connection.publish([Packet(f"u/{number}", b"") for number in range(3)])
    connection.send(0.0, ROOM)
    events: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += connection.receive(stream[start:end], 0.0)
        connection.send(0.0, ROOM)
    return [outcome(event) for event in events]


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.data())
def test_any_fragmentation_of_the_stream_gives_the_same_events(ending: bytes, data: st.DataObject) -> None:
    # CONNACK comes separately: before it is read, there are no publishes to answer.
    connack = len(mqtt5.ConnAckPacket(session_present=True, receive_max=50).write())
    stream = whole_conversation() + ending
    places = data.draw(st.sets(st.integers(connack + 1, len(stream) - 1), max_size=12))

    assert events_of(stream, [connack, *sorted(places)]) == events_of(stream, [connack])


def test_every_packet_of_a_conversation_gives_its_event() -> None:
    events = events_of(whole_conversation() + ENDINGS[2], list(range(1, len(whole_conversation()))))

    assert events[0] == Connected(True, "one", None)
    assert events[1] == Subscribed(1, b"\x01")
    assert sum(isinstance(event, Received) for event in events) == 10
    assert (0, 0x95, 0x10) in events
    assert events[-1] == (Closed, 0x8E)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise(rubbish: bytes, connected: bool) -> None:
    connection = opened() if connected else Connection(settings(), 0.0)

    connection.receive(rubbish, 0.0)
    connection.send(0.0, ROOM)


@pytest.mark.parametrize("ending", ENDINGS[3:])
def test_a_protocol_error_is_answered_with_a_disconnect_with_its_code(ending: bytes) -> None:
    connection = opened()

    events = connection.receive(ending, 0.0)

    assert isinstance(events[-1], Ended)
    goodbye = sent(connection)[-1]
    assert isinstance(goodbye, mqtt5.DisconnectPacket)
    assert goodbye.reason_code == events[-1].error.code


# --- connecting


def test_connect_carries_the_settings() -> None:
    connection = Connection(
        settings(username="user", password="secret", session_expiry=60, receive_max=7), 0.0
    )

    (connect,) = sent(connection)

    assert isinstance(connect, mqtt5.ConnectPacket)
    assert (connect.username, connect.password, connect.session_expiry_interval) == ("user", b"secret", 60)
    assert (connect.receive_max, connect.keep_alive, connect.clean_start) == (7, 10, False)


@pytest.mark.parametrize(("code", "retryable"), [(0x87, False), (0x86, False), (0x88, True), (0x97, True)])
def test_a_refusal_carries_its_code_and_whether_to_try_again(code: int, retryable: bool) -> None:
    connection = Connection(settings(), 0.0)

    (ended,) = connection.receive(
        mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode(code), reason_str="because").write(), 0.0
    )

    assert isinstance(ended, Ended)
    assert isinstance(ended.error, ConnackRefused)
    assert (ended.error.code, ended.error.reason, ended.error.retryable) == (code, "because", retryable)


def test_an_unknown_reason_code_is_still_a_refusal() -> None:
    (ended,) = Connection(settings(), 0.0).receive(b"\x20\x03\x00\xfe\x00", 0.0)

    assert isinstance(ended, Ended)
    assert "0xFE" in str(ended.error)


def test_the_password_is_not_in_the_repr() -> None:
    assert "secret" not in repr(settings(password="secret"))


# --- publishing


def test_no_more_packets_are_in_flight_than_the_broker_allows_and_the_rest_follow_in_order() -> None:
    connection = opened(receive_max=3)
    publication = connection.publish([Packet(f"t/{number}", b"") for number in range(8)])
    topics: list[str] = []
    for _ in range(8):
        for packet in sent(connection):
            assert isinstance(packet, mqtt5.PublishPacket)
            topics.append(packet.topic)
            last = packet.packet_id or 0
        assert len(topics) <= 3 + 8 - publication.unanswered
        connection.receive(puback(last - min(3, publication.unanswered) + 1), 0.0)

    assert topics == [f"t/{number}" for number in range(8)]
    assert publication.unanswered == 0


def test_a_publication_is_done_once_all_its_messages_are_answered_in_whatever_order() -> None:
    connection = opened()
    first = connection.publish([Packet("t", b""), Packet("t", b"")])
    second = connection.publish([Packet("t", b"")])
    sent(connection)

    assert connection.receive(puback(3, 0x10), 0.0) == [second]
    assert connection.receive(puback(2, 0x87), 0.0) == []
    assert connection.receive(puback(1), 0.0) == [first]
    assert (first.codes, second.codes) == ([0, 0x87], [0x10])


def test_packet_ids_wrap_around_and_skip_those_in_use() -> None:
    connection = opened()
    connection.publish([Packet("t", b"")])
    sent(connection)  # packet id 1 stays in use

    used: list[int] = []
    for _ in range(140):
        publication = connection.publish([Packet("t", b"")] * 500)
        ids = [packet.packet_id for packet in sent(connection) if isinstance(packet, mqtt5.PublishPacket)]
        for packet_id in ids:
            connection.receive(puback(packet_id or 0), 0.0)
        used += [packet_id or 0 for packet_id in ids]
        assert publication.unanswered == 0

    assert used == [number % 65_534 + 2 for number in range(70_000)]


def test_a_message_above_the_brokers_largest_packet_gets_a_code_and_the_others_leave() -> None:
    connection = opened(max_packet_size=1_000)
    publication = connection.publish([Packet("t", bytes(size)) for size in (10, 2_000, 20)])

    assert len(sent(connection)) == 2
    connection.receive(puback(1), 0.0)
    connection.receive(puback(3), 0.0)

    assert publication.unanswered == 0
    assert publication.codes == [0, 0x95, 0]


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "a\ud800", "x" * 70_000, "a\x07", "a\uffff"])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_topic_that_mqtt_does_not_allow_gets_a_code_and_the_others_leave(topic: str, qos: int) -> None:
    connection = opened()
    publication = connection.publish([Packet(topic, b"", qos), Packet("naïve 👍", b"", 0)])

    assert len(sent(connection)) == 1
    assert publication.codes == [0x90, 0]
    assert publication.unanswered == 0


def test_a_user_property_that_mqtt_does_not_allow_gets_a_code() -> None:
    connection = opened()
    publication = connection.publish([Packet("t", b"", 1, (("a", "b\0"),))])

    assert sent(connection) == []
    assert publication.codes == [0x90]


def test_qos_0_is_done_when_written_and_keeps_its_place() -> None:
    connection = opened(receive_max=1)
    publication = connection.publish([Packet("first", b""), Packet("second", b""), Packet("third", b"", 0)])

    assert len(sent(connection)) == 1
    connection.receive(puback(1), 0.0)
    assert len(sent(connection)) == 1
    assert connection.receive(puback(2), 0.0) == []
    data, events = connection.send(0.0, ROOM)

    assert b"third" in data
    assert events == [publication]


def test_packets_are_encoded_only_as_far_as_there_is_room() -> None:
    connection = opened()
    connection.publish([Packet("t", bytes(1_000))] * 100)

    data, _ = connection.send(0.0, 10_000)

    assert 10_000 <= len(data) < 12_000
    assert connection.pending


# --- acking


def test_acks_leave_in_the_order_of_receipt() -> None:
    connection = opened()
    received = [
        event
        for event in connection.receive(publish(5) + publish(3) + publish(9, 0) + publish(4), 0.0)
        if isinstance(event, Received)
    ]

    connection.ack(received[3])
    connection.ack(received[2])
    connection.ack(received[1])
    assert sent(connection) == []
    connection.ack(received[0])

    acks = sent(connection)
    assert [ack.packet_id for ack in acks if isinstance(ack, mqtt5.PubAckPacket)] == [5, 3, 4]


def test_the_load_counts_messages_and_bytes_until_they_are_acked() -> None:
    connection = Connection(settings(receive_max=10, receive_bytes=1_000), 0.0)
    connection.receive(mqtt5.ConnAckPacket().write(), 0.0)
    (small,) = connection.receive(publish(1), 0.0)
    assert isinstance(small, Received)
    assert connection.load == 0.1
    (unconfirmed,) = connection.receive(publish(2, qos=0), 0.0)
    assert isinstance(unconfirmed, Received)
    assert connection.load == 0.2
    (large,) = connection.receive(publish(500), 0.0)
    assert isinstance(large, Received)
    assert connection.load == 0.503

    for received in (small, unconfirmed, large):
        connection.ack(received)

    assert connection.load == 0.0
    assert connection.owing == 2  # a packet of QoS 0 has no PUBACK


# --- keeping alive


def test_an_idle_link_pings_and_ends_if_the_peer_stays_silent() -> None:
    connection = opened()
    assert connection.deadline == 10.0
    assert connection.tick(9.9) == []
    assert sent(connection) == []

    assert connection.tick(10.0) == []
    assert isinstance(sent(connection)[0], mqtt5.PingReqPacket)
    assert connection.deadline == 15.0

    (ended,) = connection.tick(15.0)
    assert isinstance(ended, Ended)
    assert ended.error.code is None
    assert connection.deadline is None


def test_an_answer_to_the_ping_keeps_the_link() -> None:
    connection = opened()
    connection.tick(10.0)
    connection.receive(mqtt5.PingRespPacket().write(), 10.1)

    assert connection.tick(15.0) == []
    assert connection.deadline == 20.0


def test_a_link_that_only_receives_pings_too() -> None:
    connection = opened()
    sent(connection)
    for second in range(1, 10):
        connection.receive(publish(second), float(second))

    connection.tick(10.0)

    assert isinstance(sent(connection)[0], mqtt5.PingReqPacket)


def test_a_link_does_not_time_out_while_reading_is_paused() -> None:
    connection = opened()
    connection.reading = False

    assert connection.tick(60.0) == []
    connection.reading = True
    assert connection.tick(61.0) == []


def test_the_brokers_keep_alive_overrides_the_links_own() -> None:
    assert opened(server_keep_alive=3).deadline == 3.0


def test_without_keep_alive_there_is_no_deadline() -> None:
    connection = opened(server_keep_alive=0)

    assert connection.deadline is None
    assert connection.tick(1e9) == []
