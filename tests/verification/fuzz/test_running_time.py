"""Time is bounded: twice the input takes about twice the steps.

Steps are executed lines of imqtt, so a busy machine has no influence. Work in C within one line is not
counted; it is bounded by sizes and by the fuzzer's `-timeout`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mqtt5
import pytest

import imqtt
from imqtt.broker.connection import Connection
from imqtt.broker.values import LinkSettings, Received
from imqtt.errors import ImqttError
from imqtt.model import Content, Cursor, Event, Id, Page, Send, Slice, Sync
from imqtt.protocol import (
    Bounds,
    Format,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    identify,
    join,
)
from tests.verification.fuzz.stream import CONNACK

ROOM = str(Path(imqtt.__file__).parent)
WIDE = Bounds(content=1 << 20, command=1 << 22, cursors=1 << 20)


def steps(act: Callable[[], object]) -> int:
    """The executed lines of imqtt."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def command(payload: bytes) -> Callable[[], object]:
    def decode() -> None:
        try:
            decode_command(payload, WIDE)
        except ImqttError:
            identify(payload)

    return decode


def sending(content: str) -> Callable[[], object]:
    around = '{"type":"send","conversation":"u:alice","client_msg_id":"m","content":%s}'
    return command((around % content).encode())


def sync(size: int, format: Format) -> Callable[[], object]:
    cursors = tuple(Cursor("u:alice", seq) for seq in range(size))
    return command(encode_command(Sync(cursors), format))


def page(size: int, format: Format) -> Callable[[], object]:
    events = tuple(
        Event("u:alice", seq, Id(seq), 1, "alice", "phone", f"m{seq}", Content(text="x"))
        for seq in range(1, size)
    )
    payload = join([encode_frame(Page(slices=(Slice("u:alice", events),)), format)], format)
    return lambda: decode_frames(payload)


def hearing(pieces: list[bytes], *, ack: bool = False) -> Callable[[], object]:
    def hear() -> None:
        connection = Connection(LinkSettings("host", 1883, "one", receive_max=65_535), 0.0)
        connection.receive(CONNACK, 0.0)
        received = [
            event
            for piece in pieces
            for event in connection.receive(piece, 0.0)
            if isinstance(event, Received)
        ]
        for message in reversed(received) if ack else ():
            connection.ack(message)
        connection.send(0.0, 1 << 20)

    return hear


def publishes(size: int) -> list[bytes]:
    at_least_once = mqtt5.QoS.AT_LEAST_ONCE
    return [
        mqtt5.PublishPacket("t", b"x", qos=at_least_once, packet_id=number).write()
        for number in range(1, size)
    ]


def one_byte_each(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


FAMILIES: dict[str, Callable[[int], Callable[[], object]]] = {
    "cursors in JSON": lambda size: sync(size, Format.JSON),
    "cursors in protobuf": lambda size: sync(size, Format.PROTOBUF),
    "a long text": lambda size: sending(json.dumps({"text": "x" * size})),
    "JSON with many values": lambda size: sending(
        json.dumps({"json": [{"a": number} for number in range(size)]})
    ),
    "JSON nested without end": lambda size: sending('{"json":' + "[" * size),
    "quotes without end": lambda size: sending('{"text":"' + '\\"' * size),
    "unknown fields": lambda size: sending('{"text":"x"' + ',"y":[1]' * size + "}"),
    "keys twice": lambda size: sending('{"text":"x"' + ',"text":"x"' * size + "}"),
    "a content put together from many": lambda size: command(
        encode_command(Send("u:alice", "m", Content(text="x")), Format.PROTOBUF) * size
    ),
    "a page in JSON": lambda size: page(size, Format.JSON),
    "a page in protobuf": lambda size: page(size, Format.PROTOBUF),
    "packets at once": lambda size: hearing([b"".join(publishes(size))], ack=True),
    "packets byte by byte": lambda size: hearing(one_byte_each(b"".join(publishes(size)))),
    "a large packet byte by byte": lambda size: hearing(
        one_byte_each(mqtt5.PublishPacket("t", bytes(size)).write())
    ),
    "properties": lambda size: hearing(
        [mqtt5.PublishPacket("t", b"", user_properties=[("a", "b")] * size).write()]
    ),
    "pubacks that nothing awaits": lambda size: hearing([b"\x40\x02\x00\x01" * size]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_the_input_takes_about_twice_the_steps(family: str) -> None:
    make = FAMILIES[family]
    few, many = steps(make(200)), steps(make(800))

    assert many <= 4.5 * few + 50


def test_quadratic_growth_of_steps_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def every_cursor_for_each(command: Sync, _: Bounds) -> None:
        for _ in command.cursors:
            for cursor in command.cursors:
                Id(cursor.seq + 1)

    monkeypatch.setattr("imqtt.protocol.check", every_cursor_for_each)
    with pytest.raises(AssertionError):
        test_twice_the_input_takes_about_twice_the_steps("cursors in JSON")
