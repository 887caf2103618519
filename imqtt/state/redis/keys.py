"""Every key that imqtt has in Redis: its name, how long it lives, and why.

All begin with `imqtt:` and the cluster's id, so several clusters may share one Redis, whatever else is in it.
Every key runs out by itself. Any of them may be missing at any time: Redis may evict what it likes
(`maxmemory-policy allkeys-lru` suits), be wiped, or fall back to an older copy.

Times are milliseconds, as `PEXPIRE` wants them. What it takes, measured with Redis 7.0, at 10,000 messages a
second from 100,000 users with two devices each, of which one is there:

    seen        3 x 8 MiB              24 MiB, at any rate
    devices     100,000 x 215 bytes    22 MB
    presence    100,000 x 360 bytes    36 MB, with the sorted set; 170 bytes for who came today and went
    buckets     100,000 x 240 bytes    24 MB, if all of them wrote in the last ten seconds
"""

from imqtt.model import Device

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# --- seen: a Bloom filter for each period of time (B. Bloom, "Space/time trade-offs in hash coding with
# allowable errors", 1970), of which the last two are asked.
#
# What comes twice comes within seconds: a device that got no `Accepted` asks again, and a broker sends again
# what a dead worker had not acknowledged. So a key is remembered for 2 to 4 minutes; after that the store's
# index finds it, at the price of one refused append.
#
# A set of digests was tried: 72 bytes a key are 86 MB a period at this rate, and Redis stands still for
# 270 ms when such a set runs out. The filter has a fixed size instead, and is freed at once. With 1.2 million
# keys in 2^26 bits, 3 bits each, 5.2 % of the bits are set: of new keys 0.014 % in each filter look as if
# they were there, and cost a look into the store. At 100,000 a second it would be 7 %, at 1,000 nothing.
SEEN_PERIOD = 2 * MINUTE
SEEN_TTL = 2 * SEEN_PERIOD  # after the last write: for as long as it is asked
SEEN_BITS = 1 << 26
SEEN_DIGEST = 12  # bytes: three 32-bit numbers, each naming a bit

# --- devices: a user's device list, or the note that it was forgotten.
#
# A list is stale where `forget_devices` did not arrive, until those that live know that a worker has died or
# Redis was away; and where Redis fell back to an older copy. The new device then hears nothing by itself for
# so long; its own `Sync` brings what it missed.
LIST_TTL = 10 * MINUTE
# From reading the store to filling. What takes longer is not cached.
LEASE_TTL = 1 * MINUTE
FORGOTTEN_TTL = 2 * LEASE_TTL  # outlives every lease that is older than it
LISTS_TTL = 1 * HOUR  # when the clock of leases is lost, so are the leases that were given

# --- presence: a hash of each user's devices, and one sorted set with the time at which each expires.
#
# A command that keeps a device present writes to the sorted set alone. So the hash of a user who is present
# has to last until the device's next `Hello` or `Status`, and 30 days of one connection are enough. Once no
# device is present, it says for a day when the user was last seen and which last wills are old.
PRESENT_TTL = 30 * DAY
OFFLINE_TTL = 1 * DAY

# --- buckets: tokens left, until it would be full anyway, and then some: the workers' clocks may differ.
BUCKET_SLACK = 10 * SECOND
# A clock that is behind by no more than this is another worker's: the bucket's time stays, or a device that
# speaks to two workers in turn would gain the difference each time. Behind by more: it was set back.
CLOCK_SKEW = 5 * SECOND

# --- workers: one hash of all of them; each entry says itself until when it counts.
WORKERS_TTL = 1 * HOUR
# An entry that counts for longer was written while Redis's clock was ahead. Without this bound, a worker that
# has died since would count as alive until the clock has caught up. Ten times the largest `worker_ttl`.
LONGEST_BEAT = 10 * MINUTE

# --- probe: written to see whether Redis takes writes.
PROBE_TTL = 1 * SECOND


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        prefix = f"imqtt:{cluster}:"
        self.lists = prefix + "lists"  # hash: the clock of leases
        self.forgotten = prefix + "forgotten"  # string: lists filled before this are not to be believed
        self.expiries = prefix + "expires"  # sorted set: user@device by when it runs out
        self.workers = prefix + "workers"  # hash: worker id -> until when it counts, and its JSON
        self.probe = prefix + "probe"
        self.presence_prefix = prefix + "presence:"
        self._seen = prefix + "seen:"
        self._devices = prefix + "devices:"
        self._bucket = prefix + "bucket:"

    def seen(self, now: int) -> tuple[str, str]:
        """The filter of the period that `now` lies in, and of the one before."""
        period = now // SEEN_PERIOD
        return f"{self._seen}{period}", f"{self._seen}{period - 1}"

    def devices(self, user: str) -> str:
        """String: 16 digits of the lease, and the list; the digits alone for a user who was forgotten."""
        return self._devices + user

    def presence(self, user: str) -> str:
        """Hash: device -> [nonce, state, since, expires] as MessagePack."""
        return self.presence_prefix + user

    def bucket(self, device: Device) -> str:
        """String: the level, and the time that it was at, as in `imqtt.core.bucket`."""
        return f"{self._bucket}{device}"
