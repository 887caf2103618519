"""The kind of a conversation, and the members of all but groups, both from its id."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from imqtt.core.partitions import home_of
from imqtt.errors import ImqttError, Invalid, NotAllowed, Unsupported

_USER = re.compile(r"[A-Za-z0-9._-]{1,62}")


@lru_cache(maxsize=65_536)
def members_of(conversation: str) -> tuple[str, ...]:
    """The members of a direct conversation, or the owner of a user's own.

    Raises `Invalid` for a malformed id, and `Unsupported` for a group, which this version does not serve.
    """
    kind, _, rest = conversation.partition(":")
    users = tuple(rest.split(":"))
    if kind == "g":
        raise Unsupported("this server has no groups")
    if not all(map(_USER.fullmatch, users)) or len(users) != {"d": 2, "u": 1}.get(kind):
        raise Invalid("a conversation is d:{user}:{user} or u:{user}, of letters, digits, '.', '_' and '-'")
    if kind == "d" and users[0] >= users[1]:
        if users[0] == users[1]:
            raise Invalid(f"a direct conversation has two users; notes to self go to u:{users[0]}")
        raise Invalid(f"write the user ids in sorted order: d:{users[1]}:{users[0]}")
    return users


def conversation_with(user: str, name: str) -> str:
    """The conversation of `user` with the user `name`, perhaps themselves; or `name` if it is an id.

    Raises `Invalid` for any other text. Whether an id is valid is not checked.
    """
    if ":" in name:
        return name
    if _USER.fullmatch(name) is None:
        raise Invalid(f"{name!r} is neither a user nor a conversation")
    return home_of(user) if name == user else "d:" + ":".join(sorted((user, name)))


class Members:
    """The members of some conversations, or the error of an id that is malformed or unsupported."""

    def __init__(self, found: Mapping[str, tuple[str, ...] | ImqttError]) -> None:
        self._found = found

    def of(self, conversation: str) -> tuple[str, ...]:
        """The conversation's members. Raises its error."""
        found = self._found[conversation]
        if isinstance(found, ImqttError):
            raise found
        return found

    def check(self, conversation: str, user: str) -> tuple[str, ...]:
        """The conversation's members, `user` among them. Raises `NotAllowed`, or its error."""
        members = self._found[conversation]
        if isinstance(members, ImqttError):
            raise members
        if user not in members:
            raise NotAllowed(f"{user} is not in this conversation")
        return members

    def include(self, conversation: str, user: str) -> bool:
        """Whether `user` is in a conversation that exists."""
        found = self._found[conversation]
        return not isinstance(found, ImqttError) and user in found


def members_from_ids(conversations: Iterable[str]) -> Members:
    found: dict[str, tuple[str, ...] | ImqttError] = {}
    for conversation in conversations:
        try:
            found[conversation] = members_of(conversation)
        except ImqttError as error:
            found[conversation] = error
    return Members(found)
