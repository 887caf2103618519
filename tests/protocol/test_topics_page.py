"""topics.md agrees with the code, as far as that can be checked without a server."""

import re
import typing
from collections import Counter

import msgspec
import pytest
from google.protobuf import descriptor, text_format
from google.protobuf.message import Message

from imqtt import errors, model
from imqtt.config import ServerConfig
from imqtt.core.partitions import partition_of
from imqtt.fields import MAX_CONVERSATION, MAX_ID, MAX_SEQ, MIN_PACKET
from imqtt.model import Id
from imqtt.mosquitto.broker import configuration
from imqtt.protocol import Bounds
from imqtt.protocol.check import MAX_MENTIONS
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.json_format import decode_command, decode_frames
from imqtt.protocol.topics import MAX_NAME
from tests.protocol import topics_page

PAGE = topics_page.PAGE.read_text()
EXAMPLES = topics_page.examples(PAGE)
TABLES = list(topics_page.tables(PAGE))

# The section of each table of fields, and the class that it describes.
DESCRIBED: dict[tuple[str, str], tuple[type[msgspec.Struct], type[Message]]] = {
    ("Commands", "hello"): (model.Hello, pb.Hello),
    ("Commands", "send"): (model.Send, pb.Send),
    ("Commands", "recall"): (model.Recall, pb.Recall),
    ("Commands", "Content"): (model.Content, pb.Content),
    ("Commands", "Position"): (model.Position, pb.Position),
    ("Commands", "mark"): (model.Mark, pb.Mark),
    ("Commands", "typing"): (model.Typing, pb.Typing),
    ("Commands", "sync"): (model.Sync, pb.Sync),
    ("Commands", "Cursors"): (model.Cursor, pb.Cursor),
    ("Commands", "history"): (model.History, pb.History),
    ("Commands", "status"): (model.Status, pb.Status),
    ("Frames", "Recall body"): (model.RecallBody, pb.RecallBody),
    ("Frames", "welcome"): (model.Welcome, pb.Welcome),
    ("Frames", "page"): (model.Page, pb.Page),
    ("Frames", "Heads"): (model.Head, pb.Head),
    ("Frames", "Slices"): (model.Slice, pb.Slice),
    ("Frames", "accepted"): (model.Accepted, pb.Accepted),
    ("Frames", "event"): (model.Event, pb.Event),
    ("Frames", "marks"): (model.Marks, pb.Marks),
    ("Frames", "presence"): (model.Presence, pb.Presence),
    ("Frames", "typing"): (model.PeerTyping, pb.PeerTyping),
    ("Frames", "rejected"): (model.Rejected, pb.Rejected),
}

PROTOBUF_TYPES = {
    descriptor.FieldDescriptor.TYPE_STRING: {"text", "json"},
    descriptor.FieldDescriptor.TYPE_BYTES: {"bytes"},
    descriptor.FieldDescriptor.TYPE_BOOL: {"bool"},
    descriptor.FieldDescriptor.TYPE_UINT32: {"int"},
    descriptor.FieldDescriptor.TYPE_UINT64: {"seq", "time"},
    descriptor.FieldDescriptor.TYPE_FIXED64: {"id"},
    descriptor.FieldDescriptor.TYPE_MESSAGE: {
        "content", "cursor", "position", "event", "head", "slice", "marks", "limits",
        "recall body",
    },
}  # fmt: skip


def place(example: topics_page.Example) -> str:
    return example.place


def field_tables() -> dict[tuple[str, str], list[dict[str, str]]]:
    return {
        (table.headings[1], table.headings[-1]): table.rows
        for table in TABLES
        if list(table.rows[0])[:3] == ["field", "#", "type"]
    }


def table_with(*columns: str) -> list[dict[str, str]]:
    (found,) = [table.rows for table in TABLES if list(table.rows[0]) == list(columns)]
    return found


def code(cell: str) -> str:
    return cell.strip("`")


def test_every_command_and_frame_has_its_table() -> None:
    assert set(field_tables()) == set(DESCRIBED)
    named = {described for described, _ in DESCRIBED.values()}
    assert set(typing.get_args(model.AnyCommand)) | set(typing.get_args(model.AnyFrame)) <= named


@pytest.mark.parametrize("section", DESCRIBED, ids=" ".join)
def test_a_table_has_the_fields_numbers_types_and_defaults_of_the_code(section: tuple[str, str]) -> None:
    described, message = DESCRIBED[section]
    rows = field_tables()[section]
    fields = msgspec.structs.fields(described)
    numbers = {field.name: field for field in message.DESCRIPTOR.fields}
    assert sorted(code(row["field"]) for row in rows) == sorted(field.name for field in fields)
    for row in rows:
        name = code(row["field"])
        (field,) = [field for field in fields if field.name == name]
        binary = numbers["stopped" if name == "typing" else name]
        assert int(row["#"]) == binary.number, name
        kind = re.sub(r"list of |\[|\]|\(.*\)", "", row["type"])
        assert kind in PROTOBUF_TYPES[binary.type], name
        assert row["type"].startswith("list of") == binary.is_repeated, name
        assert default_in(row) == default_of(field), name


