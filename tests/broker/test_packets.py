"""Packets that mqtt5 writes are parsed correctly, and no bytes do more than end the stream."""

import contextlib

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.broker import packets
from imqtt.broker.packets import Cut, Cutter, ProtocolError

text = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=40)
pairs = st.lists(st.tuples(text, text), max_size=3)


def only(raw: bytes) -> tuple[bytes, Cut]:
    data, cuts = Cutter(None).cut(raw)
    assert len(cuts) == 1
    return data, cuts[0]


@given(
    topic=text,
    payload=st.binary(max_size=400),
    qos=st.integers(0, 1),
    packet_id=st.integers(1, 65_535),
    dup=st.booleans(),
    user=pairs,
    content_type=st.none() | text,
    correlation=st.none() | st.binary(max_size=20),
    expiry=st.none() | st.integers(0, 2**32 - 1),
    subscriptions=st.lists(st.integers(1, 268_435_455), max_size=2),
)
def test_a_publish_is_read_as_it_was_written(
    topic: str, payload: bytes, qos: int, packet_id: int, dup: bool, user: list[tuple[str, str]],
    content_type: str | None, correlation: bytes | None, expiry: int | None, subscriptions: list[int],
) -> None:  # fmt: skip
    id_if_any = packet_id if qos else None
    written = mqtt5.PublishPacket(
        topic, payload, qos=mqtt5.QoS(qos), packet_id=id_if_any, duplicate=dup, user_properties=user,
        content_type=content_type, correlation_data=correlation, message_expiry_interval=expiry,
        subscription_ids=subscriptions,
    ).write()  # fmt: skip

    assert packets.read_publish(*only(written)) == (topic, payload, id_if_any, dup, tuple(user), qos)


@pytest.mark.parametrize("size", [0, 100, 127, 128, 16_000, 16_383, 16_384, 2_097_151, 2_097_152, 3_000_000])
def test_a_packet_of_any_size_is_cut_where_it_ends(size: int) -> None:
    raw = mqtt5.PublishPacket("t", bytes(size)).write()
    following = mqtt5.PingRespPacket().write()

    _, cuts = Cutter(None).cut(raw + following)

    assert [end for _, _, end in cuts] == [len(raw), len(raw) + 2]


@given(code=st.integers(0, 255), packet_id=st.integers(1, 65_535))
def test_every_reason_code_of_a_puback_is_a_number(code: int, packet_id: int) -> None:
    raw = b"\x40\x03" + packet_id.to_bytes(2, "big") + bytes((code,))

    assert packets.read_puback(*only(raw)) == (packet_id, code)


def test_a_puback_without_a_code_means_success() -> None:
    assert packets.read_puback(*only(b"\x40\x02\x01\x02")) == (0x0102, 0)


def test_a_connack_is_read_with_the_brokers_bounds() -> None:
    raw = mqtt5.ConnAckPacket(
        session_present=True, assigned_client_id="drawn", server_keep_alive=7, receive_max=20,
        max_packet_size=5_000, max_qos=mqtt5.QoS.AT_LEAST_ONCE, user_properties=[("a", "b")],
    ).write()  # fmt: skip

    answer = packets.read_connack(*only(raw))

    assert answer == (True, 0, "", "", "drawn", 7, 20, 5_000, 1)


def test_a_connack_without_bounds_has_those_of_the_specification() -> None:
    answer = packets.read_connack(*only(mqtt5.ConnAckPacket().write()))

    assert answer == (False, 0, "", "", "", None, 65_535, None, 2)


def test_a_refusal_of_a_broker_of_mqtt_3_is_read() -> None:
    assert packets.read_connack(*only(b"\x20\x02\x00\x01")).code == 1


def test_a_disconnect_is_read_with_its_reason() -> None:
    raw = mqtt5.DisconnectPacket(
        reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER, reason_str="somebody else"
    ).write()

    assert packets.read_disconnect(*only(raw)) == (0x8E, "somebody else")
    assert packets.read_disconnect(*only(b"\xe0\x00")) == (0, "")
    assert packets.read_disconnect(*only(b"\xe0\x01\xfe")) == (0xFE, "")


READERS = {
    packets.CONNACK: packets.read_connack,
    packets.PUBLISH: packets.read_publish,
    packets.PUBACK: packets.read_puback,
    packets.SUBACK: packets.read_suback,
    packets.DISCONNECT: packets.read_disconnect,
}


@given(kind=st.sampled_from(sorted(READERS)), flags=st.integers(0, 15), body=st.binary(max_size=60))
def test_malformed_packets_raise_only_the_expected_errors(kind: int, flags: int, body: bytes) -> None:
    raw = bytes((kind | flags, len(body))) + body
    reader = READERS[kind]

    with contextlib.suppress(ProtocolError, IndexError, UnicodeDecodeError):
        reader(*only(raw))


def test_a_length_of_more_than_four_bytes_ends_the_stream_after_the_complete_packets() -> None:
    cutter = Cutter(None)

    _, cuts = cutter.cut(b"\xd0\x00\x30\xff\xff\xff\xff\xff")

    assert len(cuts) == 1
    assert cutter.error is not None


def test_a_packet_larger_than_allowed_ends_the_stream_at_its_first_bytes() -> None:
    cutter = Cutter(1_000)

    cutter.cut(b"\x30\xff\xff\xff\x7f")

    assert cutter.error is not None
    assert cutter.error.code == 0x95
