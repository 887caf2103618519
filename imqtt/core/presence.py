"""A user's presence, derived from the presence of their devices."""

from collections.abc import Iterable

from imqtt.model import PRESENCE_STATES, Presence

_RANKS = {state: rank for rank, state in enumerate(PRESENCE_STATES)}


def of_user(user: str, devices: Iterable[tuple[str, int]]) -> Presence:
    """The most active state of any device. `devices`: each device's state and its start, in milliseconds.

    An unknown state counts as online, as it does for clients: a newer server on the same Redis may have
    written it. `last_seen` is the latest change of any device; for an offline user, the time at which they
    left.
    """
    liveliest, last_seen = _RANKS["offline"], 0
    for state, since in devices:
        liveliest = min(liveliest, _RANKS.get(state, 0))
        last_seen = max(last_seen, since)
    return Presence(user, PRESENCE_STATES[liveliest], last_seen)
