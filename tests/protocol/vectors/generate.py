"""Writes the golden vectors; without --write, checks that the committed ones are current."""

import json
import sys
from pathlib import Path

import msgspec

from imqtt.core.partitions import partition_of
from imqtt.errors import ImqttError
from imqtt.model import (
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Cursor,
    Event,
    Head,
    Hello,
    History,
    Id,
    JsonText,
    Limits,
    Mark,
    Marks,
    Page,
    PeerTyping,
    Position,
    Presence,
    Recall,
    RecallBody,
    Rejected,
    Send,
    Slice,
    Status,
    Sync,
    Typing,
    Welcome,
)
from imqtt.protocol import Bounds, Format, decode_command, encode_command, encode_frame, identify, join
from imqtt.protocol.generated import imqtt_pb2 as pb

HERE = Path(__file__).parent
BOUNDS = Bounds(content=64, command=1024, cursors=2)
MAX_SEQ = (1 << 53) - 1
MAX_ID = Id((1 << 63) - 1)

Entry = dict[str, object]

FIRST = Id(133_859_535_487_025_152)
SECOND = Id(133_859_559_063_207_936)


def _send(content: Content, name: str = "m1") -> Send:
    return Send("d:alice:bob", name, content)


COMMANDS: dict[str, AnyCommand] = {
    "hello, with nothing": Hello("n1"),
    "hello, with everything": Hello(
        "n1", "ios 18.2", 65_536, (Cursor("d:alice:bob", 2, SECOND), Cursor("u:alice")), "r1"
    ),
    "send text": _send(Content(text="Hello, Bob!")),
    "send text beyond ASCII": _send(Content(text='🙂 "é"\\ \n\t\u0000\u2028')),
    "send with a time, a reply and mentions": Send(
        "d:alice:bob",
        "m1",
        Content(text="yes", reply_to=Position(1, FIRST), mentions=("bob", "carol")),
        1_767_604_199_880,
    ),
    "send typed text": _send(Content(text="# Title", content_type="text/markdown")),
    "send data": _send(Content(data=bytes(range(251, 256)), content_type="application/octet-stream")),
    "send JSON": _send(Content(json=JsonText('{"a":[1,-2.5,true,null],"é":{}}'))),
    "send JSON that is false": _send(Content(json=JsonText("false"))),
    "send JSON with the outermost integers": _send(
        Content(json=JsonText("[-9223372036854775808,9223372036854775807]"))
    ),
    "send to oneself": Send("u:alice", "!~", Content(text="milk")),
    "recall": Recall("d:alice:bob", "m2", Position(1, FIRST), 1_767_604_199_880),
    "recall, the greatest position": Recall("u:alice", "m2", Position(MAX_SEQ, MAX_ID)),
    "mark": Mark("d:alice:bob", 3, 2),
    "mark, the greatest seq": Mark("d:alice:bob", MAX_SEQ, MAX_SEQ),
    "mark nothing": Mark("d:alice:bob"),
    "typing": Typing("d:alice:bob"),
    "typing no more": Typing("d:alice:bob", typing=False),
    "sync nothing": Sync(),
    "sync": Sync((Cursor("d:alice:bob", 2, SECOND), Cursor("u:alice", 0)), ref="r1"),
    "sync heads": Sync(heads=True, heads_before=SECOND, ref="r1"),
    "sync, the greatest id": Sync((Cursor("d:alice:bob", MAX_SEQ, MAX_ID),)),
    "history, the newest": History("d:alice:bob"),
    "history": History("d:alice:bob", 101, 20, "r1"),
    "status": Status("away", "n1"),
    "status, with everything": Status("background", "n1", "wifi", 80),
    "status, battery empty": Status("online", "n1", battery=0),
    "status, the last will": Status("offline", "n1"),
}


def _send_json(content: str, before: str = "", after: str = "") -> str:
    names = '"type":"send","conversation":"d:alice:bob","client_msg_id":"m1"'
    return f'{{{before}{names},"content":{content}{after}}}'


