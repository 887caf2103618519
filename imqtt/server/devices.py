"""Which devices a user has: read from the store, remembered in the state."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from imqtt.errors import Unavailable
from imqtt.model import Device, DeviceFormat, Hello, Registration
from imqtt.problems import explain
from imqtt.protocol import Format
from imqtt.server.problems import Problems
from imqtt.server.retry import until_known
from imqtt.state.base import DeviceLists
from imqtt.stores.base import DeviceStore

SEEN_EVERY = 86_400_000  # milliseconds after which a device's last-seen time is stored again


class Registered(NamedTuple):
    """The devices of a batch by their last commands. `new`: those that were unknown.

    `changed` is to be written. `refused`: new devices that the store does not have, and why. They get answers
    to messages but no pages, since no later event would be published to them.
    """

    current: dict[Device, Registration]
    new: Collection[Device] = ()
    changed: Sequence[Registration | DeviceFormat] = ()
    refused: Mapping[Device, Unavailable] = {}


class Devices:
    """The store is the truth; a user whose list the state does not have is read from there."""

    def __init__(
        self, store: DeviceStore, state: DeviceLists, problems: Problems, clock: Callable[[], int]
    ) -> None:
        self._store = store
        self._state = state
        self._problems = problems
        self._clock = clock
        self.seen: dict[Device, int] = {}  # when, for devices whose stored time is older than a day
        # Users with a new device, and how many devices they have. `Pruning` takes these and clears it.
        self.grown: dict[str, int] = {}

    async def of(
        self, users: Collection[str], cached: dict[str, tuple[Registration, ...]] | None = None
    ) -> dict[str, tuple[Registration, ...]]:
        """Every device of each user; `cached`: the lists that the state has, if it was asked already.

        To miss no device, ask after the commit of the events.
        """
        lists = await self._state.devices(users) if cached is None else cached
        if len(lists) < len(users):
            missing = [user for user in users if user not in lists]
            lease = await self._state.lease_devices(missing)
            read = await self._store.devices(missing)
            await self._state.fill_devices(lease, read)
            lists.update(read)
        return lists

    def match(
        self,
        spoke: Mapping[Device, tuple[Format, Hello | None]],
        lists: Mapping[str, tuple[Registration, ...]],
    ) -> Registered:
        """Compares the devices of a batch with their users' lists.

        Only a device that is new, or that changed its format or what its `Hello` says, costs a write. Another
        worker may be registering the same device, so without its `Hello` only the format is written.
        """
        known = {before.device: before for devices in lists.values() for before in devices}
        current: dict[Device, Registration] = {}
        new: list[Device] = []
        changed: list[Registration | DeviceFormat] = []
        time = self._clock()
        for device, (format, hello) in spoke.items():
            before = known.get(device)
            seen = before.seen if before is not None else 0
            now = _registration(device, before, format, hello)
            if now != before:
                now = replace(now, seen=max(seen, time))
                changed.append(now if hello is not None else DeviceFormat(device, format.value, now.seen))
                if before is None:
                    new.append(device)
                    self.grown[device.user] = self.grown.get(device.user, len(lists[device.user])) + 1
            elif time - seen > SEEN_EVERY:
                self.seen[device] = time
            current[device] = now
        return Registered(current, new, changed)

    async def write(self, registered: Registered) -> Registered:
        """Stores what has changed. Returns the devices as they are then."""
        current, new, changed, _ = registered
        refused: dict[Device, Unavailable] = {}
        try:
            await until_known(
                "registering devices", lambda _: self._store.put_devices(changed), self._problems
            )
        except Unavailable as error:
            self._problems.storing.start(explain(error), "devices")
            refused = dict.fromkeys(new, error)
        else:
            self._problems.storing.end_all()
        await self._state.forget_devices({one.device.user for one in changed})
        unheard = [one.device for one in changed if isinstance(one, DeviceFormat)]
        if unheard:
            await self._complete(current, unheard)
        return Registered(current, new, refused=refused)

    async def known(self, spoke: Mapping[Device, tuple[Format, Hello | None]]) -> dict[Device, Registration]:
        """Those devices whose registration already matches their last commands. Writes nothing.

        A different platform does not count, since it does not change the packets for a device.
        """
        lists = await self.of({device.user for device in spoke})
        known: dict[Device, Registration] = {}
        for before in chain.from_iterable(lists.values()):
            if (spoken := spoke.get(before.device)) is not None:
                now = _registration(before.device, before, *spoken)
                if replace(now, platform=before.platform) == before:
                    known[before.device] = now
        return known

    async def _complete(self, current: dict[Device, Registration], unheard: Collection[Device]) -> None:
        """Reads these again: another worker may have received a `Hello`. They keep the format they used.

        Such a device may have asked for small packets, and the broker silently drops larger ones.
        """
        lists = await self.of({device.user for device in unheard})
        stored = {known.device: known for user in lists for known in lists[user]}
        for device in unheard:
            if device in stored:
                current[device] = replace(stored[device], format=current[device].format)

    async def write_seen(self) -> None:
        """Stores when devices were last seen. If it raises, the next call tries the same again."""
        seen, self.seen = self.seen, {}
        if not seen:
            return
        try:
            await self.see(seen)
        except Exception:
            self.seen = seen | self.seen
            raise
        await self._state.forget_devices({device.user for device in seen})

    async def see(self, seen: Mapping[Device, int]) -> None:
        """Stores when these devices were last seen, and waits while the outcome is unknown."""
        await until_known(
            "storing when devices were seen", lambda _: self._store.see_devices(seen), self._problems
        )

    async def remove(self, devices: Mapping[Device, int | None]) -> None:
        """Removes devices from the store and from every audience; with a time, unless seen after that.

        Raises `Unavailable`; then any of them may be removed. Waits while an outcome is unknown.
        """
        remove = self._store.remove_device
        try:
            await until_known(
                "removing devices",
                lambda _: asyncio.gather(*(remove(one, unseen_since=at) for one, at in devices.items())),
                self._problems,
            )
        finally:
            await self._state.forget_devices({device.user for device in devices})


def _registration(
    device: Device, before: Registration | None, format: Format, hello: Hello | None
) -> Registration:
    if hello is not None:
        return Registration(
            device, format.value, hello.platform, hello.max_packet, 0 if before is None else before.seen
        )
    if before is None:
        return Registration(device, format.value)
    return before if before.format == format.value else replace(before, format=format.value)
