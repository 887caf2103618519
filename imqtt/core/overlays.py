"""Overlays: registers that change how an earlier message is shown.

A page holds only a part of the log, and the event that sets a register may lie beyond it. So the server
applies overlays to the events of a page, and adds the events that set them where the page does not hold them:
each part of the log shows a message as the whole log does.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from imqtt.core.rules import recall
from imqtt.model import NO_CONTENT, Event, Position


class Overlay(NamedTuple):
    """The change that events of one kind make to the message that is their `target`."""

    register: Callable[[int], str]
    """The register's name, by the message's seq."""
    target: Callable[[Event], Position | None]
    show: Callable[[Event], Event]
    """The message as it is shown once the register is set."""


OVERLAYS = {"recall": Overlay(recall.register, recall.target, recall.show)}

Registers = Mapping[tuple[str, str], Event]
"""The events that set registers, by (conversation, register)."""


def registers_of(events: Iterable[Event]) -> list[tuple[str, str]]:
    """The registers that may change how these events are shown."""
    return [
        (event.conversation, overlay.register(event.seq))
        for event in events
        if event.kind == "message"
        for overlay in OVERLAYS.values()
    ]


def overlaid(event: Event, registers: Registers) -> tuple[Event, list[Event]]:
    """The event as it is shown, and the events that change it."""
    changes: list[Event] = []
    if registers and event.kind == "message":
        for overlay in OVERLAYS.values():
            change = registers.get((event.conversation, overlay.register(event.seq)))
            if change is not None and overlay.target(change) == event.position:
                changes.append(change)
                event = overlay.show(event)
    return event, changes


def target_of(event: Event) -> Position | None:
    """The message that an event changes, if it changes one."""
    overlay = OVERLAYS.get(event.kind)
    return None if overlay is None else overlay.target(event)


def register_of(event: Event, target: Position) -> str:
    """The register that an event with this target sets."""
    return OVERLAYS[event.kind].register(target.seq)


def registers_by_name(events: Iterable[Event]) -> Registers:
    """The registers that these events set."""
    return {
        (event.conversation, register_of(event, target)): event
        for event in events
        if (target := target_of(event)) is not None
    }


def counts_as_unread(event: Event) -> bool:
    """Whether a user has something to read: a message that is not recalled."""
    return event.kind == "message" and (event.content != NO_CONTENT or event.withheld > 0)