CONVERSATION, NAME, CONTENT = (
    "0a0b643a616c6963653a626f62", "12026d31", "1a0d0a0b48656c6c6f2c20426f6221",
)  # fmt: skip

# Other payloads with the same meaning: order, spacing, escapes, defaults, and fields of a later version.
ALSO: dict[str, Entry] = {
    "send text": {
        "also_json": [
            (
                '{ "content" : {"text":"Hello, Bob!"}, "client_msg_id":"m1",\n'
                ' "conversation":"d:alice:bob",\t"type":"send"}\n'
            ),
            _send_json('{"text":"\\u0048ello, Bob!","data":null,"mentions":[]}', after=',"client_time":0'),
            _send_json('{"font":3,"text":"Hello, Bob!"}', before='"mood":["x",{}],'),
        ],
        "also_protobuf": [
            "0a23" + CONVERSATION + NAME + CONTENT + "a00601" + "f80603",
            "0a22" + NAME + CONTENT + CONVERSATION + "2000",
        ],
    },
    "send text beyond ASCII": {
        "also_json": [
            _send_json('{"text":"\\ud83d\\ude42 \\"\\u00e9\\"\\\\ \\n\\t\\u0000\\u2028"}'),
        ]
    },
    "send JSON": {"also_json": [_send_json('{"json": { "a" : [1, -25e-1, true, null], "\\u00e9": {} }}')]},
    "mark nothing": {
        "also_json": ['{"type":"mark","conversation":"d:alice:bob","delivered":0,"read":0}'],
        "also_protobuf": ["12110a0b643a616c6963653a626f6210001800"],
    },
    "typing": {"also_json": ['{"type":"typing","conversation":"d:alice:bob","typing":true}']},
    "sync nothing": {"also_json": ['{"type":"sync","cursors":[],"heads":false,"heads_before":"0","ref":""}']},
    "status": {"also_json": ['{"type":"status","state":"away","nonce":"n1","battery":null}']},
}

_HELLO = Event(
    "d:alice:bob", 1, FIRST, FIRST.time, "alice", "phone", "m1", Content(text="Hello, Bob!"),
    client_time=1_767_604_199_880,
)  # fmt: skip
_ANSWER = Event(
    "d:alice:bob", 2, SECOND, SECOND.time, "bob", "phone", "m1",
    Content(json=JsonText('{"ok":true}'), reply_to=Position(1, FIRST), mentions=("alice",)),
)  # fmt: skip
_RECALL = Event(
    "d:alice:bob", 3, SECOND, SECOND.time, "alice", "phone", "m2", kind="recall",
    recall=RecallBody(Position(1, FIRST)),
)  # fmt: skip
_RECALLED = msgspec.structs.replace(_HELLO, content=Content())
_MARKS = Marks("d:alice:bob", "alice", 2, 1)

