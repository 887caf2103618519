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
from imqtt.stores.base import Store

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

    async def heard(self, commands: Sequence[tuple[Device, Hello | Status]]) -> None:
        """Takes a batch's `Hello` and `Status`, in order, and notes of which users peers are to be told."""
        if not commands:
            return
        users = {device.user for device, _ in commands}
        before = await self._of_all(users)
        # One round trip to the state for all of them: after a broker's restart everybody says hello at once.
        await asyncio.gather(*(self._take(device, command) for device, command in commands))
        after = await self._of_all(users)
        for user in users:
            self._note(before[user], after[user])

    async def _take(self, device: Device, command: Hello | Status) -> None:
        now = self._clock()
        state = command.state if isinstance(command, Status) else "online"
        presence = DevicePresence(device, command.nonce, state, since=now, expires=now + self._ttl)
        if isinstance(command, Hello):
            await self._state.arrive(presence)
        else:  # of another connection it changes nothing: a broker may replay an old will
            await self._state.update(presence)

    async def refresh(self, devices: Collection[Device]) -> None:
        """Whatever a device says keeps it present."""
        await self._state.refresh(devices, self._clock() + self._ttl)

    async def _of_all(self, users: Collection[str]) -> dict[str, Presence]:
        """Each user's presence over all devices."""
        found = await self._state.presence(users)
        return {user: of_user(user, [(it.state, it.since) for it in found.get(user, ())]) for user in users}

    async def of_peers(self, user: str, heads: Sequence[Head]) -> list[Presence]:
        """Those of the user's peers in these conversations who are there."""
        peers = _peers(user, heads)
        presences = await self._of_all(peers)
        return [presence for presence in presences.values() if presence.state != "offline"]

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
                try:
                    await self._sweep()
                except Exception:
                    log.exception("devices that have fallen silent were not looked for")
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
        if gone := await self._state.expired(now):
            after = await self._of_all({it.device.user for it in gone})
            self._changed |= {user: it for user, it in after.items() if it.state == "offline"}

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
