"""Properties of decoding: each target takes any bytes and raises if a property is violated.

Both fuzzers and the replay of the corpus call them. An `AssertionError` is a violated property; any other
exception escaped from the code under test.
"""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, cast

import msgspec

from imqtt.bodies import BODIES, decode_body
from imqtt.broker import Received
from imqtt.client import store as device_store
from imqtt.core.changes import Memory
from imqtt.core.conversations import members_from_ids, members_of
from imqtt.core.partitions import home_of, partition_of
from imqtt.core.replica import Replica
from imqtt.core.sequencing import Append, decide, receive
from imqtt.core.view import View
from imqtt.errors import ImqttError, Invalid, Malformed, NotAllowed, TooLarge, Unsupported
from imqtt.fields import MAX_CONVERSATION, MIN_PACKET
from imqtt.model import (
    MAX_JSON_DEPTH,
    NO_CONTENT,
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Device,
    Event,
    Id,
    JsonText,
    Marks,
    Page,
    Send,
    Slice,
    Typing,
    canonical_json,
)
from imqtt.protocol import (
    Bounds,
    CommandInfo,
    Format,
    check,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    format_of,
    identify,
    join,
)
from imqtt.protocol.topics import MAX_NAME, down, is_name, parse_up, up
from imqtt.server.batch import Inbound
from imqtt.server.rejections import rejected
from imqtt.server.router import FORWARDED, Router, conversations_of, of_members
from tests.verification.fuzz import stream

BOUNDS: Final = Bounds(content=200, command=4_000, cursors=3)  # small, so that a short input may exceed them
WIDE: Final = Bounds(content=200, command=100_000, cursors=3)  # formats differ in length
PARTITIONS: Final = 16
PHONE: Final = Device("alice", "phone")
ESCAPED: Final = 6  # bytes that JSON may make of one: \u0001


# --- requirements of later stages ---------------------------------------------------------------------


def _check_value(value: object) -> None:
    """Every store, broker and client parser accepts it."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_value(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            _check_value(item)
    elif isinstance(value, JsonText):
        _check_json(json.loads(value.encode().decode()), 0)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        # Integers other than ids are JSON numbers, which JavaScript reads up to 2**53.
        assert 0 <= value < (1 << 63 if isinstance(value, Id) else 1 << 53), value
    else:
        assert value is None or isinstance(value, bytes), type(value)


def _check_json(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        assert depth < MAX_JSON_DEPTH
        for item in value:
            _check_json(item, depth + 1)
        if isinstance(value, dict):
            for item in value.values():
                _check_json(item, depth + 1)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert -(1 << 63) <= value < 1 << 63


def _check_error(error: ImqttError, named: CommandInfo) -> None:
    """The error can be sent to the sender in one packet that any device accepts."""
    assert type(error) in (Malformed, Invalid, TooLarge, Unsupported, NotAllowed), type(error)
    assert not error.retryable
    assert 0 < len(error.reason.encode()) <= 250
    frame = rejected(error, named)
    for format in Format:
        packet = join([encode_frame(frame, format)], format)
        assert decode_frames(packet) == (frame,)
        assert len(packet) <= MIN_PACKET


# --- commands -----------------------------------------------------------------------------------------


def commands(payload: bytes) -> None:
    """A command is refused with an error that can be sent, or every later stage accepts it."""
    named = identify(payload)
    for name in named:
        assert name.isascii()
        assert len(name) <= MAX_CONVERSATION
    try:
        command = decode_command(payload, BOUNDS)
    except ImqttError as error:
        _check_error(error, named)
    else:
        assert named.type == command.name, "a later rejection must name the command's type"
        for name in CommandInfo._fields[1:]:
            assert getattr(named, name) == getattr(command, name, getattr(named, name))
        _check_later_stages(command)
    _check_routing(payload)


def _check_later_stages(command: AnyCommand) -> None:
    _check_value(command)
    forms: list[AnyCommand] = []
    for format in Format:
        payload = encode_command(command, format)
        assert format_of(payload) is format
        again = decode_command(payload, WIDE)
        assert again == command
        assert encode_command(again, format) == payload
        forms.append(again)
    if isinstance(command, Send):
        _check_stored_form([command, *(form for form in forms if isinstance(form, Send))])


def _check_stored_form(sends: list[Send]) -> None:
    """Both formats of a message are stored as the same bytes, with the same meaning."""
    messages = [receive(PHONE, send) for send in sends]
    (body,) = {message.body for message in messages}
    assert len({message.digest for message in messages}) == 1
    assert decode_body("message", body.decode()) == sends[0].content
    assert len(body) <= ESCAPED * (BOUNDS.content + 127 + 64 * 100) + 200
    decisions = decide(
        messages,
        View({}, {}, members_from_ids({message.command.conversation for message in messages})),
        lambda _, last: Id(last + 1),
        lambda _: True,
    )
    appended = [each.event for each in decisions if isinstance(each, Append)]
    assert len(appended) == _is_in("alice", sends[0].conversation)
    for event in appended:
        _check_encodings((event,))


def _is_in(user: str, conversation: str) -> bool:
    try:
        return user in members_of(conversation)
    except ImqttError:
        return False


def _check_routing(payload: bytes) -> None:
    """The server finds one thing to do about it, wherever it comes in."""
    for partition, properties in ((0, ()), (partition_of("u:alice", PARTITIONS), (FORWARDED,))):
        received = Received(up(PHONE, partition), payload, 1, False, properties, 1, 0)
        inbound = Inbound(partition, received, cast("Any", None), again=True)
        batch = Router(PARTITIONS, BOUNDS).sort([inbound])
        batch = of_members(batch, members_from_ids(conversations_of(batch)))
        acted = batch.commands or batch.requests
        assert (bool(acted), bool(batch.rejections), bool(batch.forwards)).count(True) == 1
        assert not (properties and batch.forwards)


# --- frames -------------------------------------------------------------------------------------------


def frames(payload: bytes) -> None:
    """A packet to a device is malformed, or a device can store its contents."""
    try:
        packet = decode_frames(payload)
    except Malformed as error:
        _check_error(error, CommandInfo())
        return
    _check_encodings(packet)
    _check_device(packet)


def _check_encodings(packet: tuple[AnyFrame, ...]) -> None:
    for frame in packet:
        _check_value(frame)
    # One of the formats cannot express some values that no command may have.
    common = all(map(_is_common, (event for frame in packet for event in _events(frame))))
    for format in Format if common else ():
        encoded = [encode_frame(frame, format) for frame in packet]
        joined = join(encoded, format)
        assert decode_frames(joined) == packet
        assert join([encode_frame(frame, format) for frame in decode_frames(joined)], format) == joined
        for frame, alone in zip(packet, encoded, strict=True):
            assert decode_frames(join([alone], format)) == (frame,)


def _is_common(event: Event) -> bool:
    """protobuf has no two bodies, only content in a message, and no kind ""; JSON has no null content."""
    content = event.content
    contents = 3 - [content.text, content.data, content.json].count(None)
    others = [body.field for kind, body in BODIES.items() if kind != "message"]
    given = sum(getattr(event, name) is not None for name in others)
    if not event.kind or (event.kind == "message" and given):
        return False
    return contents <= 1 and (content != NO_CONTENT) + given <= 1 and content.json != "null"


def _events(frame: AnyFrame) -> list[Event]:
    if isinstance(frame, Event):
        return [frame]
    if not isinstance(frame, Page):
        return []
    latest = [head.latest for head in frame.heads if head.latest is not None]
    return latest + [event for part in frame.slices for event in (*part.events, *part.registers)]


def _check_device(packet: tuple[AnyFrame, ...]) -> None:
    """A new device accepts it, and the result fits into its store."""
    in_order = all(
        _is_contiguous(part) for frame in packet if isinstance(frame, Page) for part in frame.slices
    )
    for adopting in (False, True):
        replica = Replica(PHONE, Memory((), (), (), {}), adopting=adopting)
        applied: dict[str, list[int]] = {}
        for frame in packet * 2:
            if isinstance(frame, Event):
                replica.event(frame, {})
            elif isinstance(frame, Accepted):
                replica.accepted(frame, None, {})
            elif isinstance(frame, Page):
                replica.page(frame, {part.conversation: True for part in frame.slices}, {})
            elif isinstance(frame, Marks):
                replica.marks(frame)
            changes = replica.take().changes
            for conversation in changes.restarted:
                applied.pop(conversation, None)
            for (conversation, seq), (_, event) in sorted(changes.events.items()):
                assert device_store._event(device_store._encode(event)) == event
                applied.setdefault(conversation, []).append(seq)
            for kept in (*changes.logs.values(), *changes.marks):
                _check_value(kept)
        for log in replica.logs.values():
            assert len(log.order.buffered) <= 1_000
        for seqs in applied.values():
            assert not in_order or len(seqs) == len(set(seqs)), "an event is applied once"


def _is_contiguous(part: Slice) -> bool:
    """As in every server's slices, which a device relies on."""
    return all(after.seq == before.seq + 1 for before, after in pairwise(part.events))


