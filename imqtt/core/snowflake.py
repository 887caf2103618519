"""Snowflake ids: 41 bits of milliseconds, 10 of partition, 12 of sequence.

An id is an attribute of an event and not its key: uniqueness rests on the store's indexes. What ids must
do is grow within a conversation, so that `(seq, id)` tells whether two logs are one, and tell the time.
Source: Twitter's Snowflake (2010).
"""

from imqtt.errors import ClockBehind
from imqtt.model import SNOWFLAKE_EPOCH, SNOWFLAKE_TIME_SHIFT, Id

SEQUENCE_BITS = 12
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1
MAX_PARTITIONS = 1 << (SNOWFLAKE_TIME_SHIFT - SEQUENCE_BITS)
MAX_TIME = (1 << 41) - 1
RETRY_AFTER = 5_000  # milliseconds, at most: a clock may be set right at any moment, and nobody waits then


class Snowflake:
    """Draws ids for one partition.

    A clock that steps back does not show: ids run on from the last millisecond. They may run ahead of the
    clock by `tolerance` milliseconds; past that, drawing raises `ClockBehind`.
    """

    def __init__(self, partition: int, tolerance: int) -> None:
        if not 0 <= partition < MAX_PARTITIONS:
            raise ValueError(f"partition {partition} does not fit into an id: 0 to {MAX_PARTITIONS - 1}")
        self._low = partition << SEQUENCE_BITS
        self._tolerance = tolerance
        self._time = 0
        self._sequence = 0

    def draw(self, now: int, after: int = 0) -> Id:
        """An id greater than every id drawn before and than `after`.

        `now` is in milliseconds since the Unix epoch. Raises `ClockBehind`, and draws nothing then: one
        conversation whose last id lies far ahead does not move the others there.
        """
        clock = now - SNOWFLAKE_EPOCH
        if clock > self._time:
            time, sequence = clock, 0
        elif self._sequence < MAX_SEQUENCE:
            time, sequence = self._time, self._sequence + 1
        else:
            time, sequence = self._time + 1, 0
        drawn = time << SNOWFLAKE_TIME_SHIFT | self._low | sequence
        if drawn <= after:
            # Another partition count or owner drew `after`, so its lower bits say nothing: take the next ms.
            time, sequence = (after >> SNOWFLAKE_TIME_SHIFT) + 1, 0
            drawn = time << SNOWFLAKE_TIME_SHIFT | self._low
        ahead = time - clock
        if ahead > self._tolerance:
            raise ClockBehind(
                f"the server's clock is {ahead / 1000:.0f} s behind the last id; try again when it is right",
                retry_after=min(ahead - self._tolerance, RETRY_AFTER),
            )
        if time > MAX_TIME:
            raise ClockBehind("the server's clock is past 2094, where ids end")
        self._time, self._sequence = time, sequence
        return Id(drawn)