def default_in(row: dict[str, str]) -> object:
    """The default in a row, as JSON or as a word."""
    return code(row["default"]).strip('"')


def default_of(field: msgspec.structs.FieldInfo) -> object:
    default = field.default
    if msgspec.NODEFAULT is default:
        return ""
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return "[]"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default)


@pytest.mark.parametrize("message", [pb.Command, pb.Frame], ids=["Command", "Frame"])
def test_the_numbers_of_commands_and_frames_are_those_of_the_schema(message: type[Message]) -> None:
    name = f"`{message.DESCRIPTOR.name}`"
    listed = {re.sub(r"\[`(\w+)`\].*", r"\1", row[name]): int(row["#"]) for row in table_with(name, "#")}
    assert listed == {field.name: field.number for field in message.DESCRIPTOR.fields}


def test_the_limits_are_those_of_the_server() -> None:
    rows = {code(row["field"]): row for row in table_with("field", "#", "default", "meaning")}
    config = ServerConfig()
    assert {name: int(row["default"]) for name, row in rows.items()} == {
        "content": config.max_content,
        "command": config.max_command,
        "page": 100,
        "cursors": Bounds().cursors,
        "rate": config.device_rate,
        "presence": config.presence_ttl,
    }
    assert {name: int(row["#"]) for name, row in rows.items()} == {
        field.name: field.number for field in pb.Limits.DESCRIPTOR.fields
    }
    assert config.device_burst == 4 * config.device_rate
    assert (Bounds().content, Bounds().command) == (config.max_content, config.max_command)


def test_the_fixed_limits_are_those_of_the_code() -> None:
    listed = {row["what"]: row["limit"].split()[0] for row in table_with("what", "limit")}
    assert listed["`user@device`"] == str(MAX_NAME)
    assert listed["a conversation's id"] == str(MAX_CONVERSATION)
    assert listed["mentions"] == str(MAX_MENTIONS)
    assert listed["nesting of `json`"] == str(model.MAX_JSON_DEPTH)
    assert listed["`max_packet`"] == str(MIN_PACKET)
    assert (MAX_SEQ, MAX_ID) == (2**53 - 1, 2**63 - 1)


def test_the_errors_are_those_of_the_wire() -> None:
    rows = table_with("code", "retryable", "when", "what to do")
    listed = {code(row["code"]): row["retryable"] == "yes" for row in rows}
    assert listed == {name: error.retryable for name, error in errors.WIRE_ERRORS.items()}


def test_the_worked_partitions_are_correct() -> None:
    rows = table_with("conversation", "CRC-32", "of 16", "of 64")
    for row in rows:
        conversation = code(row["conversation"])
        assert int(row["of 16"]) == partition_of(conversation, 16)
        assert int(row["of 64"]) == partition_of(conversation, 64)
        assert int(row["CRC-32"]) == partition_of(conversation, 1 << 32)


def test_the_pages_statements_about_the_broker_match_its_configuration() -> None:
    configured = (configuration() / "mosquitto.conf").read_text()
    for line in ("max_packet_size 1048576", "max_keepalive 300", "retain_available false"):
        assert line in configured


def test_every_link_within_the_page_has_a_target() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= topics_page.anchors(PAGE)


@pytest.mark.parametrize(
    "example",
    [each for each in EXAMPLES if each.protobuf_text is not None or each.protobuf_hex is not None],
    ids=place,
)
def test_the_protobuf_of_an_example_has_the_same_meaning(example: topics_page.Example) -> None:
    assert example.protobuf_text is not None
    assert example.protobuf_hex is not None
    payload = topics_page.as_protobuf(example)
    assert bytes.fromhex(example.protobuf_hex) == payload
    parsed = text_format.Parse(example.protobuf_text, topics_page.protobuf_message(example))
    assert parsed == type(parsed).FromString(payload)


def test_every_command_and_every_frame_is_shown_in_both_forms() -> None:
    shown: Counter[type] = Counter()
    for example in EXAMPLES:
        if example.protobuf_hex is None:
            continue
        if example.what == "down":
            shown.update(type(frame) for frame in decode_frames(example.payload))
        else:
            shown[type(decode_command(example.payload))] += 1
    assert set(shown) == set(typing.get_args(model.AnyCommand)) | set(typing.get_args(model.AnyFrame))


def test_commands_for_a_partition_go_to_the_correct_one() -> None:
    for example in EXAMPLES:
        if example.what == "up" and example.partition:
            command = decode_command(example.payload)
            user = example.device.partition("@")[0]
            conversation = getattr(command, "conversation", f"u:{user}")
            assert example.partition == partition_of(conversation, 16), example.place


def test_the_times_of_events_are_those_of_their_ids() -> None:
    for found in re.findall(r'"id":"(\d+)","time":(\d+)', re.sub(r"\s", "", PAGE)):
        assert Id(found[0]).time == int(found[1])
