"""Hypothesis strategies for payloads with valid structure and arbitrary values, which no client should send.

They are made from the schemas, so new fields are included.
"""

import json
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from imqtt.model import AnyCommand, AnyFrame, Id, JsonText
from imqtt.protocol.generated import imqtt_pb2 as pb
from tests.verification.fuzz.boundary_values import NUMBERS, TEXTS

DEPTH = 5  # depth of nested messages
_UTF8 = tuple(text for text in TEXTS if "\ud800" not in text and "\udfff" not in text)

texts = st.sampled_from(_UTF8) | st.text(max_size=12)
json_things: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)


def numbers(most: int) -> st.SearchStrategy[int]:
    return st.sampled_from([number for number in NUMBERS if 0 <= number <= most]) | st.integers(0, most)


# --- protobuf -----------------------------------------------------------------------------------------


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        return (
            st.sampled_from(["1", "[-0.0]", '{"a":1e400}', '["\\ud800"]']) | texts
            if field.name == "json"
            else texts
        )
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=8)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    return numbers((1 << 32) - 1 if field.type == FieldDescriptor.TYPE_UINT32 else (1 << 64) - 1)


@st.composite
def _filled(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message with any of its fields set to any value."""
    message: Any = getattr(pb, kind.name)()
    exclusive = {field.name for oneof in kind.oneofs for field in oneof.fields if len(oneof.fields) > 1}
    chosen = draw(st.sampled_from(sorted(exclusive))) if exclusive else ""
    for field in kind.fields:
        if field.name != chosen and (field.name in exclusive or not draw(st.booleans())):
            continue
        if field.message_type is not None:
            if depth < DEPTH:
                inner = _filled(field.message_type, depth + 1)
                if field.is_repeated:
                    getattr(message, field.name).extend(draw(st.lists(inner, max_size=2)))
                else:
                    getattr(message, field.name).CopyFrom(draw(inner))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=2)))
        else:
            setattr(message, field.name, draw(_scalar(field)))
    return message


def protobuf(kind: type[Message]) -> st.SearchStrategy[bytes]:
    return _filled(kind.DESCRIPTOR).map(lambda message: message.SerializeToString())


# --- JSON ---------------------------------------------------------------------------------------------


def _of(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a field's type in any range, and sometimes of another type."""
    match kind:
        case msgspec.inspect.StructType():
            return _object(kind.cls)
        case msgspec.inspect.VarTupleType():
            return st.lists(_of(kind.item_type), max_size=2)
        case msgspec.inspect.UnionType():
            return st.one_of(*map(_of, kind.types))
        case msgspec.inspect.IntType():
            return st.sampled_from(NUMBERS)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType() | msgspec.inspect.BytesType():
            return st.sampled_from(TEXTS) | texts
        case msgspec.inspect.CustomType() if kind.cls is Id:
            return st.sampled_from(NUMBERS).map(str) | st.sampled_from(("", "-1", "+1", "1_0", "٣", "0" * 20))
        case msgspec.inspect.CustomType() if kind.cls is JsonText:
            return json_things
    return st.none()


@st.composite
def _object(draw: st.DrawFn, kind: type) -> dict[str, Any]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    found: dict[str, Any] = {} if info.tag is None else {str(info.tag_field): info.tag}
    for field in info.fields:
        if field.required or draw(st.booleans()):
            found[field.encode_name] = draw(_of(field.type))
    if draw(st.integers(0, 5)) == 0:
        found[draw(st.sampled_from(sorted(found) or ["x"]))] = draw(json_things)
    return found


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


json_commands = st.sampled_from(AnyCommand.__args__).flatmap(_object).map(_written)
json_frames = (
    st.lists(st.sampled_from(AnyFrame.__args__).flatmap(_object), max_size=3)
    .map(lambda frames: {"frames": frames})
    .map(_written)
)
