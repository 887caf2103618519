"""Device lists in Redis: a cache of the store's that all processes share."""

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import msgspec

from imqtt.model import Device
from imqtt.state.base import StateAway
from imqtt.state.redis_keys import Keys
from imqtt.state.redis_link import Link, undelivered
from imqtt.state.redis_scripts import FILL, FORGET, FORGET_ALL, LEASE
from imqtt.stores.base import Registration

TICK = 16  # digits
UNDELIVERED = 10_000  # users; beyond, everything is forgotten
DECODED = 20_000  # users whose lists are kept as they were last decoded: half the time, for 12 MB

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, str, str, int]]).decode

Lists = dict[str, tuple[Registration, ...]]


class DeviceLists:
    """Leases as in memcached (Nishtala et al., "Scaling Memcache at Facebook", 2013).

    What Redis was not told to forget, since it was away, it is told as soon as it is back, before any list
    is read from there. Other processes may see the old list until then; had this process died, until the
    list runs out.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._undelivered: set[str] = set()
        self._everything = False  # is to be forgotten
        self._decoded: dict[str, tuple[bytes, tuple[Registration, ...]]] = {}
        link.when_back(self._deliver)

    async def of(self, users: Collection[str]) -> Lists:
        """The lists that are known. Raises `StateAway`."""
        if not users:
            return {}
        users = list(users)
        key = self._keys.devices
        answer = await self._link.call("MGET", self._keys.forgotten, *[key(user) for user in users])
        forgotten = answer[0] or b""
        found: Lists = {}
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

    async def lease(self) -> int:
        """Raises `StateAway`."""
        return int(await self._link.call("EVAL", LEASE, 1, self._keys.lists))

    async def fill(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        """Raises `StateAway`."""
        values = [
            _encode([(it.device.device, it.format, it.platform, it.max_packet) for it in registrations])
            for registrations in lists.values()
        ]
        await self._link.call("EVAL", FILL, *self._names(lists), lease, *values)

    async def forget(self, users: Collection[str]) -> None:
        """What is not delivered is kept."""
        # The caller may be cancelled; what he committed is to be forgotten all the same.
        answer = self._forget(set(users))
        await asyncio.wait([answer])
        error = answer.exception()
        if error is not None and not isinstance(error, StateAway):
            raise error

    def _forget(self, users: set[str]) -> asyncio.Future[Any]:
        answer = self._link.submit("EVAL", FORGET, *self._names(users))
        answer.add_done_callback(partial(self._forgotten, users))
        return answer

    def _forgotten(self, users: set[str], answer: asyncio.Future[Any]) -> None:
        if undelivered(answer):
            self._undelivered |= users
            if len(self._undelivered) > UNDELIVERED:
                self._undelivered.clear()
                self._everything = True

    def _deliver(self) -> None:
        """Ahead of all other calls, so a list that is read after it is no older."""
        if self._everything:
            self._everything = False
            answer = self._link.submit("EVAL", FORGET_ALL, 2, self._keys.lists, self._keys.forgotten)
            answer.add_done_callback(self._all_forgotten)
        if self._undelivered:
            users, self._undelivered = self._undelivered, set()
            self._forget(users)

    def _all_forgotten(self, answer: asyncio.Future[Any]) -> None:
        if undelivered(answer):
            self._everything = True

    def _names(self, users: Collection[str]) -> list[str | int]:
        """A script's keys: how many, the clock, and the users'."""
        key = self._keys.devices
        return [1 + len(users), self._keys.lists, *[key(user) for user in users]]


def _registrations(user: str, packed: bytes) -> tuple[Registration, ...] | None:
    """None for what another version of imqtt has written."""
    try:
        rows = _decode(packed)
    except msgspec.MsgspecError:
        return None
    return tuple(
        Registration(Device(user, device), format, platform, max_packet)
        for device, format, platform, max_packet in rows
    )
