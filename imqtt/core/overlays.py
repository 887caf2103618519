"""Overlays: registers that change how an earlier message is shown.

A page holds only a part of the log, and the event that sets a register may lie beyond it. So the server
applies overlays to the events of a page, and adds the events that set them where the page does not hold them:
each part of the log shows a message as the whole log does.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from imqtt.model import Event


class Overlay(NamedTuple):
    """`register` names the register of the message at a seq; `show` changes the message by the event."""

    register: Callable[[int], str]
    show: Callable[[Event, Event], Event]


OVERLAYS: tuple[Overlay, ...] = ()

Registers = Mapping[tuple[str, str], Event]
"""The events that set registers, by (conversation, register)."""


def registers_of(events: Iterable[Event]) -> list[tuple[str, str]]:
    """The registers that may change how these events are shown."""
    return [
        (event.conversation, overlay.register(event.seq))
        for event in events
        if event.kind == "message"
        for overlay in OVERLAYS
    ]


def overlaid(event: Event, registers: Registers) -> tuple[Event, list[Event]]:
    """The event as it is shown, and the events that change it."""
    changes: list[Event] = []
    if registers and event.kind == "message":
        for overlay in OVERLAYS:
            change = registers.get((event.conversation, overlay.register(event.seq)))
            if change is not None:
                changes.append(change)
                event = overlay.show(event, change)
    return event, changes
