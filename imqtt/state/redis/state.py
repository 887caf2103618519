"""State in Redis, for servers of many processes on many machines."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import blake2b
from time import time

import msgspec
from msgspec.structs import astuple

from imqtt.model import Device, Key
from imqtt.state.base import StateAway, Worker
from imqtt.state.memory import MemoryState
from imqtt.state.redis.address import Address, open_first
from imqtt.state.redis.connection import TRIP_SECONDS, Connection
from imqtt.state.redis.device_lists import DeviceLists
from imqtt.state.redis.keys import SEEN_DIGEST, Keys
from imqtt.state.redis.presence import Presences
from imqtt.state.redis.scripts import BEAT, MARK_SEEN, SEEN, TAKE, WORKERS

_worker = msgspec.json.Decoder(Worker).decode


class RedisState(DeviceLists, Presences):
    """A `State` that all processes of a cluster share. See `open`."""

    shared = True

    def __init__(self, link: Connection, keys: Keys, rate: int, burst: int) -> None:
        DeviceLists.__init__(self, link, keys)
        Presences.__init__(self, link, keys)
        self._rate = rate
        self._full = burst * 1_000
        self._clock = time
        self._meanwhile = MemoryState(rate, burst)  # limits each process while Redis is away

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        cluster: str,
        rate: int,
        burst: int,
        password: str = "",
        trip_seconds: float = TRIP_SECONDS,
    ) -> "RedisState":
        """Connects to `redis://user:password@host:port/number`, `rediss://` for TLS, or `unix:///path`.

        TLS takes `?ssl_ca_certs=/path`, `ssl_certfile` and `ssl_keyfile`. Redis counts as away if a round
        trip takes longer than `trip_seconds`. Raises `SetupError` if the operator has to correct something.
        """
        address, keys = Address(url, password), Keys(cluster)
        connection = await open_first(address, keys)
        return cls(Connection(address, keys, connection, trip_seconds), keys, rate, burst)

    @property
    def trouble(self) -> str:
        return self._link.trouble

    async def close(self) -> None:
        await self._link.close()

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        answer = await self._link.call(
            "EVAL", BEAT, 1, self._keys.workers, worker.id, ttl, msgspec.json.encode(worker)
        )
        return _workers(answer)

    async def workers(self) -> list[Worker]:
        return _workers(await self._link.call("EVAL", WORKERS, 1, self._keys.workers))

    async def leave(self, worker: str) -> None:
        with suppress(StateAway):  # its heartbeat expires
            await self._link.call("HDEL", self._keys.workers, worker)

    async def seen(self, keys: Collection[Key]) -> frozenset[Key]:
        if not keys:
            return frozenset()
        keys = list(keys)
        try:
            seen = await self._link.call("EVAL", SEEN, 2, *self._filters(), _digests(keys))
        except StateAway:
            return frozenset()
        return frozenset(keys[number] for number in seen)

    async def mark_seen(self, keys: Collection[Key]) -> None:
        if keys:
            with suppress(StateAway):
                await self._link.call("EVAL", MARK_SEEN, 1, self._filters()[0], _digests(keys))

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        if not wanted:
            return {}
        buckets = [self._keys.bucket(device) for device in wanted]
        try:
            taken = await self._link.call(
                "EVAL", TAKE, len(buckets), *buckets, self._rate, self._full, now, *wanted.values()
            )
        except StateAway:
            return await self._meanwhile.take(wanted, now)
        return dict(zip(wanted, taken, strict=True))

    def _filters(self) -> tuple[str, str]:
        return self._keys.seen(int(self._clock() * 1_000))


def _digests(keys: Collection[Key]) -> bytes:
    return b"".join(
        [blake2b("\0".join(astuple(key)).encode(), digest_size=SEEN_DIGEST).digest() for key in keys]
    )


def _workers(answer: list[tuple[bytes, bytes]]) -> list[Worker]:
    workers = []
    for id, text in sorted(answer):
        try:
            workers.append(_worker(text))
        except msgspec.MsgspecError:  # of another version; it counts as alive
            workers.append(Worker(id.decode(errors="replace"), host="", pid=0, started=0))
    return workers