FRAMES: dict[str, tuple[AnyFrame, ...]] = {
    "welcome": (
        Welcome(
            "n1", "alice", "phone", 1_767_604_200_000, 16,
            Limits(65_536, 262_144, 100, 1_000, 1_000, 300), "r1",
        ),
    ),
    "accepted": (Accepted("d:alice:bob", "m1", 1, FIRST, FIRST.time),),
    "accepted, behind another event": (Accepted("d:alice:bob", "m2", 2, SECOND, SECOND.time, FIRST),),
    "accepted, the greatest numbers": (Accepted("d:alice:bob", "m1", MAX_SEQ, MAX_ID, MAX_SEQ),),
    "accepted, behind the greatest id": (Accepted("d:alice:bob", "m1", MAX_SEQ, MAX_ID, MAX_SEQ, MAX_ID),),
    "rejected": (
        Rejected(
            "conflict", "used for other content", command="send", conversation="d:alice:bob",
            client_msg_id="m1",
        ),
    ),
    "rejected, retryable": (
        Rejected("busy", "too many reads", retryable=True, command="sync", ref="r1", retry_after=5_000),
    ),
    "rejected, and others like it": (
        Rejected(
            "rate_limited", "too fast", retryable=True, command="send", conversation="d:alice:bob",
            client_msg_id="m50", retry_after=1_000, omitted=170,
        ),
    ),
    "rejected, a command without a name": (Rejected("malformed", "an empty payload"),),
    "event": (_HELLO,),
    "event with data": (
        Event(
            "u:alice", 7, SECOND, SECOND.time, "alice", "laptop", "m9",
            Content(data=b"\x00\xff", content_type="image/png"),
        ),
    ),
    "event with JSON": (_ANSWER,),
    "event behind another event": (msgspec.structs.replace(_ANSWER, previous=FIRST),),
    "event withheld": (
        Event("u:alice", 8, SECOND, SECOND.time, "alice", "phone", "m8", Content(), withheld=70_000),
    ),
    "event of another kind": (
        Event("u:alice", 9, SECOND, SECOND.time, "alice", "phone", "m7", Content(text="x"), kind="edit"),
    ),
    "recall": (_RECALL,),
    "page of history, with a recalled message": (
        Page("r1", slices=(Slice("d:alice:bob", (_RECALLED,), history=True, registers=(_RECALL,)),)),
    ),
    "marks": (_MARKS,),
    "presence": (Presence("bob", "online", 1_767_604_231_500),),
    "presence, never seen": (Presence("bob", "offline"),),
    "typing": (PeerTyping("d:alice:bob", "bob"),),
    "typing no more": (PeerTyping("d:alice:bob", "bob", typing=False),),
    "page with nothing": (Page(),),
    "page": (
        Page(
            "r1",
            (Head("d:alice:bob", 2, SECOND, _ANSWER, (_MARKS,)), Head("u:alice", 1, FIRST)),
            FIRST,
            (Slice("d:alice:bob", (_HELLO, _ANSWER), more=True, missing="start"),),
            more=True,
        ),
    ),
    "page that restarts a conversation": (Page("r1", slices=(Slice("d:alice:bob", restart=True),)),),
    "page of history": (
        Page("r1", slices=(Slice("d:alice:bob", (_HELLO,), missing="start", history=True),)),
    ),
    "several frames": (
        Accepted("d:alice:bob", "m1", 1, FIRST, FIRST.time), _ANSWER, PeerTyping("d:alice:bob", "bob"),
    ),
    "no frames": (),
}  # fmt: skip

ALSO_FRAMES: dict[str, Entry] = {
    "accepted": {
        "also_json": [
            (
                '{"frames":[{"type":"accepted","conversation":"d:alice:bob","client_msg_id":"m1","seq":1,'
                f'"id":"{FIRST:d}","time":{FIRST.time},"previous":"0"}}]}}'
            )
        ],
    },
    "typing": {
        "also_json": [
            (
                '{"frames":[{"type":"dance","steps":[1,2]},'
                '{"type":"typing","conversation":"d:alice:bob","user":"bob","device":"phone"}]}'
            )
        ],
        "also_protobuf": ["0a03a206000a143a120a0b643a616c6963653a626f621203626f62"],
    },
}

PARTITIONS = {
    "d:alice:bob": (1, 16, 64), "u:alice": (16, 64), "u:bob": (16, 64), "d:Zoe:adam": (16, 64),
    "d:a.b:c_d-e": (16, 64, 1024), "u:0": (16,), "123456789": (16, 1 << 32),
}  # fmt: skip


def _json(text: str) -> Entry:
    return {"json": text}


def _hex(payload: bytes) -> Entry:
    return {"hex": payload.hex()}


def _text(content: str, conversation: str = "d:alice:bob", name: str = "m1") -> Entry:
    return _json(
        f'{{"type":"send","conversation":"{conversation}","client_msg_id":"{name}","content":{content}}}'
    )


