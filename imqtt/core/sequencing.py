"""Decides a batch of log commands: each is appended at the next seq, known already, or refused.

The decision reads nothing itself: it is given a view of the log. If the view is stale, the store's
indexes refuse the append, and the caller decides again with a new view.
"""

from collections.abc import Callable, Sequence

import msgspec

from imqtt.bodies import Change
from imqtt.core.effects import Effects
from imqtt.core.rules import RULES, change_of, event_of
from imqtt.core.view import Needs, View
from imqtt.errors import Conflict, ImqttError, RateLimited
from imqtt.model import AnyLogCommand, Device, Event, Id, Key, Position, Stored


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A received log command, with the change it asks for, the encoded body and the digest of both.

    `again`: an earlier owner of the partition may have stored it and told nobody.
    """

    sender: Device
    command: AnyLogCommand
    key: Key
    change: Change
    body: bytes
    digest: bytes
    partition: int = 0
    again: bool = False


class Append(msgspec.Struct, frozen=True, gc=False):
    """Append this event. `previous` is the id of the event before it; 0: there is none.

    `previous` is not part of the event, since it is sent to devices and not stored: the store has the event
    before it.
    """

    incoming: Incoming
    event: Event
    previous: Id
    effects: Effects


class Known(msgspec.Struct, frozen=True, gc=False):
    """The command's event is stored at `position`, or earlier in the same batch.

    `untold`: an attempt with an unknown outcome stored it, so nobody has been told of it.
    """

    incoming: Incoming
    position: Position
    untold: bool = False


class Refuse(msgspec.Struct, frozen=True):
    """Reject the command with this error.

    The garbage collector has to look at it: an error's traceback can lead to a frame that holds the decision.
    """

    incoming: Incoming
    error: ImqttError


Decision = Append | Known | Refuse


def receive(sender: Device, command: AnyLogCommand, partition: int = 0, *, again: bool = False) -> Incoming:
    """Encodes the body once, for the digest and for the store."""
    change = change_of(command)
    body = change.encode()
    key = Key(command.conversation, sender.user, command.client_msg_id)
    return Incoming(sender, command, key, change, body, change.digest(body), partition, again)


def needs_of(incoming: Incoming) -> Needs:
    """The parts of the view that the command's rule reads."""
    return RULES[type(incoming.command)].needs(incoming.command)


def decide(
    batch: Sequence[Incoming],
    view: View,
    draw: Callable[[int, int], Id],
    admit: Callable[[Device], bool],
) -> list[Decision]:
    """One decision per command, in order; each advances the view for those that follow.

    `draw` gives a partition's next id, greater than the given one; `admit` takes a token of the device's
    rate. Duplicates are detected before permission and rate are checked: an accepted command stays accepted.
    """
    decisions: list[Decision] = []
    for incoming in batch:
        stored = view.stored(incoming.key)
        if stored is not None:
            decisions.append(duplicate(incoming, stored))
            continue
        command, sender = incoming.command, incoming.sender
        rule = RULES[type(command)]
        try:
            view.members(command.conversation, sender.user)
            if not admit(sender):
                raise RateLimited("more messages a second than this device may send", retry_after=1_000)
            rule.decide(command, sender, view)
            head = view.head(command.conversation)
            position = Position(head.seq + 1, draw(incoming.partition, head.id))
        except ImqttError as error:
            # A traceback would hold this list in a cycle.
            decisions.append(Refuse(incoming, error.with_traceback(None)))
            continue
        event = event_of(sender, command, incoming.change, position)
        view.advance(incoming.key, Stored(position, incoming.digest), event, incoming.change.register)
        decisions.append(Append(incoming, event, head.id, rule.effects(event, view)))
    return decisions


def duplicate(incoming: Incoming, stored: Stored) -> Decision:
    """The answer to a command whose key is stored: `Known`, or a conflict if the change is another one."""
    if stored.digest == incoming.digest:
        return Known(incoming, stored.position)
    seq = stored.position.seq
    error = Conflict(f"this client_msg_id was used for another change, at seq {seq}; draw a new one")
    return Refuse(incoming, error)
