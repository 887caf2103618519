"""Every payload is either a command that all later stages accept, or an error that states the reason."""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from timeit import timeit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imqtt.errors import ImqttError, Invalid, Malformed, TooLarge, Unsupported
from imqtt.fields import MAX_CONVERSATION
from imqtt.model import AnyCommand, Content, Hello, History, Send, Sync
from imqtt.protocol import Bounds, Format, decode_command, decode_frames, encode_command, identify
from imqtt.protocol.check import MAX_MENTIONS
from imqtt.protocol.generated import imqtt_pb2 as pb
from tests.protocol.strategies import commands

BOUNDS = Bounds(content=100, command=2_000, cursors=3)


def sending(content: object, **changed: object) -> bytes:
    """A `send` as JSON."""
    send = {"type": "send", "conversation": "d:alice:bob", "client_msg_id": "m1", "content": content}
    return json.dumps(send | changed).encode()


def sending_json(text: str) -> bytes:
    """A `send` with this text as its JSON content, valid or not."""
    return sending({"json": "?"}).replace(b'"?"', text.encode())


def sending_json_in_protobuf(text: str) -> bytes:
    send = pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=pb.Content(json=text))
    return pb.Command(send=send).SerializeToString()


def refusal(payload: bytes, bounds: Bounds = BOUNDS) -> ImqttError:
    """The error that decoding `payload` raises."""
    with pytest.raises(ImqttError) as caught:
        decode_command(payload, bounds)
    return caught.value


def both(command: AnyCommand) -> list[bytes]:
    return [encode_command(command, format) for format in Format]


# --- numbers -----------------------------------------------------------------------------------------


def test_an_array_of_extreme_numbers_takes_no_longer_than_one_of_plain_numbers() -> None:
    """msgspec's own parser takes 40 us for each, which would hold up everybody for a second."""
    arrays = {number: f"[{','.join([number] * 10_000)}]" for number in ("1e300", "12345")}
    bounds = Bounds()
    for decode in (sending_json, sending_json_in_protobuf):
        took = {
            number: min(timeit(partial(decode_command, decode(array), bounds), number=1) for _ in range(5))
            for number, array in arrays.items()
        }
        assert took["1e300"] < 20 * took["12345"]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.8e308"])
@pytest.mark.parametrize("format", Format)
def test_a_number_beyond_a_double_is_malformed(number: str, format: Format) -> None:
    sends = {Format.JSON: sending_json, Format.PROTOBUF: sending_json_in_protobuf}
    assert isinstance(refusal(sends[format](f"[1,{number}]")), Malformed)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_their_value(number: float) -> None:
    for payload in (sending_json(repr(number)), sending_json_in_protobuf(repr(number))):
        command = decode_command(payload, BOUNDS)
        assert isinstance(command, Send)
        assert command.content.json is not None
        assert json.loads(command.content.json) == number


# --- nothing but ImqttError -------------------------------------------------------------------------


def accepted_or_refused(payload: bytes) -> None:
    """Decodes, or raises an error that may be sent; in both cases the command can be identified."""
    refused: ImqttError | None = None
    try:
        decode_command(payload, BOUNDS)
    except ImqttError as error:
        refused = error
    if refused is not None:
        assert refused.code in ("malformed", "invalid", "too_large", "unsupported")
        assert 0 < len(refused.reason.encode()) <= 250
    for name in identify(payload):
        assert name.isascii()
        assert len(name) <= MAX_CONVERSATION


@given(payload=st.binary())
@example(b"")
@example(b"\x7a\x00")
@example(b"{")
def test_random_bytes_are_refused_with_an_error(payload: bytes) -> None:
    accepted_or_refused(payload)
    accepted_or_refused(b"{" + payload)


