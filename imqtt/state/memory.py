"""State in the process, for a server of one process. Tests compare other states with it.

Everything is bounded by count. A dropped entry costs a read of the store, or a safe assumption.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import count

import msgspec
from msgspec.structs import replace

from imqtt.core.bucket import Bucket, Rate
from imqtt.model import Device, Key, Registration
from imqtt.state.base import SILENCED_MOST, Begun, DevicePresence, Worker


class _Workers:
    def __init__(self) -> None:
        self._workers: dict[str, tuple[Worker, float]] = {}  # with its expiry by the loop's clock

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        self._workers[worker.id] = (worker, asyncio.get_running_loop().time() + ttl / 1_000)
        return await self.workers()

    async def workers(self) -> list[Worker]:
        now = asyncio.get_running_loop().time()
        self._workers = {id: entry for id, entry in self._workers.items() if entry[1] > now}
        return [worker for _, (worker, _) in sorted(self._workers.items())]

    async def leave(self, worker: str) -> None:
        self._workers.pop(worker, None)


class _SeenKeys:
    """The last `size / 2` to `size` keys in two generations; when one is full, the older one is dropped.

    Keeping only hashes takes a quarter of the memory. A collision does no harm, since the answer is "maybe".
    """

    def __init__(self, size: int) -> None:
        self._half = max(size // 2, 1)
        self._new: set[int] = set()
        self._old: set[int] = set()

    async def seen(self, keys: Collection[Key]) -> frozenset[Key]:
        return frozenset(key for key in keys if (seen := hash(key)) in self._new or seen in self._old)

    async def mark_seen(self, keys: Collection[Key]) -> None:
        for key in keys:
            if len(self._new) >= self._half:
                self._old, self._new = self._new, set()
            self._new.add(hash(key))


class _DeviceLists:
    """An LRU cache of device lists, and the lease since which each user is forgotten.

    Leases as in memcached (Nishtala et al., "Scaling Memcache at Facebook", 2013): a list that was read from
    the store before the user was forgotten has an older lease and is not cached.
    """

    def __init__(self, size: int) -> None:
        self._most_users = size
        self._lists: OrderedDict[str, tuple[Registration, ...]] = OrderedDict()
        self._forgotten: OrderedDict[str, int] = OrderedDict()  # user -> the first lease given after
        self._oldest = 0  # leases before this one are older than the entries of `_forgotten`
        self._lease = 0

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        found: dict[str, tuple[Registration, ...]] = {}
        for user in users:
            if (devices := self._lists.get(user)) is not None:
                self._lists.move_to_end(user)
                found[user] = devices
        return found

    async def lease_devices(self, users: Collection[str]) -> int:
        return self._lease

    async def fill_devices(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        if lease < self._oldest:
            return
        for user, devices in lists.items():
            if self._forgotten.get(user, 0) <= lease:
                self._lists[user] = devices
                self._lists.move_to_end(user)
        while len(self._lists) > self._most_users:
            self._lists.popitem(last=False)

    async def distrust_devices(self) -> None:
        self._lease += 1
        self._oldest = self._lease
        self._lists.clear()
        self._forgotten.clear()

    async def forget_devices(self, users: Collection[str]) -> None:
        self._lease += 1
        for user in users:
            self._lists.pop(user, None)
            self._forgotten[user] = self._lease
            self._forgotten.move_to_end(user)
        while len(self._forgotten) > self._most_users:
            _, self._oldest = self._forgotten.popitem(last=False)


class _Entry(msgspec.Struct):
    """A device's presence. `due`: the time of its entry in the queue of expiries; 0: it has none."""

    nonce: str
    state: str
    since: int
    expires: int
    due: int = 0

    def of(self, device: Device) -> DevicePresence:
        return DevicePresence(device, self.nonce, self.state, self.since, self.expires)


