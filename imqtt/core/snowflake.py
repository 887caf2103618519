"""Snowflake ids: 41 bits of milliseconds, 10 of partition, 12 of sequence.

An id is an attribute of an event and not its key: uniqueness rests on the store's indexes. Ids must grow
within a conversation, so that `(seq, id)` tells whether two logs are the same, and they tell the time.
Sources: Twitter's Snowflake (2010); Kulkarni et al., "Logical Physical Clocks" (2014), for ids that follow
a clock and never step back with it.
"""

from imqtt.errors import ClockWrong
from imqtt.model import SNOWFLAKE_EPOCH, SNOWFLAKE_TIME_SHIFT, Id

SEQUENCE_BITS = 12
HALF = 1 << (SEQUENCE_BITS - 1)
MAX_SEQUENCE = HALF - 1  # of ids in a row; those beside the row have the other half
MAX_PARTITIONS = 1 << (SNOWFLAKE_TIME_SHIFT - SEQUENCE_BITS)
MAX_TIME = (1 << 41) - 1
RETRY_AFTER = 5_000  # milliseconds: a clock may be set right at any moment


class Snowflake:
    """Draws ids for one partition.

    Ids come in a row that follows the clock. A clock that steps back does not show in it: the row runs on, up
    to `tolerance` milliseconds ahead of the clock.

    When the clock was set back further, or a conversation's last id is ahead of the row, an id is drawn
    beside the row. It has the clock's millisecond, or the one after the conversation's last id if that is
    later, and a sequence number of the upper half. So a clock that was a day ahead delays nothing, and a
    conversation that lies far ahead takes no other along.
    """

    def __init__(self, partition: int, tolerance: int) -> None:
        if not 0 <= partition < MAX_PARTITIONS:
            raise ValueError(f"partition {partition} does not fit into an id: 0 to {MAX_PARTITIONS - 1}")
        self.tolerance = tolerance
        self._low = partition << SEQUENCE_BITS
        self._time = 0
        self._sequence = 0
        self._beside: int | None = None

    def draw(self, now: int, after: int = 0) -> Id:
        """An id greater than `after`, and other than every id drawn before.

        Of ids beside the row, the latter holds for any 2,048 that follow each other; others would have to
        share a millisecond as well. `now` is in milliseconds since the Unix epoch. Raises `ClockWrong` where
        ids cannot tell the time, before 2025 and after 2094.
        """
        clock = now - SNOWFLAKE_EPOCH
        if clock < 1:  # 0 is no id
            raise ClockWrong("the server's clock is before 2025, where ids begin", retry_after=RETRY_AFTER)
        if clock > self._time:
            time, sequence = clock, 0
        elif self._sequence < MAX_SEQUENCE:
            time, sequence = self._time, self._sequence + 1
        else:
            time, sequence = self._time + 1, 0
        drawn = time << SNOWFLAKE_TIME_SHIFT | self._low | sequence
        in_row = time - clock <= self.tolerance and drawn > after
        if not in_row:
            time = max(clock, (after >> SNOWFLAKE_TIME_SHIFT) + 1)
            # The first number depends on when it is drawn: an earlier process began with another one.
            self._beside = (clock if self._beside is None else self._beside + 1) % HALF
            drawn = time << SNOWFLAKE_TIME_SHIFT | self._low | HALF | self._beside
        if time > MAX_TIME:
            raise ClockWrong("the server's clock is after 2094, where ids end", retry_after=RETRY_AFTER)
        if in_row:
            self._time, self._sequence = time, sequence
        return Id(drawn)
