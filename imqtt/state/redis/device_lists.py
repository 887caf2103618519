"""Device lists in Redis: a cache of the store that all processes share."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from imqtt.model import Device, Registration
from imqtt.state.base import StateAway
from imqtt.state.redis.connection import Connection, undelivered
from imqtt.state.redis.keys import Keys
from imqtt.state.redis.scripts import FILL, FORGET, FORGET_ALL, LEASE

TICK = 16  # digits
DECODED = 20_000  # users whose decoded lists are kept: halves the time, for 12 MB

_encode = msgspec.msgpack.encode


class _Row(msgspec.Struct, array_like=True, frozen=True):
    """A device in a list in Redis. A newer version may add fields at the end."""

    device: str
    format: str
    platform: str = ""
    max_packet: int = 0
    seen: int = 0


_decode = msgspec.msgpack.Decoder(list[_Row]).decode


class DeviceLists:
    """Leases as in memcached (Nishtala et al., "Scaling Memcache at Facebook", 2013).

    Invalidations lost during an outage are unknown, since the worker that had to send one may have died. So
    a worker invalidates everything on reconnect, before it reads a list. If only one worker is cut off from
    Redis, the others soon consider it dead and invalidate everything too.
    """

    def __init__(self, link: Connection, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._decoded: dict[str, tuple[bytes, tuple[Registration, ...]]] = {}
        link.when_back(self._forget_all)

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        if not users:
            return {}
        users = list(users)
        try:
            return self._found(users, await self._ask_devices(users))
        except StateAway:
            return {}

    def _ask_devices(self, users: Sequence[str]) -> asyncio.Future[Any]:
        return self._link.call("MGET", self._keys.forgotten, *map(self._keys.devices, users))

    def _found(self, users: Sequence[str], answer: list[bytes | None]) -> dict[str, tuple[Registration, ...]]:
        found: dict[str, tuple[Registration, ...]] = {}
        forgotten = answer[0] or b""
        for user, value in zip(users, answer[1:], strict=True):
            if value is None or len(value) == TICK or value[:TICK] < forgotten:
                continue
            if (before := self._decoded.get(user)) is not None and before[0] == value:
                found[user] = before[1]
            elif (registrations := _registrations(user, value[TICK:])) is not None:
                if len(self._decoded) >= DECODED:
                    self._decoded.clear()
                self._decoded[user] = (value, registrations)
                found[user] = registrations
        return found

    async def lease_devices(self, users: Collection[str]) -> int:
        try:
            return int(await self._link.call("EVAL", LEASE, 1, self._keys.lists))
        except StateAway:
            return 0  # older than every list

    async def fill_devices(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        if not (lists and lease):
            return
        values = [
            _encode(
                [
                    _Row(new.device.device, new.format, new.platform, new.max_packet, new.seen)
                    for new in devices
                ]
            )
            for devices in lists.values()
        ]
        with suppress(StateAway):
            await self._link.call("EVAL", FILL, *self._names(lists), lease, *values)

    async def forget_devices(self, users: Collection[str]) -> None:
        if users:
            await asyncio.wait([self._forget(FORGET, *self._names(users))])

    async def distrust_devices(self) -> None:
        await asyncio.wait([self._forget_all()])

    def _forget_all(self) -> asyncio.Future[Any]:
        return self._forget(FORGET_ALL, 2, self._keys.lists, self._keys.forgotten)

    def _forget(self, *script: str | int) -> asyncio.Future[Any]:
        """Sent even if the caller is cancelled, since the change of the store is committed.

        If it fails, Redis is away, and everything is forgotten on reconnect.
        """
        answer = self._link.call("EVAL", *script)
        answer.add_done_callback(undelivered)
        return answer

    def _names(self, users: Collection[str]) -> list[str | int]:
        """A script's keys: their number, the clock's and the users'."""
        return [1 + len(users), self._keys.lists, *map(self._keys.devices, users)]


def _registrations(user: str, packed: bytes) -> tuple[Registration, ...] | None:
    """None if another version of imqtt wrote it in another form."""
    try:
        rows = _decode(packed)
    except msgspec.MsgspecError:
        return None
    return tuple(
        Registration(Device(user, row.device), row.format, row.platform, row.max_packet, row.seen)
        for row in rows
    )
