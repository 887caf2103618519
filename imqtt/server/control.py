"""Orders from the operator's commands: forget revoked devices, and report which devices are present.

They arrive in the session of partition 0, so the broker keeps them while no server is connected, and delivers
them again if a worker is killed before it has carried them out. From there a revocation goes through every
other partition's session as well, behind commands that would register the device again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from imqtt.broker.link import Packet
from imqtt.errors import StoreUnreachable, Unavailable
from imqtt.model import Device
from imqtt.protocol.topics import parse_username
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.presence import Presences
from imqtt.server.publisher import Publish
from imqtt.state.base import StateAway

log = logging.getLogger(__name__)

TOPICS = "imqtt/$control/up/"  # followed by the partition; no device's, since user ids have no $
TOPIC = f"{TOPICS}0"
REPLIES = "imqtt/$control/down/"  # followed by a random string that the asking command has drawn


class Revoke(msgspec.Struct, frozen=True, tag="revoke", tag_field="type"):
    """Forget these devices (`user@device`): their credentials were removed.

    `copy`: the owner of partition 0 has carried it out, and has sent it to the other partitions.
    """

    devices: tuple[str, ...]
    copy: bool = False


class Ask(msgspec.Struct, frozen=True, tag="presence", tag_field="type"):
    """Asks for the `PresenceReport` of a user's devices, on `REPLIES` followed by `reply`."""

    user: str
    reply: str


class DeviceReport(msgspec.Struct, frozen=True):
    """A device's state, and since when it has it, in milliseconds since the Unix epoch."""

    device: str
    state: str
    since: int


class PresenceReport(msgspec.Struct, frozen=True):
    """The presence of a user's devices. `known` is False if the state is away."""

    devices: tuple[DeviceReport, ...]
    known: bool = True


Order = Revoke | Ask

encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Order).decode


def parse(payload: bytes) -> Order | None:
    """The order, or None for one that only another version knows."""
    try:
        return _decode(payload)
    except msgspec.DecodeError:
        return None


def parse_answer(payload: bytes) -> PresenceReport:
    """Raises `msgspec.DecodeError` for an answer in another version's form."""
    return msgspec.json.decode(payload, type=PresenceReport)


@dataclass(eq=False, repr=False)
class Control:
    devices: Devices
    presences: Presences
    publish: Publish
    counters: Counters
    partitions: int

    async def carry_out(self, orders: Sequence[Order]) -> tuple[Collection[Device], Awaitable[object]]:
        """Carries orders out. Idempotent. Raises `StoreUnreachable`.

        Returns the revoked devices, and a future that is done when the broker has the copies for the other
        partitions.
        """
        revocations = [order for order in orders if isinstance(order, Revoke)]
        revoked = _devices(revocations)
        if revoked:
            await self._revoke(revoked)
        if devices := _devices(order for order in revocations if not order.copy):
            self.counters.devices_revoked += len(devices)
            log.info("revoked: %s", ", ".join(map(str, devices)))
        await asyncio.gather(*(self._tell(order) for order in orders if isinstance(order, Ask)))
        copies = [encode(Revoke(order.devices, copy=True)) for order in revocations if not order.copy]
        others = [f"{TOPICS}{partition}" for partition in range(1, self.partitions)]
        return revoked, self.publish([Packet(topic, copy) for copy in copies for topic in others])

    async def _revoke(self, devices: Sequence[Device]) -> None:
        try:
            await self.devices.remove(dict.fromkeys(devices))
        except StoreUnreachable:
            raise
        except Unavailable as error:
            log.error("the records of %s stay, revoke them again: %s", ", ".join(map(str, devices)), error)
        await self.presences.end(devices)

    async def _tell(self, ask: Ask) -> None:
        try:
            known = await self.presences.of_devices(ask.user)
        except StateAway:
            report = PresenceReport((), known=False)
        else:
            devices = tuple(DeviceReport(str(one.device), one.state, one.since) for one in known)
            report = PresenceReport(devices)
        self.publish([Packet(REPLIES + ask.reply, encode(report))])


def _devices(revocations: Iterable[Revoke]) -> list[Device]:
    names = dict.fromkeys(name for order in revocations for name in order.devices)
    return [device for name in names if (device := parse_username(name)) is not None]
