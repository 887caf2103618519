"""Who is there: from `Hello`, `Status` and the last will, and told to the users' peers."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from random import random

from imqtt.core.backoff import backoff
from imqtt.core.conversations import members_of
from imqtt.core.presence import of_user
from imqtt.errors import Unavailable
from imqtt.model import Device, Head, Hello, Presence, Status
from imqtt.problems import Problem, explain
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.egress import Publish
from imqtt.server.fanout import Fanout
from imqtt.state.base import DevicePresence, State, StateAway
from imqtt.stores.base import Store

log = logging.getLogger(__name__)

PEERS_TOLD = 100  # of how many recent conversations the members hear of a change


class Presences:
    """The presence of the users whose devices speak to this process.

    Presence is soft: what is lost here is right again with the device's next command. But unknown is not
    offline: while the state is away peers are told nothing, and afterwards what is true then.
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
        # Users whose peers are to be told, who changed first first. Their presence is not kept: it is read
        # when it is told, as another worker may have heard of them since.
        self._changed: OrderedDict[str, None] = OrderedDict()
        self._wake = asyncio.Event()
        self._telling = Problem(
            log, "peers are not told of users' presence", "peers are told of users' presence again"
        )
        self._looking = Problem(
            log, "devices that have fallen silent are not looked for", "silent devices are looked for again"
        )

    async def heard(self, commands: Sequence[tuple[Device, Hello | Status]]) -> None:
        """Takes a batch's `Hello` and `Status`, in order, and notes of which users peers are to be told."""
        if not commands:
            return
        users = list(dict.fromkeys(device.user for device, _ in commands))
        before = await self._of_all(users)
        # One round trip to the state for all of them: after a broker's restart everybody says hello at once.
        await asyncio.gather(*(self._take(device, command) for device, command in commands))
        after = await self._of_all(users)
        for user in users:
            if before is None or after is None or before[user].state != after[user].state:
                self._note(user)

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

    async def _of_all(self, users: Collection[str]) -> dict[str, Presence] | None:
        """Each user's presence over all devices; None while the state is away, and nobody knows."""
        try:
            found = await self._state.presence(users)
        except StateAway:
            return None
        return {user: _over_all(user, found.get(user, ())) for user in users}

    async def of_peers(self, user: str, heads: Sequence[Head]) -> list[Presence]:
        """Those of the user's peers in these conversations who are known to be there."""
        presences = await self._of_all(_peers(user, heads)) or {}
        return [presence for presence in presences.values() if presence.state != "offline"]

    async def run(self) -> None:
        """Tells peers of changes, and finds devices that have fallen silent, until cancelled."""
        async with asyncio.TaskGroup() as tasks:  # however long telling takes, silence is found
            tasks.create_task(self._tell_changes(), name="presence-changes")
            tasks.create_task(self._find_silent(), name="presence-silent")

    async def _find_silent(self) -> None:
        while True:
            await asyncio.sleep(max(self._ttl / 10_000, 0.5))
            try:
                # Twice the time, as workers' clocks differ a little.
                for gone in await self._state.expired(self._clock(), 2 * self._ttl):
                    self._note(gone.device.user)
                self._looking.end()
            except Exception as error:
                self._looking.start(explain(error))
                log.debug("the look for silent devices failed", exc_info=True)

    async def _tell_changes(self) -> None:
        attempt = 0
        while True:
            while not self._changed:
                self._wake.clear()
                await self._wake.wait()
            user, _ = self._changed.popitem(last=False)  # what changes from here on is to be told as well
            try:
                await self._tell(user)
                attempt = 0
                self._telling.end()
            except (Unavailable, StateAway) as error:
                self._note(user)
                self._changed.move_to_end(user, last=False)
                attempt += 1
                self._telling.start(explain(error))
                await asyncio.sleep(backoff(attempt, random()))
            except Exception:
                log.exception("the peers of %s were not told of his presence", user)

    def _note(self, user: str) -> None:
        self._changed[user] = None
        self._wake.set()

    async def _tell(self, user: str) -> None:
        """Tells the user's peers who are there. Raises `Unavailable` or `StateAway`, and has told nobody."""
        peers = _peers(user, await self._store.heads_of(user, 0, PEERS_TOLD))
        present = await self._state.presence([user, *peers])
        his = present.pop(user, ())
        if not his:
            return  # forgotten since: what nobody knows is not told
        presence = _over_all(user, his)
        lists = await self._devices.of(list(present))
        there = {it.device for devices in present.values() for it in devices if it.state != "offline"}
        fanout = Fanout(self._max_packet, self._counters)
        for peer in present:
            fanout.add(presence, [it for it in lists[peer] if it.device in there])
        await self._publish(fanout.messages())


def _over_all(user: str, devices: Sequence[DevicePresence]) -> Presence:
    return of_user(user, [(it.state, it.since) for it in devices])


def _peers(user: str, heads: Sequence[Head]) -> list[str]:
    peers: dict[str, None] = {}
    for head in heads:
        for member in members_of(head.conversation):
            if member != user:
                peers[member] = None
    return list(peers)