# --- JSON as content ----------------------------------------------------------------------------------


def content(text: bytes) -> None:
    """JSON content is refused, or stored as one text that means the same to every reader."""
    try:
        canonical = canonical_json(msgspec.json.decode(text))
    except (ValueError, RecursionError):
        return
    _check_value(canonical)
    assert canonical_json(msgspec.json.decode(canonical.encode())) == canonical
    # Python's own parser is the oracle. Compared by `repr`, because 1 == 1.0 == True.
    assert repr(json.loads(canonical)) == repr(json.loads(text))
    for payload in _sends(text):
        try:
            command = decode_command(payload, Bounds(content=1 << 20))
        except TooLarge:
            continue
        except (Invalid, Malformed):
            assert canonical == "null"
            continue
        assert isinstance(command, Send)
        assert command.content.json == canonical


def _sends(text: bytes) -> tuple[bytes, bytes]:
    around = b'{"type":"send","conversation":"u:alice","client_msg_id":"m","content":{"json":%s}}'
    send = Send("u:alice", "m", Content(json=JsonText(text.decode())))
    return around % text, encode_command(send, Format.PROTOBUF)


# --- names --------------------------------------------------------------------------------------------


def names(data: bytes) -> None:
    """Topics and conversation ids name the users that they contain, or are refused."""
    text = data.decode(errors="surrogateescape")
    device = parse_up(text)
    if device is not None:
        assert is_name(device.user)
        assert is_name(device.device)
        assert len(str(device)) <= MAX_NAME
        assert text.split("/")[1].split("@") == list(device)
        assert parse_up(up(device, 3)) == device
        assert len(down(device)) <= len("imqtt//down") + MAX_NAME
        assert members_of(home_of(device.user)) == (device.user,)
    try:
        check(Typing(text), BOUNDS)
    except ImqttError as error:
        _check_error(error, CommandInfo())
        return
    assert 0 <= partition_of(text, PARTITIONS) < PARTITIONS
    try:
        members = members_from_ids([text]).check(text, "alice")
    except ImqttError as error:
        _check_error(error, CommandInfo())
        return
    assert "alice" in members
    assert all(map(is_name, members))
    assert text == ("d:" + ":".join(sorted(members)) if len(members) == 2 else home_of(*members))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "commands": commands,
    "content": content,
    "frames": frames,
    "link": stream.link,
    "names": names,
}
