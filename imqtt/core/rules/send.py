"""`send`: any member may append a message."""

from imqtt.bodies import Change
from imqtt.core.effects import for_all_members as effects
from imqtt.core.view import NOTHING, Needs, View
from imqtt.model import Device, Send

__all__ = ["change", "decide", "effects", "needs"]


def change(command: Send) -> Change:
    return Change("message", command.content)


def needs(command: Send) -> Needs:
    return NOTHING


def decide(command: Send, by: Device, view: View) -> None:
    """Refuses nothing: that the sender is a member is checked for every command."""
