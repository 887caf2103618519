"""Mutations of JSON text: of one value in it, or of its tokens."""

import json
import re
from random import Random
from typing import Any, Final

from tests.verification.fuzz.boundary_values import NUMBERS, TEXTS, TYPES

FIELDS: Final = (
    "type", "conversation", "client_msg_id", "content", "client_time", "text", "data", "json", "content_type",
    "reply_to", "mentions", "seq", "id", "nonce", "platform", "max_packet", "cursors", "ref", "heads",
    "heads_before", "before", "limit", "state", "network", "battery", "delivered", "read", "typing", "frames",
    "events", "slices", "latest", "marks", "more", "restart", "missing", "history", "sender", "device",
    "time", "kind", "withheld", "previous", "limits", "partitions", "code", "reason", "retry_after", "x",
)  # fmt: skip


def json_value(data: bytes, random: Random) -> bytes:
    """One value is removed, doubled, nested, or replaced by another type or by one from elsewhere."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return json_tokens(data, random)
    places = list(_places(value))
    if not places:
        return _dumps(_other(value, random), random)
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder[key:key] = [holder[key]] * random.choice((1, 1, 3, 100))
        case 1:
            holder[random.choice(FIELDS)] = holder[key]
        case 2:
            donor, from_key = random.choice(places)
            holder[key] = json.loads(json.dumps(donor[from_key]))
        case 3 if isinstance(holder, dict):
            holder[random.choice(FIELDS)] = _other(holder[key], random)
        case _:
            holder[key] = _other(holder[key], random)
    return _dumps(value, random)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            for key in keys:
                found.append((holder, key))
                waiting.append(holder[key])
    return found


def _other(value: Any, random: Random) -> Any:
    match random.randrange(10):
        case 0:
            return [value]
        case 1:
            return {random.choice(FIELDS): value}
        case 2:
            return random.choice((None, True, False, 1.5, 1e16, -0.0, [], {}, 1e308))
        case 3 | 4:
            return random.choice(NUMBERS)
        case 5:
            return str(random.choice(NUMBERS))
        case 6:
            return random.choice(TYPES)
        case 7 if isinstance(value, str):
            return value + random.choice(TEXTS)
        case 8 if isinstance(value, int):
            return value + random.choice((-1, 1))
        case 9:
            for _ in range(random.choice((3, 30, 31, 32))):
                value = [value]
            return value
    return random.choice(TEXTS)


def _dumps(value: Any, random: Random) -> bytes:
    # Lone surrogates are written escaped or as invalid UTF-8.
    text = json.dumps(
        value, ensure_ascii=random.random() < 0.5, separators=random.choice(((",", ":"), (", ", ": ")))
    )
    return text.encode(errors="surrogatepass")


_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)
_PUT: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b" ", b"\n", b"null", b"true", b"0", b"-0", b"1e5", b"1E+400",
    b"-", b"01", b"NaN", b"\xff", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\ud83d\\ude42"', b'"\\u0000"',
    b'"type":', b'"ref":"r"', b'"type":"send",', b"/**/",
)  # fmt: skip


def json_tokens(data: bytes, random: Random) -> bytes:
    """Tokens are removed, doubled or swapped: duplicate keys, missing values, unmatched brackets."""
    tokens = _TOKEN.findall(data) or [b"{"]
    at = random.randrange(len(tokens))
    match random.randrange(5):
        case 0:
            del tokens[at]
        case 1:
            end = at + random.choice((1, 2, 4))
            tokens[at:at] = tokens[at:end]
        case 2:
            other = random.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        case 3:
            tokens.insert(at, random.choice(_PUT))
        case _:
            tokens[at] = random.choice(_PUT)
    return b"".join(tokens)
