"""State in Redis, for servers of many processes on many machines."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from time import time
from typing import Any

import msgspec
from msgspec.structs import astuple

from imqtt.model import Device, Key, Registration
from imqtt.state.base import Begun, StateAway, Worker
from imqtt.state.memory import MemoryState
from imqtt.state.redis.address import Address, open_first
from imqtt.state.redis.connection import TRIP_SECONDS, Connection, undelivered
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

    async def begin(
        self, users: Collection[str], keys: Collection[Key], wanted: Mapping[Device, int], now: int
    ) -> Begun:
        if not (users and keys and wanted):
            return Begun(await self.devices(users), await self.seen(keys), await self.take(wanted, now))
        users, keys = list(users), list(keys)
        answers: Sequence[Any] = await asyncio.gather(
            self._ask_devices(users),
            self._ask_seen(keys),
            self._ask_tokens(wanted, now),
            return_exceptions=True,
        )
        lists, seen, taken = answers
        return Begun(
            {} if isinstance(lists, StateAway) else self._found(users, lists),
            frozenset() if isinstance(seen, StateAway) else _seen(keys, seen),
            await self._meanwhile.take(wanted, now)
            if isinstance(taken, StateAway)
            else _taken(wanted, taken),
        )

    async def finish(
        self, stored: Collection[Key], users: Collection[str]
    ) -> dict[str, tuple[Registration, ...]]:
        if not users:
            await self.mark_seen(stored)
            return {}
        if stored:  # executed before the next command, whose answer is awaited
            self._mark_seen(stored).add_done_callback(undelivered)
        return await self.devices(users)

    async def seen(self, keys: Collection[Key]) -> frozenset[Key]:
        if not keys:
            return frozenset()
        keys = list(keys)
        try:
            return _seen(keys, await self._ask_seen(keys))
        except StateAway:
            return frozenset()

    async def mark_seen(self, keys: Collection[Key]) -> None:
        if keys:
            with suppress(StateAway):
                await self._mark_seen(keys)

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        if not wanted:
            return {}
        try:
            return _taken(wanted, await self._ask_tokens(wanted, now))
        except StateAway:
            return await self._meanwhile.take(wanted, now)

    def _ask_seen(self, keys: Sequence[Key]) -> asyncio.Future[Any]:
        return self._link.call("EVAL", SEEN, 2, *self._filters(), _digests(keys))

    def _mark_seen(self, keys: Collection[Key]) -> asyncio.Future[Any]:
        return self._link.call("EVAL", MARK_SEEN, 1, self._filters()[0], _digests(keys))

    def _ask_tokens(self, wanted: Mapping[Device, int], now: int) -> asyncio.Future[Any]:
        buckets = map(self._keys.bucket, wanted)
        return self._link.call(
            "EVAL", TAKE, len(wanted), *buckets, self._rate, self._full, now, *wanted.values()
        )

    def _filters(self) -> tuple[str, str]:
        return self._keys.seen(int(self._clock() * 1_000))


def _digests(keys: Collection[Key]) -> bytes:
    return b"".join(
        [blake2b("\0".join(astuple(key)).encode(), digest_size=SEEN_DIGEST).digest() for key in keys]
    )


def _seen(keys: Sequence[Key], numbers: Sequence[int]) -> frozenset[Key]:
    return frozenset([keys[number] for number in numbers])


def _taken(wanted: Mapping[Device, int], tokens: Sequence[int]) -> dict[Device, int]:
    return dict(zip(wanted, tokens, strict=True))


def _workers(answer: list[tuple[bytes, bytes]]) -> list[Worker]:
    workers = []
    for id, text in sorted(answer):
        try:
            workers.append(_worker(text))
        except msgspec.MsgspecError:  # of another version; it counts as alive
            workers.append(Worker(id.decode(errors="replace"), host="", pid=0, started=0))
    return workers
