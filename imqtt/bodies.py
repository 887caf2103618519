"""The bodies of events, one class for each kind, and the form in which stores keep them.

`kind` is the tag of the union. Each body has a field of `Event` that carries it, in both wire formats.
"""

import logging
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from imqtt.model import Content, JsonText, RecallBody, Value, json_decoder, to_json_type

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
_decoders = {kind: json_decoder(body.cls) for kind, body in BODIES.items()}


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


def decode_body(kind: str, encoded: str | None) -> dict[str, Any]:
    """The field of `Event` that carries a stored body.

    Empty if the body is archived, or its kind or form is unknown. Clients still count such an event, and the
    store's row keeps the body.
    """
    known = BODIES.get(kind)
    if known is None or not encoded:
        return {}
    try:
        if known.cls is Content and '"json":' in encoded:
            # Parsing 64 KiB of JSON takes 10 ms, and a page is selected from a hundred messages.
            return {known.field: _stored_content.decode(encoded).whole()}
        return {known.field: _decoders[kind].decode(encoded)}
    except msgspec.MsgspecError as error:
        _warn(str(error))
        return {}


@lru_cache(maxsize=16)  # each error is logged once
def _warn(error: str) -> None:
    log.warning("an event is shown without its content, which this version of imqtt does not know: %s", error)