def _pb_send(content: pb.Content, **changed: int) -> Entry:
    send = pb.Send(conversation="d:alice:bob", client_msg_id="m1", content=content, **changed)
    return _hex(pb.Command(send=send).SerializeToString())


REJECTED: dict[str, Entry] = {
    "nothing": _hex(b""),
    "text": _hex(b"hello"),
    "a byte order mark": _hex(b'\xef\xbb\xbf{"type":"sync"}'),
    "a space before JSON": _json(' {"type":"sync"}'),
    "an array": _json('[{"type":"sync"}]'),
    "JSON cut off": _json('{"type":"mark","conversation":"d:alice:bob"'),
    "two objects": _json('{"type":"sync"}{"type":"sync"}'),
    "no type": _json('{"conversation":"d:alice:bob"}'),
    "an unknown type": _json('{"type":"dance","ref":"r1"}'),
    "an unknown protobuf command": _hex(b"\xa2\x06\x00"),
    "truncated protobuf": _hex(bytes.fromhex("0a230a0b643a616c6963653a626f6212026d311a0d0a0b48656c6c")),
    "no conversation": _json('{"type":"mark","read":1}'),
    "a number for a text": _json('{"type":"mark","conversation":5,"read":1}'),
    "null for a number": _json('{"type":"mark","conversation":"d:alice:bob","read":null}'),
    "a fraction for an integer": _json('{"type":"mark","conversation":"d:alice:bob","read":1.0}'),
    "a negative seq": _json('{"type":"mark","conversation":"d:alice:bob","read":-1}'),
    "a seq past 2^53": _json('{"type":"mark","conversation":"d:alice:bob","read":9007199254740992}'),
    "a seq past 64 bits": _json('{"type":"mark","conversation":"d:alice:bob","read":18446744073709551616}'),
    "an id that is a number": _json(
        '{"type":"sync","ref":"r1","cursors":[{"conversation":"u:a","seq":1,"id":1}]}'
    ),
    "an id past 63 bits": _json('{"type":"sync","ref":"r1","heads_before":"9223372036854775808"}'),
    "an id past 63 bits, protobuf": _hex(
        pb.Command(sync=pb.Sync(ref="r1", heads_before=1 << 63)).SerializeToString()
    ),
    "a conversation beyond ASCII": _text('{"text":"x"}', "d:alice:bób"),
    "a conversation with a space": _text('{"text":"x"}', "d:alice: bob"),
    "an empty conversation": _text('{"text":"x"}', ""),
    "an empty client_msg_id": _text('{"text":"x"}', name=""),
    "a client_msg_id of 65 characters": _text('{"text":"x"}', name="x" * 65),
    "a client_msg_id with a space": _text('{"text":"x"}', name="a b"),
    "no content": _text("{}"),
    "no content, protobuf": _pb_send(pb.Content()),
    "empty text": _text('{"text":""}'),
    "empty text, protobuf": _pb_send(pb.Content(text="")),
    "JSON null": _text('{"json":null}'),
    "JSON null, protobuf": _pb_send(pb.Content(json="null")),
    "text and JSON": _text('{"text":"x","json":1}'),
    "data without a type": _text('{"data":"AA=="}'),
    "data that is not base64": _text('{"data":"???","content_type":"x/y"}'),
    "content beyond the limit": _text('{"text":"' + "é" * 33 + '"}'),
    "a command beyond the limit": _text('{"text":"x"}', name="x" * 1_000),
    "a mention that is no user": _text('{"text":"x","mentions":["a b"]}'),
    "a lone surrogate": _text('{"text":"\\ud83d"}'),
    "a lone surrogate in JSON": _text('{"json":{"\\ude42":1}}'),
    "a lone surrogate in JSON, protobuf": _pb_send(pb.Content(json='"\\ud83d"')),
    "not UTF-8": _hex(
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"m1","content":{"text":"\xff"}}'
    ),
    "not UTF-8, protobuf": _hex(bytes.fromhex("0a050a03ff6162")),
    "JSON nested 33 deep": _text('{"json":' + "[" * 33 + "]" * 33 + "}"),
    "JSON nested 33 deep, protobuf": _pb_send(pb.Content(json="[" * 33 + "]" * 33)),
    "an integer past 64 bits in JSON": _text('{"json":9223372036854775808}'),
    "a number that is infinite": _text('{"json":1e999}'),
    "a number that is none": _text('{"json":NaN}'),
    "JSON that is none, protobuf": _pb_send(pb.Content(json="{")),
    "a client_time past 2^53": _pb_send(pb.Content(text="x"), client_time=1 << 53),
    "too many cursors": _json(
        '{"type":"sync","ref":"r1","cursors":[{"conversation":"u:a"},{"conversation":"u:b"},{"conversation":"u:c"}]}'
    ),
    "no nonce": _json('{"type":"hello"}'),
    "an empty nonce": _json('{"type":"hello","nonce":""}'),
    "a packet that is too small": _json('{"type":"hello","nonce":"n1","max_packet":1023}'),
    "a state that is none": _json('{"type":"status","nonce":"n1","state":"asleep"}'),
    "a battery of 101": _json('{"type":"status","nonce":"n1","state":"online","battery":101}'),
}


