"""The part of the log that a batch of commands is decided against."""

from collections.abc import Mapping

from imqtt.core.conversations import Members
from imqtt.model import Event, Id, Key, Position, Stored

EMPTY = Position(0, Id(0))


class View:
    """The known part of the log, loaded once for a batch. Each decision advances it for the next ones.

    `heads` has each conversation's newest position (absent: empty), `stored` the position and digest of
    keys known to be stored. If any of these is stale, the store's indexes refuse the append, and everything
    is decided again.
    """

    def __init__(self, heads: Mapping[str, Position], stored: Mapping[Key, Stored], members: Members) -> None:
        self._heads = dict(heads)
        self._stored = dict(stored)
        self._members = members

    def head(self, conversation: str) -> Position:
        return self._heads.get(conversation, EMPTY)

    def stored(self, key: Key) -> Stored | None:
        return self._stored.get(key)

    def members(self, conversation: str, user: str) -> tuple[str, ...]:
        """The members, `user` among them. Raises `NotAllowed`, or the conversation's own error."""
        return self._members.check(conversation, user)

    def advance(self, key: Key, event: Event, digest: bytes) -> None:
        """Adds an event that the batch appends."""
        self._heads[event.conversation] = event.position
        self._stored[key] = Stored(event.position, digest)
