"""Who is there: from `Hello`, `Status` and the last will, and told to the users' peers."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence

from imqtt.core.conversations import members_of
from imqtt.core.presence import of_user
from imqtt.model import Device, Head, Hello, Presence, Status
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.egress import Publish
from imqtt.server.fanout import Fanout
from imqtt.state.base import DevicePresence, State
from imqtt.stores.base import Registration, Store

log = logging.getLogger(__name__)

PEERS_TOLD = 100  # of how many recent conversations the members hear of a change


class Presences:
    """The presence of the users whose devices speak to this process.

    Presence is soft: what is lost here is right again with the device's next command.
    """

    def __init__(
        self,
        *,
        store: Store,
        state: State,
        devices: Devices,
        publish: Publish,
        counters: Counters,
        max_packet: int,
        ttl: int,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._state = state
        self._devices = devices
        self._publish = publish
        self._counters = counters
        self._max_packet = max_packet
        self._ttl = ttl * 1_000
        self._clock = clock
        self._changed: dict[str, Presence] = {}  # as last told, for users whose peers are to be told
        self._wake = asyncio.Event()

    async def heard(self, registration: Registration, command: Hello | Status) -> None:
        """Takes a `Hello` or `Status`, and notes whether the user's peers are to be told."""
        device = registration.device
        now = self._clock()
        before = await self.of(device.user)
        state = command.state if isinstance(command, Status) else "online"
        presence = DevicePresence(device, command.nonce, state, since=now, expires=now + self._ttl)
        if isinstance(command, Hello):
            await self._state.arrive(presence)
        elif not await self._state.update(presence):
            return  # of another connection: a broker may replay an old will
        self._note(before, await self.of(device.user))

    async def refresh(self, devices: Collection[Device]) -> None:
        """Whatever a device says keeps it present."""
        await self._state.refresh(devices, self._clock() + self._ttl)

    async def of(self, user: str) -> Presence:
        """A user's presence over all devices."""
        found = await self._state.presence([user])
        return of_user(user, [(it.state, it.since) for it in found.get(user, ())])

    async def of_peers(self, user: str, heads: Sequence[Head]) -> list[Presence]:
        """Those of the user's peers in these conversations who are there."""
        peers = _peers(user, heads)
        found = await self._state.presence(peers)
        presences = (of_user(peer, [(it.state, it.since) for it in found.get(peer, ())]) for peer in peers)
        return [presence for presence in presences if presence.state != "offline"]

    async def run(self) -> None:
        """Tells peers of changes, and finds devices that have fallen silent, until cancelled."""
        interval = max(self._ttl / 10_000, 0.5)
        loop = asyncio.get_running_loop()
        sweep = loop.time() + interval
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(sweep):
                    await self._wake.wait()
            if loop.time() >= sweep:
                await self._sweep()
                sweep = loop.time() + interval
            self._wake.clear()
            while self._changed:
                user, presence = self._changed.popitem()
                try:
                    await self._tell(user, presence)
                except Exception:
                    log.exception("the peers of %s were not told of his presence", user)

    async def _sweep(self) -> None:
        now = self._clock()
        for gone in await self._state.expired(now):
            after = await self.of(gone.device.user)
            if after.state == "offline":
                self._changed[gone.device.user] = after

    def _note(self, before: Presence, after: Presence) -> None:
        if before.state != after.state:
            self._changed[after.user] = after
            self._wake.set()

    async def _tell(self, user: str, presence: Presence) -> None:
        peers = _peers(user, await self._store.heads_of(user, 0, PEERS_TOLD))
        present = await self._state.presence(peers)
        lists = await self._devices.of(list(present))
        there = {it.device for devices in present.values() for it in devices if it.state != "offline"}
        fanout = Fanout(self._max_packet, self._counters)
        for peer in present:
            fanout.add(presence, [it for it in lists[peer] if it.device in there])
        await self._publish(fanout.messages())


def _peers(user: str, heads: Sequence[Head]) -> list[str]:
    peers: dict[str, None] = {}
    for head in heads:
        for member in members_of(head.conversation):
            if member != user:
                peers[member] = None
    return list(peers)
