"""The effects of an event beside its row in the log."""

from typing import NamedTuple

from imqtt.core.view import View
from imqtt.model import Event


class Effects(NamedTuple):
    """`members`: (user, conversation) rows to write before the event."""

    members: tuple[tuple[str, str], ...] = ()


NONE = Effects()


def for_all_members(event: Event, view: View) -> Effects:
    """The first event of a conversation writes the rows of its members."""
    if event.seq > 1:
        return NONE
    return Effects(
        tuple((user, event.conversation) for user in view.members(event.conversation, event.sender))
    )
