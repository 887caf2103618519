"""Presence: derived from devices' commands and last wills, and published to users' peers."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from imqtt.core.presence import of_user
from imqtt.model import Device, Head, Hello, Presence, Status
from imqtt.problems import Problem, explain
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.fanout import Fanout
from imqtt.server.memberships import members_of
from imqtt.server.publisher import Publish
from imqtt.server.sliced_queue import SlicedQueue, alone
from imqtt.state.base import DevicePresence, PresenceState, StateAway
from imqtt.stores.base import MemberStore

log = logging.getLogger(__name__)

PEERS_AT_ONCE = 200  # conversations in one slice
TOLD_AT_ONCE = 32  # users whose first peers are told together: a device then gets one packet for all of them
FIRST_PEERS = 20  # conversations of each of these
DEVICES_AT_ONCE = 500  # of those looked up in the state
REFRESH_SECONDS = 0.25  # commands in which a device reports no state of its own are noted together
# For this long after a device went offline by itself, commands alone do not make it present: commands that it
# published before, to other partitions, may be carried out later than its `offline`.
FAREWELL_SECONDS = 10
LATELY = 2 * 86_400_000  # milliseconds; last-seen times are stored once a day


class Newcomer(NamedTuple):
    """A device that is to be sent the presence of its user's peers.

    `back`: it was absent without losing its connection, and missed changes, so it is sent offline peers too.
    After a `Hello` a device takes every peer for offline anyway. `settled`: the state did not know the
    device, perhaps because it had lost everything, but has by now heard of every present device. A user
    without a present device is offline, and may have left unnoticed.
    """

    device: Device
    back: bool
    settled: bool = False


@dataclass(eq=False, repr=False)
class Presences:
    """The presence of the users whose devices speak to this process.

    Presence is soft: a device's next command corrects any loss. But unknown is not offline: while
    the state is away peers are told nothing. Publishing happens beside the batches, in slices, so a user with
    fifty thousand conversations delays no one else. Presence is never kept here: it is read just before it is
    published, since another worker may have changed it.
    """

    store: MemberStore
    state: PresenceState
    devices: Devices
    publish: Publish
    counters: Counters
    max_packet: int
    ttl: int  # milliseconds after which a silent device is offline
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._changed = SlicedQueue("telling peers of users' presence", self._tell, together=TOLD_AT_ONCE)
        self._newcomers = SlicedQueue("telling new devices of their peers' presence", alone(self._tell_all))
        self._acquainted = SlicedQueue("telling two users of each other's presence", alone(self._introduce))
        self._spoke: dict[Device, None] = {}  # to be noted, and so are the following
        self._status: list[tuple[Device, Hello | Status]] = []
        self._noted: asyncio.Future[None] | None = None
        self._noting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._unknown: dict[Device, int] = {}  # devices unknown to the state, and when it will be settled
        self._looking = Problem(
            log, "devices that have fallen silent are not looked for", "silent devices are looked for again"
        )

    def hear(
        self, spoke: Iterable[Device], status: Sequence[tuple[Device, Hello | Status]]
    ) -> asyncio.Future[None] | None:
        """Takes a batch's devices, and its `Hello` and `Status` in order, to be noted beside the batches.

        If there are any of the latter, all are noted at once, and the future is done when they are.
        """
        if not status:
            self._spoke.update(dict.fromkeys(spoke))
            return None
        reported = {device for device, command in status if not is_farewell(command)}
        self._spoke.update(dict.fromkeys(device for device in spoke if device not in reported))
        self._status += status
        self._wake.set()
        if self._noted is None:
            self._noted = asyncio.get_running_loop().create_future()
        return self._noted

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            spoke, self._spoke = self._spoke, {}
            status, self._status = self._status, []
            noted, self._noted = self._noted, None
            try:
                async with self._noting:
                    if spoke:
                        await self.refresh(spoke)
                    if status:
                        await self.note(status)
            except Exception:  # presence is soft: the devices' next commands set it right
                log.exception("the presence of %d devices was not noted", len(spoke) + len(status))
            finally:
                if noted is not None and not noted.done():  # a cancelled waiter cancels it
                    noted.set_result(None)

    async def note(self, commands: Sequence[tuple[Device, Hello | Status]]) -> None:
        """Notes `Hello` and `Status`, in order, and the users whose peers are to be told."""
        users = list(dict.fromkeys(device.user for device, _ in commands))
        before = await self._known(users)
        # One round trip to the state for all of them: after a broker's restart everybody says hello at once.
        taken = await asyncio.gather(*(self._take(device, command) for device, command in commands))
        after = await self._known(users)
        for user in users:
            # If the state did not know the user, it may have lost its memory after peers were told.
            if before is None or after is None or _state_of(user, before) != _state_of(user, after):
                self._changed.put(user)
        for device, command in commands:
            if isinstance(command, Hello):  # it takes every peer for offline
                self._unknown.pop(device, None)
            elif not is_farewell(command) and not _is_connected(device, before or {}):
                self._newcomers.put(Newcomer(device, back=True))
                self._settle(device)
        # A `Status` with another connection's nonce changes nothing, but it shows that the device is there.
        ignored = {
            device
            for (device, command), done in zip(commands, taken, strict=True)
            if not done and not is_farewell(command)
        }
        if ignored:
            await self.refresh(ignored)

    async def _take(self, device: Device, command: Hello | Status) -> bool:
        now = self.clock()
        state = command.state if isinstance(command, Status) else "online"
        expires = now + (FAREWELL_SECONDS * 1_000 if state == "offline" else self.ttl)
        presence = DevicePresence(device, command.nonce, state, since=now, expires=expires)
        if isinstance(command, Hello):
            await self.state.arrive(presence)
            return True
        # That of another connection changes nothing: a broker may replay an old will.
        return await self.state.update(presence)

    async def refresh(self, devices: Collection[Device]) -> None:
        """Any command makes a device present and keeps it so."""
        now = self.clock()
        for device, nonce in (await self.state.refresh(devices, now, now + self.ttl)).items():
            self._changed.put(device.user)
            if nonce:
                self._newcomers.put(Newcomer(device, back=True))
            else:
                self._settle(device)

    def _settle(self, device: Device) -> None:
        """Schedules telling the device of offline peers, once the state has heard of every present device."""
        self._unknown[device] = self.clock() + self.ttl

    async def end(self, devices: Collection[Device]) -> None:
        """Ends devices' presence on any connection, and has their peers told.

        A device that is known to be offline already is not told of again. Commands of earlier batches do not
        make the devices present afterwards.
        """
        self._status = [(device, command) for device, command in self._status if device not in devices]
        self._spoke = {device: None for device in self._spoke if device not in devices}
        async with self._noting:
            known = await self._known({device.user for device in devices}) or {}
            offline = {one.device for user in known.values() for one in user if one.state == "offline"}
            now = self.clock()
            expires = now + FAREWELL_SECONDS * 1_000
            gone = [DevicePresence(device, "", "offline", now, expires) for device in devices]
            await asyncio.gather(*map(self.state.arrive, gone))
            for device in devices:
                if device not in offline:
                    self._changed.put(device.user)

    def acquaint(self, user: str, other: str) -> None:
        """Two users have begun a conversation. Each will be told if the other is online."""
        self._acquainted.put((user, other))

    async def for_newcomer(self, device: Device, heads: Sequence[Head], *, more: bool) -> list[Presence]:
        """The presence of the user's peers in these conversations, without offline ones.

        If there are `more` conversations, or the state is away, the device is told of the rest later.
        """
        user = device.user
        known = await self._known(await _peers(user, [head.conversation for head in heads]))
        if more or known is None:
            self._newcomers.put(Newcomer(device, back=False))
        return [peer for peer in _presences(known or {}) if peer.state != "offline"]

    async def of_devices(self, user: str) -> tuple[DevicePresence, ...]:
        """The known presence of each of the user's devices. Raises `StateAway`."""
        return (await self.state.presence([user])).get(user, ())

    async def present(self, users: Collection[str]) -> set[Device]:
        """The devices of these users that are not offline. Raises `StateAway`."""
        return _online(await self.state.presence(users))

    async def run(self) -> None:
        """Notes presence, tells peers of changes, and finds devices that fell silent, until cancelled."""
        async with asyncio.TaskGroup() as tasks:  # however long telling takes, silence is found
            tasks.create_task(self._listen(), name="presence-noting")
            tasks.create_task(self._changed.run(), name="presence-changes")
            tasks.create_task(self._newcomers.run(), name="presence-newcomers")
            tasks.create_task(self._acquainted.run(), name="presence-acquainted")
            tasks.create_task(self._find_silent(), name="presence-silent")

    async def _find_silent(self) -> None:
        while True:
            await asyncio.sleep(max(self.ttl / 10_000, 0.5))
            try:
                now = self.clock()
                # Twice the time, as workers' clocks differ a little.
                for gone in await self.state.expired(now, 2 * self.ttl):
                    self._changed.put(gone.device.user)
                await self._find_settled(now)
                self._looking.end()
            except Exception as error:
                self._looking.start(explain(error))
                log.debug("the look for silent devices failed", exc_info=True)

    async def _find_settled(self, now: int) -> None:
        """Tells the devices that have waited for long enough and are still present. The state may be away."""
        due = [device for device, until in self._unknown.items() if until <= now]
        for start in range(0, len(due), DEVICES_AT_ONCE):
            some = due[start : start + DEVICES_AT_ONCE]
            known = await self._known({device.user for device in some})
            if known is None:
                return  # they are looked for again
            present = _online(known)
            for device in some:
                if self._unknown.get(device, now + 1) > now:
                    continue  # meanwhile it has said hello, or the state has lost its memory again
                del self._unknown[device]
                if device in present:
                    self._newcomers.put(Newcomer(device, back=True, settled=True))

    async def _known(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]] | None:
        """The devices of each user of whom something is known; None while the state is away."""
        try:
            return await self.state.presence(users)
        except StateAway:
            return None

    # --- publishing, a slice at a time. Each raises `Unavailable` or `StateAway` before publishing anything.

    async def _tell(self, slices: Sequence[tuple[str, str]]) -> list[str]:
        """Tells users' presence to those of their peers who are online."""
        slice_size = PEERS_AT_ONCE if len(slices) == 1 else FIRST_PEERS
        found = await self._peers_after(dict(slices), slice_size)
        known = await self.state.presence(
            {*found, *chain.from_iterable(peers for peers, _ in found.values())}
        )
        # The state may have lost a user since.
        told = {user: peers for user, (peers, _) in found.items() if user in known}
        online = _online({peer: known[peer] for peers in told.values() for peer in peers if peer in known})
        lists = await self.devices.of({device.user for device in online})
        fanout = Fanout(self.max_packet, self.counters)
        for user, peers in told.items():
            registrations = chain.from_iterable(lists.get(peer, ()) for peer in peers)
            presence = of_user(user, _states(known[user]))
            fanout.add(presence, [peer for peer in registrations if peer.device in online])
        await self.publish(fanout.packets())
        return [found[user][1] for user, _ in slices]

    async def _tell_all(self, newcomer: Newcomer, after: str) -> str:
        """Tells a device of its user's peers."""
        device = newcomer.device
        ((peers, ended),) = (await self._peers_after({device.user: after}, PEERS_AT_ONCE)).values()
        lists = await self.devices.of([device.user])
        registrations = [own for own in lists[device.user] if own.device == device]
        fanout = Fanout(self.max_packet, self.counters)
        lately = await self._seen_lately(peers) if newcomer.settled else set()
        known = await self.state.presence([device.user, *peers])
        own = known.pop(device.user, ())
        if any(one.device == device for one in own):  # otherwise the state has lost everything again
            for user in lately - known.keys():
                fanout.add(Presence(user, "offline"), registrations)  # since when is unknown
        for presence in _presences(known):
            if newcomer.back or presence.state != "offline":
                fanout.add(presence, registrations)
        # No await between reading and publishing: what `_tell` publishes later is never older than this.
        await self.publish(fanout.packets())
        return ended

    async def _seen_lately(self, users: Collection[str]) -> set[str]:
        lists, now = await self.devices.of(users), self.clock()
        return {user for user in users if any(one.seen and now - one.seen < LATELY for one in lists[user])}

    async def _introduce(self, pair: tuple[str, str], _: str) -> str:
        """Tells each of two users the other's presence unless it is offline."""
        lists = await self.devices.of(pair)
        known = await self.state.presence(pair)
        online = _online(known)
        fanout = Fanout(self.max_packet, self.counters)
        for user, other in (pair, pair[::-1]):
            presence = of_user(user, _states(known.get(user, ())))
            if presence.state != "offline":
                fanout.add(presence, [peer for peer in lists[other] if peer.device in online])
        # No await between reading and publishing here either.
        await self.publish(fanout.packets())
        return ""

    async def _peers_after(self, after: Mapping[str, str], limit: int) -> dict[str, tuple[list[str], str]]:
        """Each user's peers in a slice of the conversations, and where that ended ("": nothing follows)."""
        found = await self.store.conversations_of(after, limit)
        return {
            user: (await _peers(user, names), names[-1] if len(names) == limit else "")
            for user, names in found.items()
        }


