"""A conversation as a program displays it: its events folded, with receipts, holes and the outbox.

`KINDS` is the only place that knows how an event of each kind changes a view. An event of another kind has a
place in the log and is not displayed.
"""

from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from imqtt.core.outbox import Entry
from imqtt.core.rules import recall
from imqtt.model import NO_CONTENT, Content, Event, Marks, Position, Send, Value


class Message(Value, frozen=True):
    """A message of a conversation.

    `delivered` and `read` name the members, other than the sender, whose marks have reached it. A `recalled`
    message has no content. `withheld` is as in `Event`.
    """

    position: Position
    time: int  # milliseconds since the Unix epoch
    sender: str
    device: str
    client_msg_id: str
    content: Content
    withheld: int = 0
    recalled: bool = False
    delivered: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


class Hole(Value, frozen=True):
    """Events that the device does not hold yet, from seq `first` to `last`."""

    first: int
    last: int


class ConversationView(Value, frozen=True):
    """A conversation as the device holds it, from seq `first` on.

    `items` are its messages in order, with a `Hole` where events are missing. `pending` are its messages in
    the outbox, in the order of sending; an entry is waiting unless it is `refused`.
    """

    conversation: str
    first: int
    items: tuple[Message | Hole, ...] = ()
    pending: tuple[Entry, ...] = ()


Places = dict[int, Message | None]
"""The message displayed for each event, by seq; None: nothing is displayed."""


def view_of(
    conversation: str,
    events: Iterable[Event],
    *,
    registers: Iterable[Event] = (),
    marks: Iterable[Marks] = (),
    outbox: Iterable[Entry] = (),
    first: int = 1,
    head: int = 0,
) -> ConversationView:
    """The view of a conversation from seq `first` on. `head` is the seq of its newest known event.

    `events` are in order of seq, and so are `registers`: events that change messages and may have no place in
    the view. `outbox` may have entries of other conversations.
    """
    places = fold(events)
    for event in registers:
        if (apply := KINDS.get(event.kind)) is not None:
            apply(places, event)
    members = tuple(marks)
    items: list[Message | Hole] = []
    expected = first
    for seq in sorted(places):
        if seq > expected:
            items.append(Hole(expected, seq - 1))
        if (message := places[seq]) is not None:
            items.append(_with_receipts(message, members))
        expected = seq + 1
    if head >= expected:
        items.append(Hole(expected, head))
    waiting = [entry for entry in outbox if entry.conversation == conversation]
    pending = tuple(entry for entry in waiting if isinstance(entry.command, Send))
    return ConversationView(conversation, first, tuple(items), pending)


def fold(events: Iterable[Event], onto: Places | None = None) -> Places:
    """Folds events, in order of seq, onto the result of folding earlier ones."""
    places = dict(onto or {})
    for event in events:
        places.setdefault(event.seq, None)
        if (apply := KINDS.get(event.kind)) is not None:
            apply(places, event)
    return places


def _message(places: Places, event: Event) -> None:
    places[event.seq] = Message(
        event.position,
        event.time,
        event.sender,
        event.device,
        event.client_msg_id,
        event.content,
        event.withheld,
    )


def _recall(places: Places, event: Event) -> None:
    target = recall.target(event)
    message = None if target is None else places.get(target.seq)
    if message is not None and message.position == target:
        places[target.seq] = replace(message, content=NO_CONTENT, withheld=0, recalled=True)


KINDS: Mapping[str, Callable[[Places, Event], None]] = {"message": _message, "recall": _recall}
"""The function that applies an event of each kind, to its own place and earlier ones."""


def _with_receipts(message: Message, members: tuple[Marks, ...]) -> Message:
    seq = message.position.seq
    others = [marks for marks in members if marks.user != message.sender]
    return replace(
        message,
        delivered=tuple(marks.user for marks in others if max(marks.delivered, marks.read) >= seq),
        read=tuple(marks.user for marks in others if marks.read >= seq),
    )
