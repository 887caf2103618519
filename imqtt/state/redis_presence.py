"""Presence in Redis, and what a Redis that was away has to be told afterwards."""

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any

import msgspec

from imqtt.model import Device
from imqtt.state.base import DevicePresence, StateAway
from imqtt.state.redis_keys import Keys
from imqtt.state.redis_link import Link, undelivered
from imqtt.state.redis_scripts import EXPIRE, PRESENCE, PUT

EXPIRED_AT_ONCE = 1_000  # 10 ms of Redis's time
EXPIRED_AT_MOST = 20_000  # by one call; the next one goes on
# Kept while Redis is away. To tell it takes a tenth of the time that a round trip may take.
MISSED_ARRIVALS = 2_000
MISSED_COMMANDS = 20_000

_decode = msgspec.msgpack.Decoder(tuple[str, str, int, int]).decode  # nonce, state, since, expires


class Presences:
    """The presence of devices, for all processes.

    A `Hello` that Redis missed would make it ignore that connection's every `Status` as another's, and a
    device that spoke meanwhile would look silent. So both are kept, the latest of each device, and told when
    Redis is back.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._arrivals: dict[Device, DevicePresence] = {}
        self._spoke: dict[Device, int] = {}
        link.when_back(self._tell)

    async def arrive(self, presence: DevicePresence) -> None:
        try:
            await self._put("arrive", presence)
        except StateAway:
            self._missed(presence)

    async def update(self, presence: DevicePresence) -> bool:
        try:
            return bool(await self._put("update", presence))
        except StateAway:
            before = self._arrivals.get(presence.device)
            if before is None:
                return presence.state != "offline"  # as of a device of which nothing is known
            if before.nonce == presence.nonce:
                self._missed(presence)
            return before.nonce == presence.nonce

    async def refresh(self, devices: Collection[Device], expires: int) -> None:
        if not devices:
            return
        try:
            await self._refresh(dict.fromkeys(devices, expires))
        except StateAway:
            self._spoke_unheard(dict.fromkeys(devices, expires))

    async def of(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        """Raises `StateAway`."""
        if not users:
            return {}
        users = list(users)
        hashes = [self._keys.presence(user) for user in users]
        answer = await self._link.call("EVAL", PRESENCE, 1 + len(users), self._keys.expiries, *hashes, *users)
        found: dict[str, list[DevicePresence]] = {}
        for number, device, entry, expires in answer:
            presence = _presence(Device(users[number], device.decode()), entry, expires)
            if presence is not None:
                found.setdefault(users[number], []).append(presence)
        return {user: tuple(sorted(devices, key=_device)) for user, devices in found.items()}

    async def expired(self, now: int) -> list[DevicePresence]:
        """Raises `StateAway`. At most `EXPIRED_AT_MOST`."""
        gone: list[DevicePresence] = []
        while len(gone) < EXPIRED_AT_MOST:
            answer = await self._link.call(
                "EVAL", EXPIRE, 1, self._keys.expiries, now, EXPIRED_AT_ONCE, self._keys.presence_prefix
            )
            for user, device, entry in answer:
                presence = _presence(Device(user.decode(), device.decode()), entry, None)
                if presence is not None:
                    gone.append(presence)
            if len(answer) < EXPIRED_AT_ONCE:
                break
        return gone

    def _put(self, how: str, presence: DevicePresence) -> asyncio.Future[Any]:
        user, device = presence.device
        return self._link.submit(
            "EVAL", PUT, 2, self._keys.presence(user), self._keys.expiries,
            how, user, device, presence.nonce, presence.state, presence.since, presence.expires,
        )  # fmt: skip

    def _refresh(self, spoke: dict[Device, int]) -> asyncio.Future[Any]:
        # XX: not who is offline. GT: not earlier than it is.
        scores = [
            it for device, expires in spoke.items() for it in (expires, f"{device.user}/{device.device}")
        ]
        return self._link.submit("ZADD", self._keys.expiries, "XX", "GT", *scores)

    def _missed(self, presence: DevicePresence) -> None:
        if len(self._arrivals) < MISSED_ARRIVALS or presence.device in self._arrivals:
            self._arrivals[presence.device] = presence

    def _spoke_unheard(self, spoke: dict[Device, int]) -> None:
        if len(self._spoke) < MISSED_COMMANDS:
            self._spoke.update(spoke)

    def _tell(self) -> None:
        arrivals, self._arrivals = self._arrivals, {}
        for presence in arrivals.values():
            # Another worker may have heard of a later connection.
            self._put("late", presence).add_done_callback(partial(self._told, presence))
        if self._spoke:
            spoke, self._spoke = self._spoke, {}
            self._refresh(spoke).add_done_callback(partial(self._refreshed, spoke))

    def _told(self, presence: DevicePresence, answer: asyncio.Future[Any]) -> None:
        if undelivered(answer) and presence.device not in self._arrivals:
            self._missed(presence)

    def _refreshed(self, spoke: dict[Device, int], answer: asyncio.Future[Any]) -> None:
        if undelivered(answer):
            self._spoke_unheard({device: it for device, it in spoke.items() if device not in self._spoke})


def _presence(device: Device, entry: bytes, expires: bytes | None) -> DevicePresence | None:
    """None for what another version of imqtt has written."""
    try:
        nonce, state, since, until = _decode(entry)
    except msgspec.MsgspecError:
        return None
    return DevicePresence(device, nonce, state, since, until if expires is None else int(float(expires)))


def _device(presence: DevicePresence) -> Device:
    return presence.device
