"""Raising marks, and telling the members of a conversation about those that grew."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from imqtt.core.marks import merge
from imqtt.errors import StoreUnreachable, Unavailable
from imqtt.model import Device, Mark, Marks
from imqtt.problems import explain
from imqtt.server.batch import Request
from imqtt.server.problems import Problems
from imqtt.server.retry import until_known
from imqtt.stores.base import Store


class Raised(NamedTuple):
    """Marks to be told to the conversation's members, except to the device that knows them already."""

    marks: Marks
    but: Device | None


class MarkRaiser:
    def __init__(self, store: Store, problems: Problems) -> None:
        self._store = store
        self._problems = problems

    async def raise_all(self, marked: Sequence[Request[Mark]]) -> tuple[Sequence[Raised], Unavailable | None]:
        """Returns the marks that grew, and the error of a store that takes no writes.

        An earlier owner, or an attempt with an unknown outcome, may have raised marks and told nobody: those
        are returned as well. Raises `StoreUnreachable`.
        """
        if not marked:
            return (), None
        devices: defaultdict[tuple[str, str], set[Device]] = defaultdict(set)
        asked: list[Marks] = []
        for device, mark, *_ in marked:
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
            untold = {(mark.conversation, by.user) for by, mark, _, again in marked if again or attempts > 1}
            untold -= {(marks.conversation, marks.user) for marks in grown}
            if untold:
                found = await self._store.marks({conversation for conversation, _ in untold})
                known = [marks for members in found.values() for marks in members]
                grown += [marks for marks in known if (marks.conversation, marks.user) in untold]
        except StoreUnreachable:
            raise
        except Unavailable as error:
            self._problems.storing.start(explain(error), "marks")
            return (), error
        return [Raised(marks, _only(devices[marks.conversation, marks.user])) for marks in grown], None


def _only(devices: set[Device]) -> Device | None:
    """The only one of these devices. Of several, none knows what all have marked."""
    return next(iter(devices)) if len(devices) == 1 else None