def vectors() -> dict[str, str]:
    """Each file's name and text."""
    commands = [
        {
            "name": name,
            "json": encode_command(command, Format.JSON).decode(),
            "protobuf": encode_command(command, Format.PROTOBUF).hex(),
            **ALSO.get(name, {}),
        }
        for name, command in COMMANDS.items()
    ]
    frames = [
        {
            "name": name,
            "json": _packet(packet, Format.JSON).decode(),
            "protobuf": _packet(packet, Format.PROTOBUF).hex(),
            **ALSO_FRAMES.get(name, {}),
        }
        for name, packet in FRAMES.items()
    ]
    partitions = [
        {
            "conversation": conversation,
            "crc32": partition_of(conversation, 1 << 32),
            "partitions": count,
            "partition": partition_of(conversation, count),
        }
        for conversation, counts in PARTITIONS.items()
        for count in counts
    ]
    rejected = [_rejected(name, entry) for name, entry in REJECTED.items()]
    bounds = {"content": BOUNDS.content, "command": BOUNDS.command, "cursors": BOUNDS.cursors}
    return {
        "commands.json": _text_of(commands),
        "frames.json": _text_of(frames),
        "partitions.json": _text_of(partitions),
        "rejected.json": _text_of({"limits": bounds, "rejected": rejected}),
    }


def _packet(frames: tuple[AnyFrame, ...], format: Format) -> bytes:
    return join([encode_frame(frame, format) for frame in frames], format)


def payload_of(entry: Entry) -> bytes:
    """The published bytes: `json` as UTF-8, or `hex`."""
    if "json" in entry:
        return str(entry["json"]).encode()
    return bytes.fromhex(str(entry["hex"]))


def _rejected(name: str, entry: Entry) -> Entry:
    payload = payload_of(entry)
    try:
        decode_command(payload, BOUNDS)
    except ImqttError as error:
        named = dict(zip(("command", "conversation", "client_msg_id", "ref"), identify(payload), strict=True))
        readable = {key: value for key, value in named.items() if value}
        return {"name": name, **entry, "code": error.code, "retryable": error.retryable, "named": readable}
    raise AssertionError(f"{name} is not refused")


def _text_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    for name, text in vectors().items():
        if "--write" in sys.argv:
            (HERE / name).write_text(text)
        elif (HERE / name).read_text() != text:
            sys.exit(f"{name} is outdated: if the protocol was meant to change, run with --write")


if __name__ == "__main__":
    main()
