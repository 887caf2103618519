"""The properties, for values that Hypothesis makes from the schemas, and for mutations of the corpus.

The examples are the same every time, so a change is tested only by its own test run. `make fuzz` searches for
new ones and keeps them in its corpus.
"""

from random import Random

import mqtt5
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imqtt.protocol.generated import imqtt_pb2 as pb
from tests.verification.fuzz import payload_strategies
from tests.verification.fuzz.boundary_values import some_bytes
from tests.verification.fuzz.corpus import corpus_files
from tests.verification.fuzz.mutation import mutate
from tests.verification.fuzz.stream import HEAD, link
from tests.verification.fuzz.targets import TARGETS, commands, content, frames, names

fixed = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)


@fixed
@given(payload_strategies.protobuf(pb.Command))
def test_the_command_properties_hold_for_any_protobuf_values(payload: bytes) -> None:
    commands(payload)


@fixed
@given(payload_strategies.json_commands)
def test_the_command_properties_hold_for_any_json_values(payload: bytes) -> None:
    commands(payload)


@fixed
@given(payload_strategies.protobuf(pb.Frames))
def test_the_frame_properties_hold_for_any_protobuf_values(payload: bytes) -> None:
    frames(payload)


@fixed
@given(payload_strategies.json_frames)
def test_the_frame_properties_hold_for_any_json_values(payload: bytes) -> None:
    frames(payload)


@fixed
@given(payload_strategies.json_things)
def test_the_content_properties_hold_for_any_json_value(value: object) -> None:
    content(payload_strategies._written(value))


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), min_size=1, max_size=8)
bytes_ = st.integers(0, 255)
packets = st.one_of(
    st.builds(
        lambda topic, payload, qos, number, dup, user: mqtt5.PublishPacket(
            topic, payload, qos=mqtt5.QoS(qos), packet_id=number if qos else None, duplicate=dup,
            user_properties=user,
        ).write(),
        texts, st.binary(max_size=150), st.sampled_from((0, 1, 1, 1, 2)), st.integers(1, 65_535),
        st.booleans(), st.lists(st.tuples(texts, texts), max_size=2),
    ),
    st.builds(lambda number, code: bytes((0x40, 3, 0, number, code)), st.integers(0, 20), bytes_),
    st.builds(lambda kind, body: bytes((kind, len(body))) + body, bytes_, st.binary(max_size=12)),
)  # fmt: skip


@fixed
@given(st.binary(min_size=HEAD, max_size=HEAD), st.lists(packets, max_size=8).map(b"".join))
def test_the_parser_properties_hold_for_any_packets_in_any_pieces(head: bytes, stream: bytes) -> None:
    link(head + stream)


@fixed
@given(st.from_regex(r"\A(imqtt(/[ -~é]{0,40}){1,5}|[dug](:[!-~é]{0,70}){0,3})\Z") | st.text())
def test_the_name_properties_hold_for_any_characters(text: str) -> None:
    names(text.encode())


@pytest.mark.parametrize("target", TARGETS)
def test_the_properties_hold_for_mutated_corpus_inputs(target: str) -> None:
    pool = [path.read_bytes() for path in corpus_files(target)]
    random = Random(target)
    for _ in range(400):
        data = mutate(target, random.choice(pool), random, lambda piece, _: some_bytes(piece, random), 1_500)
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"the input is {data!r}")
            raise
