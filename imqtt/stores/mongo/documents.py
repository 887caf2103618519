"""What the MongoDB store writes: collections, documents, indexes, and values to and from them.

Field names are stored in every document, so they are one letter:

    p  partition of the conversation          d  device
    c  conversation                           k  kind of event
    s  seq                                    t  time that the client gave, in milliseconds
    i  id of the event                        h  digest of the content, 16 bytes
    u  user: the sender, member or owner      b  body: the content as JSON text; archived events have none
    m  client_msg_id                         r  register that the event sets; most events set none

An event:

    {_id: ObjectId(...), p: 7, c: "d:alice:bob", s: 42, i: 232465234927616001, u: "alice", d: "phone",
     m: "0198b2...", k: "message", t: 1790000000042, h: BinData(0, ...), b: '{"text":"hello"}'}

The other collections: `members` {u, c, p}; `marks` {c, u, delivered, read}; `devices` {u, d, format,
platform, max_packet, seen}; `meta`, one document {_id: "imqtt", schema, partitions, cluster}, with
{unfinished: true} while it is a copy that is not whole; `servers`, who has the store open (`mongo_claim`).

On a sharded cluster the shard keys are `events` {p, c}, `members` {u}, `marks` {c}, `devices` {u}, all by
range. A shard sees its own documents alone, so MongoDB takes an index for unique there only if it is, or
begins with, the whole shard key; and a hashed index cannot be unique at all (manual, "Shard Key Indexes" and
"Sharded Collections with Unique Indexes"). Both truths of the log therefore begin with {p, c}; so do its
reads, each of which then asks one shard. The partition comes first because appends are sorted by it: a
batch is cut into few runs, each one round trip to one shard, and with a range of partitions to a shard no
chunk is hot, as CRC-32 spreads conversations evenly. `_id` is the server's own: an event's id would not do,
since two owners at once may draw the same.
"""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from imqtt.bodies import decode_body
from imqtt.core.partitions import partition_of
from imqtt.model import Device, DeviceFormat, Event, Id, Marks, Registration
from imqtt.stores.base import Record, RecordRefused
from imqtt.stores.mongo.client import BSONError, Document, RawBSONDocument, encode

SCHEMA_VERSION = 1
META_ID = "imqtt"
MAX_DOCUMENT_BYTES = 16 << 20  # MongoDB's own bound, since always
END = (1 << 63) - 1


class Index(NamedTuple):
    name: str
    key: Mapping[str, int]
    unique: bool = True
    having: str = ""  # the index contains only documents that have this field


BY_SEQ = Index("by_seq", {"p": 1, "c": 1, "s": 1})
BY_KEY = Index("by_key", {"p": 1, "c": 1, "u": 1, "m": 1})
BY_REGISTER = Index("by_register", {"p": 1, "c": 1, "r": 1, "s": 1}, unique=False, having="r")

INDEXES: Mapping[str, tuple[Index, ...]] = {
    "events": (BY_SEQ, BY_KEY, BY_REGISTER),
    # The second is read by a copy of the store alone.
    "members": (Index("by_user", {"u": 1, "c": 1}), Index("by_conversation", {"c": 1, "u": 1}, unique=False)),
    "marks": (Index("by_conversation", {"c": 1, "u": 1}),),
    "devices": (Index("by_device", {"u": 1, "d": 1}),),
}


def event_document(record: Record, partitions: int) -> RawBSONDocument:
    """Encoded already: what cannot be encoded is known before anything is sent. Raises `RecordRefused`."""
    event = record.event
    try:
        document = {
            "p": partition_of(event.conversation, partitions),
            "c": event.conversation,
            "s": event.seq,
            "i": event.id,
            "u": event.sender,
            "d": event.device,
            "m": event.client_msg_id,
            "k": event.kind,
            "t": event.client_time,
            "h": record.digest,
            "b": record.body.decode(),
        }
        if record.register:
            document["r"] = record.register
        encoded = encode(document)
    except (BSONError, OverflowError, UnicodeError) as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error
    if len(encoded) > MAX_DOCUMENT_BYTES:
        raise RecordRefused(f"an event of {len(encoded)} bytes; at most {MAX_DOCUMENT_BYTES}")
    return RawBSONDocument(encoded)


def event_of(document: Document) -> Event:
    """Fields that another version of imqtt leaves out have the defaults; those that it adds are ignored."""
    event_id = Id(document["i"])
    kind = sys.intern(document.get("k", "message"))
    return Event(
        conversation=document["c"],
        seq=document["s"],
        id=event_id,
        time=event_id.time,
        sender=document["u"],
        device=document.get("d", ""),
        client_msg_id=document["m"],
        kind=kind,
        client_time=_int(document.get("t")),
        **decode_body(kind, document.get("b")),
    )


def record_of(document: Document) -> Record:
    body = (document.get("b") or "").encode()
    return Record(event_of(document), body, document["h"], document.get("r", ""))


def marks_of(document: Document) -> Marks:
    return Marks(document["c"], document["u"], _int(document.get("delivered")), _int(document.get("read")))


def device_update(said: Registration | DeviceFormat) -> Document:
    """Of the device's document, which it makes if there is none."""
    seen = {"$max": {"seen": said.seen}}
    if isinstance(said, DeviceFormat):
        return {"$set": {"format": said.format}, "$setOnInsert": {"platform": "", "max_packet": 0}, **seen}
    return {"$set": {"format": said.format, "platform": said.platform, "max_packet": said.max_packet}, **seen}


def registration_of(document: Document) -> Registration:
    return Registration(
        Device(document["u"], document["d"]),
        document.get("format", ""),
        document.get("platform", ""),
        _int(document.get("max_packet")),
        _int(document.get("seen")),  # imqtt 0.1 wrote none
    )


def _int(number: int | None) -> int:
    """A plain int, not the Int64 that a driver makes of it, which JSON does not know; 0 if there is none."""
    return int(number or 0)
