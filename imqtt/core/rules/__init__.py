"""One rule for each command that writes an event. A rule is a module of pure functions."""

from collections.abc import Mapping
from typing import Any, Protocol

from imqtt.bodies import Change
from imqtt.core.effects import Effects
from imqtt.core.rules import recall, send
from imqtt.core.view import Needs, View
from imqtt.model import Device, Event, LogCommand, Recall, Send


class Rule(Protocol):
    """How one kind of command becomes an event."""

    def change(self, command: Any) -> Change:
        """What the command asks for. It tells a duplicate from a conflict."""

    def needs(self, command: Any) -> Needs:
        """What `decide` looks at in the view, beside heads and members."""

    def decide(self, command: Any, by: Device, view: View) -> None:
        """Raises the `ImqttError` that refuses the command."""

    def effects(self, event: Event, view: View) -> Effects:
        """What follows from the event."""


RULES: Mapping[type[LogCommand], Rule] = {Send: send, Recall: recall}
