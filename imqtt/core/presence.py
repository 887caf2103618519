"""A user's presence, from that of his devices."""

from collections.abc import Iterable

from imqtt.model import PRESENCE_STATES, Presence


def of_user(user: str, devices: Iterable[tuple[str, int]]) -> Presence:
    """The liveliest state of any device. `devices` has each one's state and since when (milliseconds).

    `last_seen` is the latest change of any device: for a user who is offline, when he left.
    """
    state, last_seen = "offline", 0
    for device_state, since in devices:
        if PRESENCE_STATES.index(device_state) < PRESENCE_STATES.index(state):
            state = device_state
        last_seen = max(last_seen, since)
    return Presence(user, state, last_seen)