@given(command=commands, format=st.sampled_from(Format), data=st.data())
@settings(max_examples=300)
def test_a_command_with_changed_bytes_is_accepted_or_refused_with_an_error(
    command: AnyCommand, format: Format, data: st.DataObject
) -> None:
    payload = bytearray(encode_command(command, format))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload)))
        payload[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    accepted_or_refused(bytes(payload))


@given(command=commands, format=st.sampled_from(Format), data=st.data())
def test_a_truncated_command_is_accepted_or_refused_with_an_error(
    command: AnyCommand, format: Format, data: st.DataObject
) -> None:
    payload = encode_command(command, format)
    accepted_or_refused(payload[: data.draw(st.integers(0, len(payload) - 1))])


@given(payload=st.binary())
def test_random_bytes_as_frames_are_malformed(payload: bytes) -> None:
    for rubbish in (payload, b"{" + payload):
        with contextlib.suppress(Malformed):
            decode_frames(rubbish)


json_things = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(command=commands, data=st.data())
def test_a_field_of_any_other_shape_is_accepted_or_refused_with_an_error(
    command: AnyCommand, data: st.DataObject
) -> None:
    value = json.loads(encode_command(command, Format.JSON))
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(json_things)
    accepted_or_refused(json.dumps(value).encode())


# --- single cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"hello", b'"send"', b"[]", b"null", b'\xef\xbb\xbf{"type":"send"}', b' {"type":"send"}',
        b"{", b"{}", b'{"type":5}', b'{"type":null}', b'{"type":"send"}', b'{"type":"mark"} {}',
        b'{"type":"mark","conversation":"d:a:b"', b"\x00\x00", b"\x0a\x7fabc",
    ],
)  # fmt: skip
def test_a_payload_without_the_shape_of_a_command_is_malformed(payload: bytes) -> None:
    assert isinstance(refusal(payload), Malformed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversation", 5), ("conversation", None), ("conversation", ["d:alice:bob"]),
        ("client_msg_id", {}), ("client_time", "now"), ("client_time", 1.5), ("client_time", True),
        ("content", "hi"), ("content", [{"text": "hi"}]), ("content", None),
        ("content", {"text": 5}), ("content", {"data": "no base64!", "content_type": "x"}),
        ("content", {"text": "x", "mentions": "bob"}), ("content", {"text": "x", "reply_to": 7}),
        ("content", {"text": "x", "reply_to": {"seq": 1}}),
        ("content", {"text": "x", "reply_to": {"seq": 1, "id": 5}}),
        ("content", {"text": "x", "reply_to": {"seq": 1, "id": "five"}}),
        ("content", {"text": "x", "reply_to": {"seq": 1, "id": ""}}),
        ("content", {"text": "x", "reply_to": {"seq": 1, "id": "\u0665"}}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_malformed(field: str, value: object) -> None:
    whole = json.loads(sending({"text": "hi"})) | {field: value}
    assert isinstance(refusal(json.dumps(whole).encode()), Malformed)


def test_every_truncation_of_a_protobuf_message_is_refused() -> None:
    payload = encode_command(Send("d:alice:bob", "m1", Content(text="hello")), Format.PROTOBUF)
    for length in range(len(payload)):
        assert isinstance(refusal(payload[:length]), Malformed)


@pytest.mark.parametrize("payload", [b'{"type":"dance","ref":"r1"}', b"\x7a\x00", b"\xa2\x06\x00"])
def test_a_command_of_a_later_version_is_unsupported(payload: bytes) -> None:
    assert isinstance(refusal(payload), Unsupported)


def test_fields_of_a_later_version_are_ignored() -> None:
    plain = Send("d:alice:bob", "m1", Content(text="hi"))
    later = sending({"text": "hi", "font": {"size": 3}}, mood=["good", None, 1e300])
    assert decode_command(later, BOUNDS) == plain
    send = pb.Command.FromString(encode_command(plain, Format.PROTOBUF)).send.SerializeToString()
    send += b"\xa2\x06\x03abc"  # field 100
    assert decode_command(b"\x0a" + bytes([len(send)]) + send + b"\xa0\x06\x01", BOUNDS) == plain


def test_frames_of_a_later_version_are_ignored() -> None:
    as_json = b'{"frames":[{"type":"dance"},{"type":"typing","conversation":"u:a","user":"a"}],"more":1}'
    as_protobuf = (
        b"\x0a\x03\xa2\x06\x00"
        + pb.Frames(frames=[pb.Frame(typing=pb.PeerTyping(conversation="u:a", user="a"))]).SerializeToString()
    )
    assert decode_frames(as_json) == decode_frames(as_protobuf)
    assert len(decode_frames(as_json)) == 1


@pytest.mark.parametrize(
    "content",
    [
        {}, {"text": ""}, {"data": "", "content_type": "x"}, {"json": None}, {"text": None},
        {"text": "a", "json": 1}, {"text": "a", "data": "YQ==", "content_type": "x"},
        {"data": "YQ=="}, {"content_type": "text/plain"},
        {"text": "a", "content_type": "x" * 128}, {"text": "a", "content_type": "x\ny"},
        {"text": "a", "mentions": ["not a user"]}, {"text": "a", "mentions": [""]},
    ],
)  # fmt: skip
def test_contradictory_content_is_invalid(content: dict[str, object]) -> None:
    assert isinstance(refusal(sending(content)), Invalid)


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"data": b""}, {"json": "null"}], ids=str)
def test_empty_content_is_invalid_in_protobuf_too(body: dict[str, object]) -> None:
    content = pb.Content(content_type="x/y", **body)  # type: ignore[arg-type]  # one of the bodies
    send = pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=content)
    assert isinstance(refusal(pb.Command(send=send).SerializeToString()), Invalid)


