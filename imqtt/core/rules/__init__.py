"""One rule for each command that writes an event. A rule is a module of pure functions."""

from collections.abc import Mapping
from typing import Any, Protocol

from imqtt.bodies import BODIES, Change
from imqtt.core.effects import Effects
from imqtt.core.rules import recall, send
from imqtt.core.view import EMPTY, Needs, View
from imqtt.model import AnyLogCommand, Device, Event, Id, LogCommand, Position, Recall, Send


class Rule(Protocol):
    """How one kind of command becomes an event."""

    def change(self, command: Any) -> Change:
        """The change that the command asks for, which tells a duplicate from a conflict."""

    def needs(self, command: Any) -> Needs:
        """The parts of the view that `decide` reads, beside heads and members."""

    def decide(self, command: Any, by: Device, view: View) -> None:
        """Raises the `ImqttError` that refuses the command."""

    def effects(self, event: Event, view: View) -> Effects:
        """The event's effects beside its row."""


RULES: Mapping[type[LogCommand], Rule] = {Send: send, Recall: recall}


def change_of(command: AnyLogCommand) -> Change:
    """The change that a command asks for. Repeating a client_msg_id with another change is a conflict."""
    return RULES[type(command)].change(command)


def event_of(
    sender: Device, command: AnyLogCommand, change: Change, position: Position, previous: Id = EMPTY.id
) -> Event:
    """The event that makes a command's change, at this position of the log."""
    body: dict[str, Any] = {BODIES[change.kind].field: change.body}
    return Event(
        command.conversation, position.seq, position.id, position.id.time, sender.user, sender.device,
        command.client_msg_id, kind=change.kind, client_time=command.client_time, previous=previous, **body,
    )  # fmt: skip
