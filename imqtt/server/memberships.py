"""The members of conversations, by one interface for every kind of conversation."""

from collections.abc import Iterable

from imqtt.core.conversations import Members, members_from_ids


class Memberships:
    """The members of a `d:` or `u:` conversation follow from its id: nothing is read, cached or
    invalidated."""

    async def of(self, conversations: Iterable[str]) -> Members:
        """The members of each conversation. Raises `StoreUnreachable`."""
        return members_from_ids(conversations)
