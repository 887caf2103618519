"""A token bucket, which limits how much a device may send.

Levels are counted in thousandths of a token, so that a rate of r tokens a second adds r of them each
millisecond and the arithmetic is exact. Source: RFC 2697, section 3, of whose two buckets this is the first.
"""

from typing import NamedTuple


class Bucket(NamedTuple):
    """`level` is in thousandths of a token, as it was at `time`, in milliseconds."""

    level: int
    time: int


class Rate(NamedTuple):
    """`per_second` tokens a second, sustained, and `burst` tokens at once."""

    per_second: int
    burst: int

    @property
    def full(self) -> int:
        return self.burst * 1_000

    def refill(self, bucket: Bucket, now: int) -> Bucket:
        """The bucket at `now`. If the clock stepped back, no tokens are added."""
        gained = max(now - bucket.time, 0) * self.per_second
        return Bucket(min(bucket.level + gained, self.full), now)

    def take(self, bucket: Bucket, wanted: int, now: int) -> tuple[Bucket, int]:
        """The bucket after taking up to `wanted` tokens at `now`, and the number taken."""
        level = self.refill(bucket, now).level
        taken = min(wanted, level // 1_000)
        return Bucket(level - taken * 1_000, now), taken
