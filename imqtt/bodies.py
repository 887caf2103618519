"""The bodies of events, one class for each kind, and the form in which stores keep them.

`kind` is the tag of the union. Each body has a field of `Event` that carries it, in both wire formats.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from sys import intern
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from imqtt.model import (
    NO_CONTENT,
    Content,
    Event,
    Id,
    JsonText,
    RecallBody,
    Value,
    json_decoder,
    to_json_type,
)

log = logging.getLogger(__name__)

Body = Content | RecallBody
DIGEST_SIZE = 16  # bytes


class BodyType(NamedTuple):
    """How events of a kind carry their body."""

    cls: type[Value]
    field: str  # of `Event`


BODIES: Mapping[str, BodyType] = {
    "message": BodyType(Content, "content"),
    "recall": BodyType(RecallBody, "recall"),
}

_encode = msgspec.json.Encoder(enc_hook=to_json_type).encode
_decode = {kind: json_decoder(body.cls).decode for kind, body in BODIES.items()}


class _StoredContent(Content, frozen=True):
    """A content whose `json` is not parsed: it was checked before it was stored."""

    json: msgspec.Raw = msgspec.Raw()  # type: ignore[assignment]  # `whole` has it as `Content` does

    def whole(self) -> Content:
        json = JsonText(bytes(self.json).decode()) or None
        return Content(self.text, self.data, self.content_type, json, self.reply_to, self.mentions)


_stored_content = json_decoder(_StoredContent)


class Change(msgspec.Struct, frozen=True, gc=False):
    """An event's change: its kind and body, and the register of the conversation that it sets, if any."""

    kind: str
    body: Body
    register: str = ""

    def encode(self) -> bytes:
        """The body as canonical JSON text in UTF-8, as stores keep it."""
        return _encode(self.body)

    def digest(self, encoded: bytes) -> bytes:
        """Tells whether two changes are the same, from the encoded body, the kind and the register.

        A message's is that of its content alone, as it was before there were other kinds.
        """
        if self.kind == "message":
            return blake2b(encoded, digest_size=DIGEST_SIZE).digest()
        tagged = b"\0".join((self.kind.encode(), self.register.encode(), encoded))
        return blake2b(tagged, digest_size=DIGEST_SIZE).digest()


def stored_event(conversation: str, row: Sequence[Any]) -> Event:
    """The event of a stored row: seq, id, sender, device, client_msg_id, body, kind and client_time."""
    seq, number, sender, device, client_msg_id, encoded, kind, client_time = row
    event_id = Id(number)
    body = decode_body(kind, encoded)
    content = body if isinstance(body, Content) else NO_CONTENT
    # By position, which takes half the time.
    event = Event(
        conversation, seq, event_id, event_id.time, sender, device, client_msg_id, content, intern(kind),
        client_time,
    )  # fmt: skip
    return event if body is None or body is content else replace(event, **{BODIES[kind].field: body})


def decode_body(kind: str, encoded: str | None) -> Body | None:
    """A stored body.

    None if the body is archived, or its kind or form is unknown. Clients still count such an event, and the
    store's row keeps the body.
    """
    if not encoded or kind not in BODIES:
        return None
    try:
        if kind == "message" and '"json":' in encoded:
            # Parsing 64 KiB of JSON takes 10 ms, and a page is selected from a hundred messages.
            content: Content = _stored_content.decode(encoded).whole()
            return content
        body: Body = _decode[kind](encoded)
    except msgspec.MsgspecError as error:
        _warn(str(error))
        return None
    return body


@lru_cache(maxsize=16)  # each error is logged once
def _warn(error: str) -> None:
    log.warning("an event is shown without its content, which this version of imqtt does not know: %s", error)