def is_farewell(command: Hello | Status) -> bool:
    """Whether it is `offline`, from the device itself or its last will."""
    return isinstance(command, Status) and command.state == "offline"


async def _peers(user: str, conversations: Sequence[str]) -> list[str]:
    members = await members_of(conversations)
    peers = dict.fromkeys(peer for name in conversations for peer in members.of(name))
    return [peer for peer in peers if peer != user]


def _online(known: Mapping[str, Sequence[DevicePresence]]) -> set[Device]:
    return {one.device for devices in known.values() for one in devices if one.state != "offline"}


def _states(devices: Sequence[DevicePresence]) -> list[tuple[str, int]]:
    return [(presence.state, presence.since) for presence in devices]


def _state_of(user: str, known: dict[str, tuple[DevicePresence, ...]]) -> str:
    return of_user(user, _states(known[user])).state if user in known else "unknown"


def _is_connected(device: Device, known: dict[str, tuple[DevicePresence, ...]]) -> bool:
    """Whether the device is present with a known nonce."""
    found = known.get(device.user, ())
    return any(one.device == device and one.nonce and one.state != "offline" for one in found)


def _presences(known: dict[str, tuple[DevicePresence, ...]]) -> list[Presence]:
    return [of_user(user, _states(devices)) for user, devices in known.items()]
