"""The initial inputs of the corpus: the golden vectors, and packets of a broker."""

import json
from pathlib import Path
from typing import Any, Final

import mqtt5

from tests.protocol.vectors import generate
from tests.verification.fuzz.stream import AT_ONCE, BACKWARDS, BOUNDED, OPENED

VECTORS: Final = Path(generate.__file__).parent

CONTENTS: Final = (
    b"null", b"false", b'"\\u00e9 \\ud83d\\ude42 \\n\\u0000"', b"[1,-2.5,true,null]",
    b'{"a":{"b":[{}]},"\\u00e9":1e400}', b'{"a":1,"a":2}', b"-0.0", b"1e22", b"0.1e-400",
    b"[9223372036854775807,-9223372036854775808,9223372036854775808,-9223372036854775809]",
    b"[1.7976931348623157e308,5e-324,123456789012345678901234567890.5]", b"[" * 32 + b"]" * 32,
    b"[" * 33 + b"]" * 33, b'"\\ud800"', b'{"\\udc00":"\xed\xa0\x80"}', b"NaN", b" [ 1 , 2 ] \n", b"[01]",
)  # fmt: skip

NAMES: Final = (
    b"imqtt/alice@phone/up/0", b"imqtt/alice@phone/up/15", b"imqtt/a@b/up/x", b"imqtt/@phone/up/0",
    b"imqtt/al\xc3\xadce@phone/up/0", b"imqtt/" + b"a" * 60 + b"@abc/up/0", b"imqtt/alice@pho+ne/up/0",
    b"imqtt/alice/phone/up/0", b"imqtt/" + b"a" * 61 + b"@abc/up/0",
    b"d:alice:bob", b"d:bob:alice", b"d:alice:alice", b"u:alice", b"u:bob", b"g:team", b"d:alice", b"x:alice",
    b"d:alice:b\xc3\xb6b", b"u:\xff", b"d:alice:" + b"z" * 62, b"d:alice:" + b"z" * 63, b"d:a_:alice", b"",
)  # fmt: skip


def _load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def _payloads(entries: list[dict[str, Any]]) -> list[bytes]:
    found: list[bytes] = []
    for entry in entries:
        found += [text.encode() for text in (entry["json"], *entry.get("also_json", ()))]
        found += [bytes.fromhex(binary) for binary in (entry["protobuf"], *entry.get("also_protobuf", ()))]
    return found


def packets() -> list[bytes]:
    """Each kind of packet that a broker sends, and some invalid ones."""
    publish, qos = mqtt5.PublishPacket, mqtt5.QoS
    code = mqtt5.DisconnectReasonCode
    return [
        publish("t/1", b"hello", qos=qos.AT_LEAST_ONCE, packet_id=1).write(),
        publish("t/2", b"", qos=qos.AT_LEAST_ONCE, packet_id=2, duplicate=True).write(),
        publish("t/é", bytes(130), qos=qos.AT_MOST_ONCE).write(),
        publish(
            "t", b"x", qos=qos.AT_LEAST_ONCE, packet_id=3, user_properties=[("a", "b"), ("", "é")]
        ).write(),
        publish(
            "t", b"x", qos=qos.AT_LEAST_ONCE, packet_id=65_535, content_type="x/y",
            correlation_data=b"\0\xff", message_expiry_interval=7, subscription_ids=[1, 268_435_455],
            response_topic="r", payload_format_indicator=1,
        ).write(),
        publish("t", b"x", topic_alias=1).write(),
        publish("t", b"x", qos=qos.EXACTLY_ONCE, packet_id=9).write(),
        b"\x40\x02\x00\x02", b"\x40\x03\x00\x03\x10", b"\x40\x03\x00\x04\x95", b"\x40\x04\x00\x05\x00\x00",
        mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write(),
        b"\x90\x04\x00\x01\x00\x87", mqtt5.PingRespPacket().write(), b"\xe0\x00", b"\xe0\x01\x8e",
        mqtt5.DisconnectPacket(reason_code=code.SESSION_TAKEN_OVER, reason_str="somebody else").write(),
        mqtt5.ConnAckPacket().write(),
        mqtt5.ConnAckPacket(
            session_present=True, assigned_client_id="drawn", server_keep_alive=7, receive_max=2,
            max_packet_size=500, max_qos=qos.AT_LEAST_ONCE, user_properties=[("a", "b")],
        ).write(),
        mqtt5.ConnAckPacket(
            reason_code=mqtt5.ConnAckReasonCode.USE_ANOTHER_SERVER, reason_str="go", server_reference="there"
        ).write(),
        b"\x20\x02\x00\x01", b"\x20\x03\x00\xfe\x00", b"\x20\x05\x00\x00\x02\x24\x00",
        b"\x30\xff\xff\xff\xff\xff", b"\x00\x00", b"\xf0\x00",
        b"\x32\x06\x00\x01\xff\x00\x07\x00", b"\x36\x06\x00\x01t\x00\x01\x00",
    ]  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """The initial inputs of this target."""
    if target == "commands":
        rejected = _load("rejected.json")["rejected"]
        short = [payload for payload in map(generate.payload_of, rejected) if len(payload) < 1_000]
        return _payloads(_load("commands.json")) + short
    if target == "frames":
        return _payloads(_load("frames.json"))
    if target == "content":
        return list(CONTENTS)
    if target == "names":
        return list(NAMES)
    every = packets()
    opened = bytes((OPENED, 1, 2))
    return [
        *(opened + packet for packet in every),
        *(bytes((0, 0, 1)) + packet for packet in every),
        bytes((OPENED | AT_ONCE | BACKWARDS, 5, 3)) + b"".join(every[:5] + every[7:13]) + every[0],
        bytes((OPENED | BOUNDED, 7, 3)) + b"".join(every[:5]),
        bytes((OPENED | BACKWARDS, 0, 0)) + b"".join([*every[:2], every[3], every[15], every[0]]),
    ]
