"""Model values as text for a terminal."""

from datetime import datetime

from imqtt.core import conversations
from imqtt.model import NO_CONTENT, AnyLogCommand, Content, Event, Recall, Send
from imqtt.printable import printable


def conversation_with(user: str, to: str) -> str:
    """As in `core`, but also raises `Invalid` or `Unsupported` for an id of no conversation."""
    conversation = conversations.conversation_with(user, to)
    conversations.members_of(conversation)
    return conversation


def peer_of(user: str, conversation: str) -> str:
    """The other member of a conversation; empty for a user's own."""
    return next((member for member in conversations.members_of(conversation) if member != user), "")


def words_of(event: Event) -> str:
    """An event as text."""
    if event.recall is not None:
        return f"[recalls message {event.recall.target.seq}]"
    if event.withheld:
        return f"[{event.withheld} bytes, more than this device accepts]"
    if event.content == NO_CONTENT:
        return "[recalled]" if event.kind == "message" else f"[{printable(event.kind)}]"
    return words_of_content(event.content)


def words_of_command(command: AnyLogCommand) -> str:
    """A command in the outbox as text."""
    if isinstance(command, Recall):
        return f"[recalls message {command.target.seq}]"
    return words_of_content(command.content) if isinstance(command, Send) else f"[{command.name}]"


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
    """How long ago `time` was, in its largest unit. Both in milliseconds."""
    seconds = max(now - time, 0) // 1000
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