@pytest.mark.parametrize(
    "content",
    [Content(text="x" * 101), Content(text="é" * 51), Content(data=b"x" * 101, content_type="x/y")],
    ids=["text", "text of two bytes a character", "data"],
)
def test_oversized_content_is_refused_with_its_size_and_the_limit(content: Content) -> None:
    for payload in both(Send("d:alice:bob", "m1", content)):
        error = refusal(payload)
        assert isinstance(error, TooLarge)
        assert error.limit == 100
        assert error.size in (101, 102)


def test_too_many_items_are_refused_with_their_number_and_the_limit() -> None:
    many = {"text": "a", "mentions": ["a"] * (MAX_MENTIONS + 1)}
    cursors = [{"conversation": "d:alice:bob"}] * 4
    for payload, limit, unit in (
        (sending(many), MAX_MENTIONS, "mentions"),
        (json.dumps({"type": "sync", "cursors": cursors}).encode(), 3, "cursors"),
        (json.dumps({"type": "hello", "nonce": "n", "cursors": cursors}).encode(), 3, "cursors"),
    ):
        error = refusal(payload)
        assert isinstance(error, TooLarge)
        assert (error.size, error.limit) == (limit + 1, limit)
        assert unit in error.reason


def test_any_limit_of_history_is_accepted() -> None:
    payload = b'{"type":"history","conversation":"d:alice:bob","limit":4294967295}'
    assert decode_command(payload, BOUNDS) == History("d:alice:bob", limit=4_294_967_295)
    assert isinstance(refusal(payload.replace(b"4294967295", b"4294967296")), Malformed)


def test_content_at_the_limit_is_accepted() -> None:
    for payload in both(Send("d:alice:bob", "m1", Content(text="é" * 50))):
        decode_command(payload, BOUNDS)
    decode_command(sending_json('"' + "x" * 98 + '"' + " " * 500), BOUNDS)


def test_an_oversized_command_is_refused_before_it_is_read() -> None:
    error = refusal(b"{" + b" " * 2_000)
    assert isinstance(error, TooLarge)
    assert (error.size, error.limit) == (2_001, 2_000)


LONE_SURROGATES = ["\\ud800", "\\udc00", "\\ud83d!", "\\udfff\\ud800", "\\uD83D\\u0041"]


@pytest.mark.parametrize("surrogate", LONE_SURROGATES)
def test_a_lone_surrogate_is_malformed_wherever_it_stands(surrogate: str) -> None:
    for payload in (
        sending({"text": "?"}),
        sending({"json": {"key": ["?"]}}),
        sending({"json": {"?": 1}}),
        sending({"text": "x"}, client_msg_id="?"),
        sending({"text": "x"}, conversation="?"),
        sending({"text": "x"}, unknown="?"),
    ):
        assert isinstance(refusal(payload.replace(b"?", surrogate.encode())), Malformed)
    binary = pb.Content(json=f'["{surrogate}"]')
    send = pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=binary)
    assert isinstance(refusal(pb.Command(send=send).SerializeToString()), Malformed)