class _Presences:
    """The presence of devices, in LRU order.

    `refresh` is called for every batch and must be cheap: it changes the expiry and does not touch the queue.
    An entry that reaches the front of the queue before its expiry is queued again.
    """

    def __init__(self, size: int) -> None:
        self._most_devices = size
        self._entries: OrderedDict[Device, _Entry] = OrderedDict()
        self._devices: dict[str, set[Device]] = {}
        self._queue: list[tuple[int, int, Device]] = []
        self._order = count()
        self._last = 0  # no presence lasts beyond this

    async def arrive(self, presence: DevicePresence) -> None:
        device = presence.device
        known = self._entries.pop(device, None)
        entry = _Entry(presence.nonce, presence.state, presence.since, presence.expires)
        self._entries[device] = entry
        if known is not None:
            entry.due = known.due
        else:
            self._devices.setdefault(device.user, set()).add(device)
            if len(self._entries) > self._most_devices:
                oldest, _ = self._entries.popitem(last=False)
                self._devices[oldest.user].discard(oldest)
                if not self._devices[oldest.user]:
                    del self._devices[oldest.user]
        self._last = max(self._last, entry.expires)
        if entry.state != "offline" and (not entry.due or presence.expires < entry.due):
            self._enqueue(device, entry)

    async def update(self, presence: DevicePresence) -> bool:
        entry = self._entries.get(presence.device)
        nonce = entry.nonce if entry is not None else ""
        if nonce not in ("", presence.nonce):
            return False
        if not nonce and presence.state == "offline":
            presence = replace(presence, nonce="")
        await self.arrive(presence)
        return True

    async def refresh(self, devices: Collection[Device], now: int, expires: int) -> dict[Device, str]:
        self._last = max(self._last, expires)
        appeared: dict[Device, str] = {}
        for device in devices:
            entry = self._entries.get(device)
            if entry is not None and entry.state != "offline":
                entry.expires = max(entry.expires, expires)
                self._entries.move_to_end(device)
            elif entry is None or not 0 < entry.expires - now <= SILENCED_MOST:
                nonce = entry.nonce if entry is not None and entry.expires == entry.since else ""
                await self.arrive(DevicePresence(device, nonce, "online", now, expires))
                appeared[device] = nonce
        return appeared

    async def presence(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        return {
            user: tuple(self._entries[device].of(device) for device in sorted(self._devices[user]))
            for user in users
            if user in self._devices
        }

    async def expired(self, now: int, longest: int | None = None) -> list[DevicePresence]:
        if longest is not None:
            self._shorten(now + longest)
        gone: list[DevicePresence] = []
        while self._queue and self._queue[0][0] <= now:
            due, _, device = heapq.heappop(self._queue)
            entry = self._entries.get(device)
            if entry is None or entry.due != due:
                continue  # dropped, or in the queue a second time
            entry.due = 0
            if entry.state == "offline":
                continue
            if entry.expires > now:
                self._enqueue(device, entry)
                continue
            entry.state, entry.since = "offline", entry.expires
            gone.append(entry.of(device))
        return gone

    def _shorten(self, latest: int) -> None:
        """Ends every presence by `latest`. Costs nothing if none lasts longer, which is the usual case."""
        if self._last <= latest:
            return
        self._last = latest
        for device, entry in self._entries.items():
            if entry.expires > latest:
                entry.expires = latest
                if entry.due > latest:
                    self._enqueue(device, entry)

    def _enqueue(self, device: Device, entry: _Entry) -> None:
        entry.due = entry.expires
        heapq.heappush(self._queue, (entry.due, next(self._order), device))
        if len(self._queue) > 2 * self._most_devices:  # mostly devices that were dropped
            self._queue = [
                (entry.due, next(self._order), device) for device, entry in self._entries.items() if entry.due
            ]
            heapq.heapify(self._queue)


class _RateLimits:
    """The devices' token buckets, in LRU order.

    A bucket that was not used for long is full, and dropping it changes nothing. If an emptier one is
    dropped, new buckets begin at its level, since any of them may belong to the same device.
    """

    def __init__(self, rate: Rate, size: int) -> None:
        self._rate = rate
        self._most_buckets = size
        self._buckets: OrderedDict[Device, Bucket] = OrderedDict()
        self._dropped: Bucket | None = None

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        return {device: self._take(device, tokens, now) for device, tokens in wanted.items()}

    def _take(self, device: Device, wanted: int, now: int) -> int:
        bucket = self._buckets.get(device)
        if bucket is None:
            bucket = self._dropped or Bucket(self._rate.full, now)
        self._buckets[device], taken = self._rate.take(bucket, wanted, now)
        self._buckets.move_to_end(device)
        if len(self._buckets) > self._most_buckets:
            _, bucket = self._buckets.popitem(last=False)
            emptiest = self._rate.refill(bucket, now)
            if self._dropped is not None:
                emptiest = min(emptiest, self._rate.refill(self._dropped, now))
            self._dropped = emptiest if emptiest.level < self._rate.full else None
        return taken


class MemoryState(_Workers, _SeenKeys, _DeviceLists, _Presences, _RateLimits):
    """A `State` of one event loop. A device may take `rate` tokens a second and `burst` at once.

    The bounds are counts: `seen` keys, `users` with cached device lists, `devices` with a presence and a
    bucket.
    """

    shared = False
    trouble = ""

    def __init__(
        self, rate: int, burst: int, *, seen: int = 200_000, users: int = 100_000, devices: int = 200_000
    ) -> None:
        _Workers.__init__(self)
        _SeenKeys.__init__(self, seen)
        _DeviceLists.__init__(self, users)
        _Presences.__init__(self, devices)
        _RateLimits.__init__(self, Rate(rate, burst), devices)

    async def begin(
        self, users: Collection[str], keys: Collection[Key], wanted: Mapping[Device, int], now: int
    ) -> Begun:
        return Begun(await self.devices(users), await self.seen(keys), await self.take(wanted, now))

    async def finish(
        self, stored: Collection[Key], users: Collection[str]
    ) -> dict[str, tuple[Registration, ...]]:
        await self.mark_seen(stored)
        return await self.devices(users)

    async def close(self) -> None:
        return
