"""What follows from an event beside its row in the log."""

from typing import NamedTuple

from imqtt.core.view import View
from imqtt.model import Event


class Effects(NamedTuple):
    """`members`: (user, conversation) rows to write before the event. `audience`: the users who are told."""

    members: tuple[tuple[str, str], ...] = ()
    audience: tuple[str, ...] = ()


def for_all_members(event: Event, view: View) -> Effects:
    """Tells the members. The first event of a conversation writes their rows."""
    members = view.members(event.conversation)
    rows = tuple((user, event.conversation) for user in members) if event.seq == 1 else ()
    return Effects(rows, members)
