"""Delivered and read marks: registers that only grow. Merging is the maximum, so order does not matter."""

from collections.abc import Iterable, Mapping

from imqtt.model import Marks, Position


def merge(marks: Iterable[Marks], heads: Mapping[str, Position]) -> list[Marks]:
    """One register pair per (conversation, user), in order of first mention.

    Each is bounded by its conversation's head, and read implies delivered. What marks nothing is left out.
    """
    merged: dict[tuple[str, str], Marks] = {}
    for mark in marks:
        head = heads[mark.conversation].seq if mark.conversation in heads else 0
        read = min(mark.read, head)
        delivered = max(min(mark.delivered, head), read)
        key = (mark.conversation, mark.user)
        if (before := merged.get(key)) is not None:
            delivered, read = max(delivered, before.delivered), max(read, before.read)
        if delivered:
            merged[key] = Marks(mark.conversation, mark.user, delivered, read)
    return list(merged.values())
