"""Hypothesis strategies for valid commands and frames."""

import json
import string

from hypothesis import strategies as st

from imqtt import model
from imqtt.fields import MAX_ID, MAX_SEQ, MIN_PACKET
from imqtt.model import Id, JsonText, Position, canonical_json

names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=62)
users = names.map(str)
tokens = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=64)
refs = st.just("") | tokens
labels = st.text(max_size=64).filter(str.isprintable)
seqs = st.integers(0, MAX_SEQ)
times = st.integers(0, MAX_SEQ)
ids = st.integers(0, MAX_ID).map(Id)
conversations = st.builds("d:{}:{}".format, names, names) | st.builds("u:{}".format, names)
positions = st.builds(Position, seqs, ids)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _json_text(value: object) -> JsonText:
    return canonical_json(json.loads(json.dumps(value)))


json_texts = json_values.filter(lambda value: value is not None).map(_json_text)
content_types = st.sampled_from(["text/plain", "image/png", "application/octet-stream", "x/é"])
_around = {
    "reply_to": st.none() | positions,
    "mentions": st.lists(users, max_size=3).map(tuple),
}
contents = (
    st.builds(
        model.Content,
        text=st.text(min_size=1),
        content_type=st.just("") | content_types,
        **_around,
    )
    | st.builds(model.Content, data=st.binary(min_size=1), content_type=content_types, **_around)
    | st.builds(
        model.Content,
        json=json_texts,
        content_type=st.just("") | content_types,
        **_around,
    )
)

cursors = st.lists(st.builds(model.Cursor, conversations, seqs, ids), max_size=4).map(tuple)
counts = st.integers(0, (1 << 32) - 1)
sizes = st.just(0) | st.integers(MIN_PACKET, 268_435_455)
states = st.sampled_from(model.PRESENCE_STATES)

sends = st.builds(model.Send, conversations, tokens, contents, times)
commands = (
    sends
    | st.builds(model.Recall, conversations, tokens, positions, times)
    | st.builds(model.Hello, tokens, labels, sizes, cursors, refs)
    | st.builds(model.Mark, conversations, seqs, seqs)
    | st.builds(model.Typing, conversations, st.booleans())
    | st.builds(model.Sync, cursors, st.booleans(), ids, refs)
    | st.builds(model.History, conversations, seqs, counts, refs)
    | st.builds(model.Status, states, tokens, labels, st.none() | st.integers(0, 100))
)

_beginnings = (conversations, seqs, ids, times, users, names, tokens)
_endings = (times, counts, ids)
messages = st.builds(
    model.Event, *_beginnings, contents | st.just(model.Content()), st.just("message"), *_endings
)
recalls = st.builds(
    model.Event,
    *_beginnings,
    st.just(model.Content()),
    st.just("recall"),
    *_endings,
    st.builds(model.RecallBody, positions),
)
events = messages | recalls | st.builds(model.Event, *_beginnings, contents, tokens, *_endings)
marks = st.builds(model.Marks, conversations, users, seqs, seqs)
heads = st.builds(
    model.Head, conversations, seqs, ids, st.none() | events, st.lists(marks, max_size=3).map(tuple)
)
slices = st.builds(
    model.Slice,
    conversations,
    st.lists(events, max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "start", "archived", "before_joined"]),
    st.booleans(),
    st.lists(recalls, max_size=2).map(tuple),
)
limits = st.builds(model.Limits, counts, counts, counts, counts, counts, counts)
frames = (
    events
    | marks
    | st.builds(model.Welcome, tokens, users, names, times, counts, limits, refs)
    | st.builds(model.Accepted, conversations, tokens, seqs, ids, times, ids)
    | st.builds(
        model.Rejected, tokens, st.text(), st.booleans(), labels, st.text(), st.text(), refs, counts, counts
    )
    | st.builds(
        model.Page,
        refs,
        st.lists(heads, max_size=3).map(tuple),
        ids,
        st.lists(slices, max_size=3).map(tuple),
        st.booleans(),
    )
    | st.builds(model.Presence, users, states, times)
    | st.builds(model.PeerTyping, conversations, users, st.booleans())
)
