"""How values of the model read in a terminal. What others wrote moves no cursor and changes no colour."""

import re
from datetime import datetime
from unicodedata import category, east_asian_width

from imqtt.core.conversations import members_of
from imqtt.errors import Invalid
from imqtt.model import Content, Event


def conversation_with(user: str, to: str) -> str:
    """The conversation that `to` means for `user`: another user's name, one's own, or a conversation's id.

    Raises `Invalid` or `Unsupported`.
    """
    if ":" in to:
        members_of(to)
        return to
    from imqtt.protocol.topics import is_name  # its package loads protobuf, and completion waits

    if not is_name(to):
        raise Invalid(f"{to!r} is neither a user nor a conversation")
    if to == user:
        return f"u:{user}"
    return "d:" + ":".join(sorted((user, to)))


def peer_of(user: str, conversation: str) -> str:
    """Who else is in it; empty for a user's own."""
    return next((member for member in members_of(conversation) if member != user), "")


def printable(text: str) -> str:
    """`text` on its lines, without the characters that a terminal would obey."""
    return "\n".join("".join(map(_printable, line)) for line in text.replace("\r\n", "\n").split("\n"))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\N{ZERO WIDTH JOINER}":  # which joins emoji
        return character
    if category(character) == "Zs" or character == "\t":
        return " "
    return "\N{REPLACEMENT CHARACTER}"


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes: most of East Asia's characters take two, accents none."""
    return sum(
        0 if category(it) in ("Mn", "Me", "Cf") else 2 if east_asian_width(it) in "FW" else 1 for it in text
    )


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words where that is possible."""
    lines = [""]
    for word in re.findall(r" *[^ ]+| +$", text):
        room = width - columns(lines[-1])
        if columns(word) <= room:
            lines[-1] += word
            continue
        rest = word.lstrip(" ") if lines[-1] else word
        if lines[-1]:
            lines.append("")
        while columns(rest) > width:
            cut = _fitting(rest, width)
            lines[-1] = rest[:cut]
            lines.append("")
            rest = rest[cut:]
        lines[-1] = rest
    return lines


def _fitting(text: str, width: int) -> int:
    """How many of `text`'s characters fit into `width` columns, at least one."""
    taken = 0
    for number, character in enumerate(text):
        taken += columns(character)
        if taken > width:
            return max(number, 1)
    return len(text)


def words_of(event: Event) -> str:
    """What an event says, in text."""
    if event.withheld:
        return f"[{event.withheld} bytes, more than this device takes]"
    return words_of_content(event.content)


def words_of_content(content: Content) -> str:
    if content.text is not None:
        return printable(content.text)
    if content.json is not None:
        return printable(content.json)
    if content.data is not None:
        return f"[{printable(content.content_type)}, {len(content.data)} bytes]"
    return "[nothing]"


def local(time: int) -> datetime:
    """Milliseconds since the epoch as this machine's local time."""
    return datetime.fromtimestamp(time / 1000).astimezone()


def clock(time: int) -> str:
    return f"{local(time):%H:%M}"


def day(time: int) -> str:
    return f"{local(time):%A} {local(time).day} {local(time):%B %Y}"


def since(time: int, now: int) -> str:
    """How long ago, in the unit that a person would take. Both in milliseconds."""
    seconds = max(now - time, 0) // 1000
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
