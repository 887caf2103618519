"""`send`: any member may append a message."""

from imqtt.bodies import Change
from imqtt.core.effects import for_all_members as effects
from imqtt.core.view import View
from imqtt.model import Device, Send

__all__ = ["change", "decide", "effects"]


def change(command: Send) -> Change:
    return Change("message", command.content)


def decide(command: Send, by: Device, view: View) -> None:
    """Membership is all that it takes, and every command's is checked."""
