"""Differences between Mosquitto's releases that clients can observe."""

from typing import Final, NamedTuple


class Release(NamedTuple):
    """A release of Mosquitto. 2.0.11 and 2.1.2 were tested; those in between follow its change log."""

    version: tuple[int, ...]

    @property
    def keeps_receive_maximum(self) -> bool:
        """Whether a PUBACK releases one message instead of several up to the Receive Maximum."""
        return self.version >= (2, 0, 13)

    @property
    def counts_in_flight(self) -> bool:
        """Whether `max_queued_messages` limits the sum of messages in flight and queued."""
        return self.version < (2, 1)

    @property
    def tells_of_takeover(self) -> bool:
        """Whether a connection that is taken over gets a DISCONNECT with 0x8E."""
        return self.version >= (2, 1)

    @property
    def saves_without_expiry(self) -> bool:
        """Whether mosquitto.db contains sessions without an expiry, which end with their connection."""
        return self.version < (2, 1)

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


DEBIAN: Final = Release((2, 0, 11))
CURRENT: Final = Release((2, 1, 2))
RELEASES: Final = (DEBIAN, CURRENT)