def test_invalid_utf8_is_malformed() -> None:
    for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"):
        assert isinstance(refusal(sending({"text": "?"}).replace(b"?", bad)), Malformed)
        assert isinstance(refusal(b"\x0a\x05\x0a" + bytes([len(bad)]) + bad), Malformed)


def test_an_escaped_pair_of_surrogates_is_a_character() -> None:
    command = decode_command(sending({"text": "?"}).replace(b"?", b"\\ud83d\\ude42"), BOUNDS)
    assert command == Send("d:alice:bob", "m1", Content(text="🙂"))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**400])
def test_an_integer_past_64_bits_in_json_content_is_malformed(number: int) -> None:
    for text in (str(number), f'{{"a":[{number}]}}'):
        assert isinstance(refusal(sending_json(text)), Malformed)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "-Infinity"])
def test_a_number_that_a_double_cannot_hold_is_malformed(number: str) -> None:
    assert isinstance(refusal(sending_json(number)), Malformed)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 1e308, 0.1])
def test_the_outermost_numbers_are_kept_exactly(number: float) -> None:
    command = decode_command(sending({"json": [number]}), BOUNDS)
    assert isinstance(command, Send)
    assert json.loads(command.content.json or "") == [number]


OUT_OF_RANGE: list[Callable[[int], object]] = [
    lambda n: {"type": "mark", "conversation": "d:alice:bob", "read": n},
    lambda n: {"type": "mark", "conversation": "d:alice:bob", "delivered": n},
    lambda n: {"type": "history", "conversation": "d:alice:bob", "before": n},
    lambda n: {"type": "history", "conversation": "d:alice:bob", "limit": n},
    lambda n: {"type": "sync", "cursors": [{"conversation": "d:alice:bob", "seq": n}]},
    lambda n: {"type": "sync", "cursors": [{"conversation": "d:alice:bob", "id": str(n)}]},
    lambda n: {"type": "sync", "heads_before": str(n)},
]


@pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1, 2**64, 10**30])
@pytest.mark.parametrize("command", OUT_OF_RANGE)
def test_a_number_out_of_range_is_malformed(command: Callable[[int], object], number: int) -> None:
    assert isinstance(refusal(json.dumps(command(number)).encode()), Malformed)


@pytest.mark.parametrize(
    "command",
    [
        pb.Command(mark=pb.Mark(conversation="d:alice:bob", read=2**53)),
        pb.Command(history=pb.History(conversation="d:alice:bob", before=2**64 - 1)),
        pb.Command(sync=pb.Sync(heads_before=2**63)),
        pb.Command(sync=pb.Sync(cursors=[pb.Cursor(conversation="d:alice:bob", seq=2**53)])),
        pb.Command(hello=pb.Hello(nonce="n", cursors=[pb.Cursor(conversation="u:a", id=2**64 - 1)])),
        pb.Command(
            send=pb.Send(
                conversation="d:alice:bob", client_msg_id="m", content={"text": "x"}, client_time=2**53
            )
        ),
    ],
    ids=lambda command: command.WhichOneof("command"),
)
def test_a_number_out_of_range_in_protobuf_is_malformed(command: pb.Command) -> None:
    assert isinstance(refusal(command.SerializeToString()), Malformed)


def nested(depth: int) -> str:
    return '{"a":[' * (depth // 2) + "1" + "]}" * (depth // 2)


def test_json_content_may_be_nested_32_deep_and_no_deeper() -> None:
    wide = Bounds()
    decode_command(sending_json(nested(32)), wide)
    decode_command(sending_json("[" * 32 + "]" * 32), wide)
    assert isinstance(refusal(sending_json("[" * 33 + "]" * 33), wide), Malformed)
    assert isinstance(refusal(sending_json(nested(34)), wide), Malformed)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_unbounded_nesting_is_malformed(opening: str) -> None:
    wide = Bounds(command=1 << 20)
    deep = opening * 100_000
    for payload in (
        sending_json(deep),
        sending({"text": "x"}, unknown="?").replace(b'"?"', deep.encode()),
        deep.encode(),
        b'{"type":' + deep.encode(),
    ):
        assert isinstance(refusal(payload, wide), Malformed)
        identify(payload)
    send = pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=pb.Content(json=deep))
    assert isinstance(refusal(pb.Command(send=send).SerializeToString(), wide), Malformed)


