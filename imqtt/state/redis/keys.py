"""imqtt's keys in Redis: their names and lifetimes, with the reasons.

All begin with `imqtt:` and the cluster's id, so clusters may share a Redis with each other and with other
programs. Every key expires. Any key may be missing at any time: Redis may evict keys
(`maxmemory-policy allkeys-lru` is suitable), be wiped, or be restored from an older copy.

Times are milliseconds, as for `PEXPIRE`. Memory, measured with Redis 7.0, at 10,000 messages a second from
100,000 users with two devices each, one of which is present:

    seen        3 x 8 MiB              24 MiB, at any rate
    devices     100,000 x 215 bytes    22 MB
    presence    100,000 x 360 bytes    36 MB, with the sorted set; 170 bytes for a user who left today
    buckets     100,000 x 240 bytes    24 MB, if all of them sent in the last ten seconds
"""

from imqtt.model import Device

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# --- seen: a Bloom filter per period (B. Bloom, "Space/time trade-offs in hash coding with allowable errors",
# 1970). The last two are queried.
#
# A duplicate usually arrives within seconds: a device that got no `Accepted` sends again, and a broker
# redelivers the unacknowledged packets of a dead worker. So a key is kept for 2 to 4 minutes. After that the
# store's index finds it, at the cost of one refused append.
#
# A set of digests was tried: at 72 bytes a key it takes 86 MB a period at this rate, and Redis blocks for 270
# ms when the set expires. The filter has a fixed size and is freed at once. With 1.2 million keys in 2^26
# bits, 3 bits each, 5.2 % of the bits are set: 0.014 % of the new keys are false positives in each filter,
# and cost a lookup in the store. At 100,000 messages a second it would be 7 %, at 1,000 nothing.
SEEN_PERIOD = 2 * MINUTE
SEEN_TTL = 2 * SEEN_PERIOD  # after the last write; as long as it is queried
SEEN_BITS = 1 << 26
SEEN_DIGEST = 12  # bytes: three 32-bit numbers, each naming a bit

# --- devices: a user's device list, or a mark that it was forgotten.
#
# A list is stale if `forget_devices` was lost, until the live workers notice that a worker died or Redis was
# away, and if Redis was restored from an older copy. Until then a new device receives no live events; its own
# `Sync` returns them.
LIST_TTL = 10 * MINUTE
LEASE_TTL = 1 * MINUTE  # from reading the store to filling the cache
FORGOTTEN_TTL = 2 * LEASE_TTL  # outlives every older lease
LISTS_TTL = 1 * HOUR  # when the clock of leases is lost, all leases become invalid

# --- presence: a hash of each user's devices, and one sorted set with the time at which each expires.
#
# A command that keeps a device present changes only the sorted set. So the hash of a present user has to last
# until the device's next `Hello` or `Status`; 30 days of one connection are enough. After the last device has
# left, the hash is kept for a day: it tells when the user was last seen, and which last wills are outdated.
PRESENT_TTL = 30 * DAY
OFFLINE_TTL = 1 * DAY

# --- buckets: kept until they would be full, plus a margin for clocks that differ.
BUCKET_SLACK = 10 * SECOND
# A time that is behind the bucket's by at most this comes from another worker's clock, and the bucket's time
# stays: otherwise a device that alternates between two workers would gain the difference each time. If it is
# further behind, the clock was set back.
CLOCK_SKEW = 5 * SECOND

# --- workers: one hash; each entry contains its own expiry.
WORKERS_TTL = 1 * HOUR
# An entry with a later expiry was written while Redis's clock was ahead. Without this bound, a worker that
# died since would count as alive until the clock caught up. Ten times the largest `worker_ttl`.
LONGEST_BEAT = 10 * MINUTE

# --- probe: written to check whether Redis accepts writes.
PROBE_TTL = 1 * SECOND


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        prefix = f"imqtt:{cluster}:"
        self.lists = prefix + "lists"  # hash: the clock of leases
        self.forgotten = prefix + "forgotten"  # string: lists with an older lease are invalid
        self.expiries = prefix + "expires"  # sorted set: user@device by expiry
        self.workers = prefix + "workers"  # hash: worker id -> its expiry and its JSON
        self.probe = prefix + "probe"
        self.presence_prefix = prefix + "presence:"
        self._seen = prefix + "seen:"
        self._devices = prefix + "devices:"
        self._bucket = prefix + "bucket:"

    def seen(self, now: int) -> tuple[str, str]:
        """The filters of the period of `now` and of the previous one."""
        period = now // SEEN_PERIOD
        return f"{self._seen}{period}", f"{self._seen}{period - 1}"

    def devices(self, user: str) -> str:
        """String: 16 digits of the lease and the list, or only the digits if the user was forgotten."""
        return self._devices + user

    def presence(self, user: str) -> str:
        """Hash: device -> [nonce, state, since, expires] as MessagePack."""
        return self.presence_prefix + user

    def bucket(self, device: Device) -> str:
        """String: the level and its time, as in `imqtt.core.bucket`."""
        return f"{self._bucket}{device}"
