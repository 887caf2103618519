"""Both formats carry the same values without loss."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imqtt.bodies import BODIES
from imqtt.model import AnyCommand, AnyFrame, Event, Head, Page, Position, Slice
from imqtt.protocol import (
    Bounds,
    Format,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    format_of,
    identify,
    join,
    packer,
)
from imqtt.protocol.generated import imqtt_pb2 as pb
from tests.protocol.strategies import commands, events, frames, positions

WIDE = Bounds(content=1 << 20, command=1 << 20)
BOTH = pytest.mark.parametrize("format", Format, ids=[each.value for each in Format])


@BOTH
@given(command=commands)
def test_a_decoded_command_equals_the_encoded_one(format: Format, command: AnyCommand) -> None:
    payload = encode_command(command, format)
    assert format_of(payload) is format
    assert decode_command(payload, WIDE) == command


@BOTH
@given(packet=st.lists(frames, max_size=4))
def test_decoded_frames_equal_the_encoded_ones(format: Format, packet: list[AnyFrame]) -> None:
    payload = join([encode_frame(frame, format) for frame in packet], format)
    assert decode_frames(payload) == tuple(packet)


@BOTH
@given(log=st.lists(events, max_size=4), registers=st.lists(events, max_size=2), head=positions)
def test_a_page_of_packed_events_equals_the_page_of_the_events(
    format: Format, log: list[Event], registers: list[Event], head: Position
) -> None:
    pack = packer(format)

    def page(events: list[Event]) -> bytes:
        part = Slice("u:alice", tuple(events), more=True, registers=tuple(registers))
        heads = tuple(Head("u:alice", head.seq, head.id, event) for event in events)
        return encode_frame(Page("r", heads, slices=(part, part)), format)

    packed = [pack(event) for event in log]
    assert [size for _, size in packed] == [len(encode_frame(event, format)) for event in log]
    assert page([event for event, _ in packed]) == page(log)


@given(command=commands)
def test_json_and_protobuf_carry_the_same_command(command: AnyCommand) -> None:
    from_json = decode_command(encode_command(command, Format.JSON), WIDE)
    from_protobuf = decode_command(encode_command(from_json, Format.PROTOBUF), WIDE)
    assert encode_command(from_protobuf, Format.JSON) == encode_command(command, Format.JSON)


@given(frame=frames)
def test_protobuf_and_json_carry_the_same_frame(frame: AnyFrame) -> None:
    (from_protobuf,) = decode_frames(join([encode_frame(frame, Format.PROTOBUF)], Format.PROTOBUF))
    assert encode_frame(from_protobuf, Format.JSON) == encode_frame(frame, Format.JSON)


def test_the_schema_has_the_body_of_each_kind_of_event() -> None:
    fields = pb.Event.DESCRIPTOR.oneofs_by_name["body"].fields
    assert {field.name for field in fields} == {body.field for body in BODIES.values()}


@given(command=commands)
def test_json_is_one_object_of_plain_json(command: AnyCommand) -> None:
    payload = encode_command(command, Format.JSON)
    value = json.loads(payload)
    assert value["type"] == command.name
    assert payload[:1] == b"{"
    assert None not in value.values()


@given(command=commands)
def test_commands_are_encoded_as_any_protobuf_library_encodes_them(command: AnyCommand) -> None:
    payload = encode_command(command, Format.PROTOBUF)
    assert pb.Command.FromString(payload).SerializeToString() == payload


@given(packet=st.lists(frames, max_size=4))
def test_frames_are_encoded_as_any_protobuf_library_encodes_them(packet: list[AnyFrame]) -> None:
    payload = join([encode_frame(frame, Format.PROTOBUF) for frame in packet], Format.PROTOBUF)
    assert pb.Frames.FromString(payload).SerializeToString() == payload


@BOTH
@given(command=commands)
def test_a_command_is_identified_by_its_names(format: Format, command: AnyCommand) -> None:
    found = identify(encode_command(command, format))
    assert found.type == command.name
    for name in ("conversation", "client_msg_id", "ref"):
        assert getattr(found, name) == getattr(command, name, "")