@pytest.mark.parametrize(
    "conversation",
    ["", "d", "d:", "d:alice:bób", "d:alice: bob", "d:alice:bob\n", "d:al\0:bob", "d:" + "a" * 130],
)
def test_a_conversation_outside_the_alphabet_is_invalid(conversation: str) -> None:
    for command in (
        {"type": "mark", "conversation": conversation, "read": 1},
        {"type": "history", "conversation": conversation},
        {"type": "typing", "conversation": conversation},
    ):
        assert isinstance(refusal(json.dumps(command).encode()), Invalid)
    # The server skips such a cursor: see `topics.md`, Cursors.
    cursors = [{"conversation": conversation, "seq": 1}, {"conversation": "d:alice:bob"}]
    for payload in (
        {"type": "sync", "cursors": cursors},
        {"type": "hello", "nonce": "n", "cursors": cursors},
    ):
        command = decode_command(json.dumps(payload).encode(), BOUNDS)
        assert isinstance(command, Hello | Sync)
        assert [cursor.conversation for cursor in command.cursors] == [conversation, "d:alice:bob"]


@pytest.mark.parametrize("token", ["", " ", "a b", "é", "\x7f", "x" * 65, "a\n"])
def test_a_token_outside_the_alphabet_is_invalid(token: str) -> None:
    assert isinstance(refusal(sending({"text": "x"}, client_msg_id=token)), Invalid)
    assert isinstance(refusal(json.dumps({"type": "hello", "nonce": token}).encode()), Invalid)
    if token:
        assert isinstance(refusal(json.dumps({"type": "sync", "ref": token}).encode()), Invalid)


@pytest.mark.parametrize(
    "command",
    [
        {"type": "hello", "nonce": "n", "platform": "x" * 65},
        {"type": "hello", "nonce": "n", "platform": "a\0b"},
        {"type": "hello", "nonce": "n", "max_packet": 1023},
        {"type": "hello", "nonce": "n", "max_packet": 268_435_456},
        {"type": "hello", "nonce": "n", "max_packet": -1},
        {"type": "status", "nonce": "n", "state": "asleep"},
        {"type": "status", "nonce": "n", "state": "online", "battery": 101},
        {"type": "status", "nonce": "n", "state": "online", "battery": -1},
        {"type": "status", "nonce": "n", "state": "online", "network": "x" * 65},
    ],
    ids=str,
)
def test_an_impossible_command_is_invalid(command: dict[str, object]) -> None:
    assert isinstance(refusal(json.dumps(command).encode()), Invalid)


# --- the names of a refused command ------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        sending({}),
        sending({"text": "\ud800"}),
        sending({"text": 5}),
        sending({"text": "?"}).replace(b"?", b"\xff"),
        sending({"text": "x" * 500}),
        sending({"text": "x"})[:-10],
        sending_json("[" * 100_000),
        sending({"text": "x"}) + b"}",
        sending({"text": "x"}, client_time="now"),
        encode_command(Send("d:alice:bob", "m1", Content()), Format.PROTOBUF),
        pb.Command(
            send=pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=pb.Content(json="{"))
        ).SerializeToString(),
    ],
    ids=lambda payload: repr(payload[60:100]),
)
def test_identify_finds_every_readable_name_of_a_refused_message(payload: bytes) -> None:
    refusal(payload, Bounds(content=100, command=1 << 20))
    assert identify(payload) == ("send", "d:alice:bob", "m1", "")


def test_a_value_of_another_type_does_not_hide_the_other_names() -> None:
    assert identify(b'{"type":"sync","conversation":5,"ref":"r1"}') == ("sync", "", "", "r1")


def test_names_inside_the_content_are_not_the_commands_names() -> None:
    inner = '{"client_msg_id":"inner","type":"mark","ref":"inner"}'
    payload = sending_json(f'[{inner},"\\ud800"]')
    assert identify(payload) == ("send", "d:alice:bob", "m1", "")


