"""Size and time of imqtt's messages as JSON, XML and protobuf."""

import timeit
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.traffic import text_of
from imqtt.model import AnyCommand, AnyFrame, Content, Event, Id, Send
from imqtt.protocol import (
    Bounds,
    Format,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    join,
)

SIZES = (200, 1_024)  # characters of text
REPEATS = 5
BOUNDS = Bounds()


class Row(NamedTuple):
    """One message in one format; sizes in bytes, times in microseconds."""

    message: str
    text: int
    format: str
    size: int
    encode_us: float
    decode_us: float


def send(size: int) -> Send:
    return Send("d:alice:bob", "01JD9K2QXW8Z", Content(text_of(size)), client_time=1_790_000_000_000)


def event(size: int) -> Event:
    return Event(
        conversation="d:alice:bob", seq=123_456, id=Id(229_000_000_000_000_123), time=1_790_000_000_123,
        sender="alice", device="phone", client_msg_id="01JD9K2QXW8Z", content=Content(text_of(size)),
        client_time=1_790_000_000_000,
    )  # fmt: skip


def measure(seconds: float) -> list[Row]:
    """All rows, each timed for about `seconds` in each direction."""
    rows = []
    for size in SIZES:
        for message in (send(size), event(size)):
            for name, encode, decode in _formats(message):
                encoded = encode()
                if decode(encoded) != message:
                    raise AssertionError(f"{message} was decoded as {decode(encoded)}")
                rows.append(
                    Row(
                        type(message).__name__, size, name, len(encoded),
                        _time(encode, seconds), _time(lambda: decode(encoded), seconds),  # noqa: B023 - now
                    )
                )  # fmt: skip
    return rows


Codec = tuple[str, Callable[[], bytes], Callable[[bytes], Any]]


def _formats(message: Send | Event) -> list[Codec]:
    decode = _decoder(message)
    return [
        ("json", lambda: _encode(message, Format.JSON), decode),
        ("xml", lambda: _to_xml(message), lambda raw: _from_xml(raw, type(message))),
        ("protobuf", lambda: _encode(message, Format.PROTOBUF), decode),
    ]


def _encode(message: AnyCommand | AnyFrame, format: Format) -> bytes:
    """As sent: an event is in a packet of frames."""
    if isinstance(message, Event):
        return join([encode_frame(message, format)], format)
    assert isinstance(message, Send)
    return encode_command(message, format)


def _decoder(message: Send | Event) -> Callable[[bytes], Any]:
    if isinstance(message, Event):
        return lambda raw: decode_frames(raw)[0]
    return lambda raw: decode_command(raw, BOUNDS)


def _to_xml(message: Send | Event) -> bytes:
    """The fields of the JSON form as elements."""
    root = ET.Element("send" if isinstance(message, Send) else "event")
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, Content):
            ET.SubElement(ET.SubElement(root, name), "text").text = value.text
        elif value and value != "message":
            ET.SubElement(root, name).text = str(value)
    return ET.tostring(root)


def _from_xml(raw: bytes, wanted: type[Send] | type[Event]) -> Send | Event:
    fields: dict[str, Any] = {}
    for element in ET.fromstring(raw):
        if element.tag == "content":
            fields["content"] = {"text": element.findtext("text")}
        else:
            fields[element.tag] = element.text
    content = Content(fields.pop("content")["text"])
    for name in ("seq", "time", "client_time"):
        if name in fields:
            fields[name] = int(fields[name])
    if "id" in fields:
        fields["id"] = Id(fields["id"])
    return wanted(content=content, **fields)


def _time(work: Callable[[], object], seconds: float) -> float:
    """Microseconds per call: the best of several rounds, because disturbances only add time."""
    timer = timeit.Timer(work)
    warm = min(timer.repeat(3, 20)) / 20
    rounds = max(1, int(seconds / REPEATS / warm))
    return round(min(timer.repeat(REPEATS, rounds)) / rounds * 1e6, 2)
