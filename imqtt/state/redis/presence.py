"""Presence in Redis, and the changes to send after an outage."""

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import msgspec

from imqtt.model import Device
from imqtt.state.base import DevicePresence, StateAway
from imqtt.state.redis.connection import Connection, Refusal, undelivered
from imqtt.state.redis.keys import Keys
from imqtt.state.redis.scripts import APPEAR, EXPIRE, PRESENCE, PUT

EXPIRED_AT_ONCE = 1_000  # 10 ms of Redis's time
EXPIRED_AT_MOST = 20_000  # by one call; the next call continues
# Kept while Redis is away, and sent when it is back.
MISSED_CHANGES = 2_000
MISSED_COMMANDS = 20_000
SENT_AT_ONCE = 1_000  # devices in one command
CLOCK_STEP = 1_000  # milliseconds; a clock that steps back further was corrected


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    """A device's presence in Redis. A newer version may add states, and fields at the end."""

    nonce: str
    state: str
    since: int
    expires: int


_decode = msgspec.msgpack.Decoder(_Entry).decode


class Change(NamedTuple):
    """A change that Redis missed. `how`: see `scripts.PUT`."""

    how: str
    presence: DevicePresence


Spoke = tuple[int, int]  # the time of a device's last command, and the expiry that it sets, in milliseconds