@pytest.mark.parametrize("name", ["x" * 132, "a b", "a\\u0000b", "é", ""])
def test_a_malformed_name_is_not_echoed(name: str) -> None:
    for broken in ("", "]"):
        payload = f'{{"type":"mark","conversation":"{name}","ref":"r1"}}{broken}'.encode()
        assert identify(payload) == ("mark", "", "", "r1")


def test_random_bytes_have_no_names() -> None:
    for payload in (b"", b"{", b"hello", b"\x7a\x00", b'{"', b'{"type"', b'{"type":', b"{\\", b'{"a\\'):
        assert identify(payload) == ("", "", "", "")


# --- frames that no server sends ---------------------------------------------------------------------

_EVENT = {
    "type": "event", "conversation": "u:a", "seq": 1, "id": "1", "time": 1, "sender": "a", "device": "p",
    "client_msg_id": "m", "content": {"text": "x"},
}  # fmt: skip
_LIMITS = dict.fromkeys(("content", "command", "page", "cursors", "rate", "presence"), 1)
_WELCOME = {"type": "welcome", "nonce": "n", "user": "a", "device": "p", "time": 1, "partitions": 1}
_HEAD = {"conversation": "u:a", "seq": 1, "id": "1"}

ODD_FRAMES: list[Callable[[int], dict[str, object]]] = [
    lambda n: {"type": "marks", "conversation": "u:a", "user": "a", "delivered": n},
    lambda n: {"type": "marks", "conversation": "u:a", "user": "a", "read": n},
    lambda n: _EVENT | {"seq": n},
    lambda n: _EVENT | {"time": n},
    lambda n: _EVENT | {"client_time": n},
    lambda n: _EVENT | {"withheld": n},
    lambda n: _EVENT | {"content": {"text": "x", "reply_to": {"seq": n, "id": "1"}}},
    lambda n: {"type": "page", "heads": [_HEAD | {"seq": n}]},
    lambda n: {"type": "page", "heads": [_HEAD | {"latest": _EVENT | {"seq": n}}]},
    lambda n: {"type": "page", "slices": [{"conversation": "u:a", "events": [_EVENT | {"seq": n}]}]},
    lambda n: {"type": "presence", "user": "a", "state": "online", "last_seen": n},
    lambda n: {"type": "rejected", "code": "busy", "reason": "x", "retry_after": n},
    lambda n: _WELCOME | {"limits": _LIMITS, "partitions": n},
    lambda n: _WELCOME | {"limits": _LIMITS | {"presence": n}},
]


@pytest.mark.parametrize("number", [-1, 2**53, 2**64 - 1, 10**30])
@pytest.mark.parametrize("frame", ODD_FRAMES)
def test_a_frame_with_a_number_that_a_device_could_not_keep_is_malformed(
    frame: Callable[[int], dict[str, object]], number: int
) -> None:
    decode_frames(json.dumps({"frames": [frame(7)]}).encode())
    with pytest.raises(Malformed):
        decode_frames(json.dumps({"frames": [frame(number)]}).encode())


def test_a_frame_with_a_number_that_a_device_could_not_keep_is_malformed_in_protobuf_too() -> None:
    for odd in (
        pb.Frame(marks=pb.Marks(conversation="u:a", user="a", delivered=2**53)),
        pb.Frame(event=pb.Event(conversation="u:a", seq=1, id=2**63)),
        pb.Frame(accepted=pb.Accepted(conversation="u:a", seq=1, id=1, previous=2**63)),
        pb.Frame(page=pb.Page(more_heads=2**63)),
    ):
        with pytest.raises(Malformed):
            decode_frames(pb.Frames(frames=[odd]).SerializeToString())


@pytest.mark.parametrize("text", [rb"\ud800", rb"\ud800x", rb"\udc00", rb"\ud800\ud800"])
def test_the_error_for_a_lone_surrogate_names_it(text: bytes) -> None:
    with pytest.raises(Malformed, match="not valid Unicode \\(lone surrogate\\)"):
        decode_command(b'{"type":"send","content":{"text":"' + text + b'"}}', BOUNDS)
    with pytest.raises(Malformed, match="truncated"):
        decode_command(rb'{"type":"send","content":{"text":"\ud83d\ude00', BOUNDS)
