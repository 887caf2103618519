"""`recall`: the sender of a message takes it back, once.

The message keeps its place in the log. Its content is no longer shown, and the store keeps it.
"""

from msgspec.structs import replace

from imqtt.bodies import Change
from imqtt.core.effects import for_all_members as effects
from imqtt.core.view import Needs, View
from imqtt.errors import AlreadyRecalled, NotAllowed, NotFound
from imqtt.model import Content, Device, Event, Position, Recall, RecallBody

__all__ = ["change", "decide", "effects", "needs", "register", "show", "target"]


def register(seq: int) -> str:
    """The register that is set once the message at `seq` is recalled."""
    return f"recall:{seq}"


def change(command: Recall) -> Change:
    return Change("recall", RecallBody(command.target), register(command.target.seq))


def needs(command: Recall) -> Needs:
    conversation, seq = command.conversation, command.target.seq
    return Needs(events=((conversation, seq),), registers=((conversation, register(seq)),))


def decide(command: Recall, by: Device, view: View) -> None:
    conversation, place = command.conversation, command.target
    message = view.event(conversation, place.seq)
    if message is None or message.position != place or message.kind != "message":
        raise NotFound(f"there is no message with seq {place.seq} and id {place.id} in this conversation")
    if message.sender != by.user:
        raise NotAllowed(f"only {message.sender} may recall this message")
    if (before := view.register(conversation, register(place.seq))) is not None:
        raise AlreadyRecalled(f"the message was recalled at seq {before.seq}")


def target(event: Event) -> Position | None:
    """The message that a recall takes back."""
    return None if event.recall is None else event.recall.target


def show(message: Event) -> Event:
    """The message as it is shown once it is recalled."""
    return replace(message, content=Content(), withheld=0)
