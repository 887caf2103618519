"""Signals: commands that write no event. A function for each class carries out all of a batch's.

Except `Status`: presence notes it beside the batches (`Presences.hear`).
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imqtt.core.marks import merge
from imqtt.errors import StoreUnreachable, Unavailable
from imqtt.model import Device, Mark, Marks, PeerTyping, Signal, Typing
from imqtt.problems import explain
from imqtt.server.batch import Batch, Rejection, Request
from imqtt.server.problems import Problems
from imqtt.server.rejections import refusal
from imqtt.server.retry import until_known
from imqtt.stores.base import Store


class Notice(NamedTuple):
    """A frame for the members of its conversation, except for one device, or for one user."""

    frame: Marks | PeerTyping
    but: Device | None = None
    but_user: str = ""


class Signalled(NamedTuple):
    """The effects of signals. `rejections`: of a store that takes no writes."""

    notices: Sequence[Notice] = ()
    rejections: Sequence[Rejection] = ()


Function = Callable[[Batch, Sequence[Request[Any]]], Awaitable[Signalled]]


class Signals:
    def __init__(self, store: Store, problems: Problems) -> None:
        self._store = store
        self._problems = problems
        self._functions: Mapping[type[Signal], Function] = {Mark: self._mark, Typing: self._typing}

    def are_in(self, batch: Batch) -> bool:
        return any(type(request.command) in self._functions for request in batch.requests)

    async def carry_out(self, batch: Batch) -> Signalled:
        """Raises `StoreUnreachable`."""
        signalled = Signalled()
        for kind, function in self._functions.items():
            if requests := batch.of(kind):
                notices, rejections = await function(batch, requests)
                signalled = Signalled([*signalled.notices, *notices], [*signalled.rejections, *rejections])
        return signalled

    async def _mark(self, batch: Batch, requests: Sequence[Request[Mark]]) -> Signalled:
        """Raises marks, and tells the members of those that grew.

        An earlier owner, or an attempt with an unknown outcome, may have raised marks and told nobody: those
        are told as well.
        """
        devices: defaultdict[tuple[str, str], set[Device]] = defaultdict(set)
        asked: list[Marks] = []
        for device, mark, *_ in requests:
            devices[mark.conversation, device.user].add(device)
            asked.append(Marks(mark.conversation, device.user, mark.delivered, mark.read))
        try:
            # The heads before this batch: nobody has received its events yet.
            merged = merge(asked, await self._store.heads({marks.conversation for marks in asked}))
            grown, attempts = await until_known(
                "raising marks", lambda _: self._store.raise_marks(merged), self._problems
            )
            if grown:
                self._problems.storing.end_all()
            untold = {(mark.conversation, by.user) for by, mark, _, late in requests if late or attempts > 1}
            untold -= {(marks.conversation, marks.user) for marks in grown}
            if untold:
                found = await self._store.marks({conversation for conversation, _ in untold})
                known = [marks for members in found.values() for marks in members]
                grown += [marks for marks in known if (marks.conversation, marks.user) in untold]
        except StoreUnreachable:
            raise
        except Unavailable as error:
            self._problems.storing.start(explain(error), "marks")
            return Signalled(
                rejections=[refusal(batch, device, mark, error) for device, mark, *_ in requests]
            )
        return Signalled([Notice(marks, _only(devices[marks.conversation, marks.user])) for marks in grown])

    async def _typing(self, _: Batch, requests: Sequence[Request[Typing]]) -> Signalled:
        """Tells the peers the last of each user in each conversation."""
        last = {(typing.conversation, device.user): typing.typing for device, typing, *_ in requests}
        return Signalled([Notice(PeerTyping(*key, typing), but_user=key[1]) for key, typing in last.items()])


def _only(devices: set[Device]) -> Device | None:
    """The only one of these devices. Of several, none knows what all have marked."""
    return next(iter(devices)) if len(devices) == 1 else None
