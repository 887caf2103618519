"""Delivered and read marks, which only grow. They merge by maximum, so their order does not matter."""

from collections.abc import Iterable, Mapping

from imqtt.model import Marks, Position


def merge(marks: Iterable[Marks], heads: Mapping[str, Position]) -> list[Marks]:
    """One `Marks` for each (conversation, user), in order of first mention.

    Each is bounded by its conversation's head, and read implies delivered. Marks of nothing are left out.
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
