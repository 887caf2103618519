"""A conversation's id says what kind it is and, unless it is a group, who its members are."""

from functools import lru_cache

from imqtt.errors import Invalid, NotAllowed, Unsupported


@lru_cache(maxsize=65_536)
def members_of(conversation: str) -> tuple[str, ...]:
    """The members of a direct conversation, or the owner of a user's own.

    Raises `Invalid` for an id that is none, `Unsupported` for a group: this version serves none.
    """
    kind, _, rest = conversation.partition(":")
    users = tuple(rest.split(":"))
    if kind == "g":
        raise Unsupported("this server has no groups")
    if not all(map(_is_user, users)) or len(users) != {"d": 2, "u": 1}.get(kind):
        raise Invalid("a conversation is d:{user}:{user} or u:{user}, of letters, digits, '.', '_' and '-'")
    if kind == "d" and users[0] >= users[1]:
        raise Invalid(_hint(*users))
    return users


def check_member(conversation: str, user: str) -> tuple[str, ...]:
    """The members, `user` among them. Raises `NotAllowed` otherwise, and what `members_of` raises."""
    members = members_of(conversation)
    if user not in members:
        raise NotAllowed(f"{user} is not in this conversation")
    return members


def _is_user(name: str) -> bool:
    return (
        0 < len(name) <= 62
        and name.isascii()
        and name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum()
    )


def _hint(first: str, second: str) -> str:
    if first == second:
        return f"a direct conversation has two users; notes to self go to u:{first}"
    return f"write the user ids in sorted order: d:{second}:{first}"