class Presences:
    """The presence of devices, for all processes.

    If Redis missed a `Hello`, it would ignore every `Status` of that connection. If it missed a `Status` or a
    last will, the presence would be wrong, and a device that sent commands meanwhile would look silent. So
    the latest change of each device is kept, and sent when Redis is back.
    """

    def __init__(self, link: Connection, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._missed: dict[Device, Change] = {}
        self._spoke: dict[Device, Spoke] = {}
        self._latest = 0  # the expiry of the last batch
        self._appeared: dict[Device, str] = {}  # found late, for the next `refresh` to return
        link.when_back(self._send_missed)

    async def arrive(self, presence: DevicePresence) -> None:
        try:
            await self._put("arrive", presence)
        except StateAway:
            self._miss(Change("arrive", presence))

    async def update(self, presence: DevicePresence) -> bool:
        try:
            return bool(await self._put("update", presence))
        except StateAway:
            missed = self._missed.get(presence.device)
            if missed is None or missed.how == "update":  # only Redis knows the last connection
                self._miss(Change("update", presence))
                return True  # as for an unknown device
            if missed.presence.nonce == presence.nonce:
                self._miss(Change("arrive", presence))
            return missed.presence.nonce == presence.nonce

    async def refresh(self, devices: Collection[Device], now: int, expires: int) -> dict[Device, str]:
        appeared, self._appeared = self._appeared, {}
        if devices:
            # Later each time, so that the score of every present device changes, and Redis's count of changes
            # tells whether one is absent. Querying the scores as well doubled the cost of each batch.
            stepped_back = self._latest - expires > CLOCK_STEP
            self._latest = expires if stepped_back else max(expires, self._latest + 1)
            spoke = dict.fromkeys(devices, (now, self._latest))
            try:
                if await self._refresh(spoke) < len(spoke) and (
                    absent := _absent(spoke, await self._look(spoke))
                ):
                    appeared |= _numbered(absent, await self._appear(absent))
            except StateAway:
                self._miss_commands(spoke)
        return appeared

    async def presence(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        if not users:
            return {}
        users = list(users)
        hashes = [self._keys.presence(user) for user in users]
        try:
            answer = await self._link.call(
                "EVAL", PRESENCE, 1 + len(users), self._keys.expiries, *hashes, *users
            )
        except Refusal:
            if len(users) == 1:
                return {}  # Redis would refuse it again, and the caller would retry for ever
            alone = await asyncio.gather(*(self.presence([user]) for user in users))
            return {user: devices for one in alone for user, devices in one.items()}
        found: dict[str, list[DevicePresence]] = {}
        for number, device, entry, expires in answer:
            presence = _presence(Device(users[number], device.decode(errors="replace")), entry, expires)
            if presence is not None:
                found.setdefault(users[number], []).append(presence)
        return {
            user: tuple(sorted(devices, key=lambda presence: presence.device))
            for user, devices in found.items()
        }

    async def expired(self, now: int, longest: int | None = None) -> list[DevicePresence]:
        """At most about `EXPIRED_AT_MOST`; fewer if Redis goes away."""
        gone: list[DevicePresence] = []
        while len(gone) < EXPIRED_AT_MOST:
            try:
                answer = await self._link.call(
                    "EVAL", EXPIRE, 1, self._keys.expiries,
                    now, EXPIRED_AT_ONCE, self._keys.presence_prefix, "" if longest is None else longest,
                )  # fmt: skip
            except StateAway:
                break  # the devices in `gone` are already offline, and Redis will not return them again
            for user, device, entry in answer:
                presence = _presence(
                    Device(user.decode(errors="replace"), device.decode(errors="replace")), entry, None
                )
                if presence is not None:
                    gone.append(presence)
            if len(answer) < EXPIRED_AT_ONCE:
                break
        return gone

    def _put(self, how: str, presence: DevicePresence, late: str = "") -> asyncio.Future[Any]:
        user, device = presence.device
        return self._link.call(
            "EVAL", PUT, 2, self._keys.presence(user), self._keys.expiries,
            how, user, device, presence.nonce, presence.state, presence.since, presence.expires,
            late,
        )  # fmt: skip

    def _refresh(self, spoke: dict[Device, Spoke]) -> asyncio.Future[Any]:
        """The number of scores that changed. XX: skips offline devices. GT: scores only grow."""
        scores = [part for device, (_, expires) in spoke.items() for part in (expires, str(device))]
        return self._link.call("ZADD", self._keys.expiries, "XX", "GT", "CH", *scores)

    def _look(self, spoke: dict[Device, Spoke]) -> asyncio.Future[Any]:
        """Each device's score, or None if it is not present."""
        return self._link.call("ZMSCORE", self._keys.expiries, *map(str, spoke))

    def _appear(self, absent: dict[Device, Spoke]) -> asyncio.Future[Any]:
        hashes = [self._keys.presence(device.user) for device in absent]
        given = [part for device, spoken in absent.items() for part in (*device, *spoken)]
        return self._link.call("EVAL", APPEAR, 1 + len(hashes), self._keys.expiries, *hashes, *given)

    def _miss(self, change: Change) -> None:
        device = change.presence.device
        if len(self._missed) < MISSED_CHANGES or device in self._missed:
            self._missed[device] = change

    def _miss_commands(self, spoke: dict[Device, Spoke]) -> None:
        if len(self._spoke) < MISSED_COMMANDS:
            self._spoke.update(spoke)

    def _send_missed(self) -> None:
        missed, self._missed = self._missed, {}
        for change in missed.values():
            # Another worker may have received a later change.
            self._put(change.how, change.presence, "late").add_done_callback(partial(self._confirm, change))
        spoke, self._spoke = list(self._spoke.items()), {}
        for start in range(0, len(spoke), SENT_AT_ONCE):
            part = dict(spoke[start : start + SENT_AT_ONCE])
            self._refresh(part).add_done_callback(undelivered)
            self._look(part).add_done_callback(partial(self._looked, part))

    def _confirm(self, change: Change, answer: asyncio.Future[Any]) -> None:
        if undelivered(answer) and change.presence.device not in self._missed:
            self._miss(change)

    def _looked(self, spoke: dict[Device, Spoke], answer: asyncio.Future[Any]) -> None:
        if undelivered(answer):
            self._miss_commands(spoke | self._spoke)
        elif absent := _absent(spoke, answer.result()):
            self._appear(absent).add_done_callback(partial(self._appeared_late, absent))

    def _appeared_late(self, absent: dict[Device, Spoke], answer: asyncio.Future[Any]) -> None:
        if undelivered(answer):
            self._miss_commands(absent | self._spoke)
        else:
            self._appeared |= _numbered(absent, answer.result())


def _absent(spoke: dict[Device, Spoke], scores: list[bytes | None]) -> dict[Device, Spoke]:
    return {device: spoke[device] for device, score in zip(spoke, scores, strict=True) if score is None}


def _numbered(absent: dict[Device, Spoke], found: list[tuple[int, bytes]]) -> dict[Device, str]:
    devices = list(absent)
    return {devices[number - 1]: nonce.decode(errors="replace") for number, nonce in found}


def _presence(device: Device, entry: bytes, expires: bytes | None) -> DevicePresence | None:
    """None if another version of imqtt wrote it in another form."""
    try:
        known = _decode(entry)
    except msgspec.MsgspecError:
        return None
    until = known.expires if expires is None else int(float(expires))
    return DevicePresence(device, known.nonce, known.state, known.since, until)
