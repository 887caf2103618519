from imqtt.core.presence import of_user
from imqtt.model import Presence


def test_a_user_has_the_state_of_the_most_active_device() -> None:
    assert of_user("a", [("offline", 5), ("background", 3), ("away", 4)]) == Presence("a", "away", 5)


def test_an_unknown_state_of_a_newer_version_counts_as_online() -> None:
    assert of_user("a", [("away", 4), ("invisible", 5)]) == Presence("a", "online", 5)
    assert of_user("a", [("invisible", 5)]) == Presence("a", "online", 5)


def test_a_user_without_devices_is_offline() -> None:
    assert of_user("a", []) == Presence("a", "offline", 0)
