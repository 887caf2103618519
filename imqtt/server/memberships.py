"""The members of conversations of every kind. Every stage and every read asks here."""

from collections.abc import Iterable

from imqtt.core.conversations import Members, members_from_ids


async def members_of(conversations: Iterable[str]) -> Members:
    """The members of each conversation. Those of `d:` and `u:` follow from the id: nothing is read."""
    return members_from_ids(conversations)
