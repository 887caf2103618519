"""What every state does. The suite in `tests/contract` defines it; this is its shape.

State is shared by the owners of all partitions. Losing all of it costs speed, never a message: a missing
answer always means "read the store". One call carries a whole batch, since a remote state costs a round
trip. Times are milliseconds since the Unix epoch.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from imqtt.errors import ImqttError
from imqtt.model import Device
from imqtt.stores.base import Key, Registration

# Milliseconds for which commands alone may be kept from bringing back a device that has gone offline. An
# `expires` further ahead was set by a clock that was ahead, and does not count.
SILENCED_MOST = 60_000


class StateAway(ImqttError):
    """The state cannot be reached, or not in time."""

    code = "state_away"
    retryable = True


class DevicePresence(msgspec.Struct, frozen=True, gc=False):
    """A device's last known state. `nonce` is that of the connection's `Hello`; times in milliseconds.

    An empty `nonce`: the device's `Hello` is not known, since the state has lost it or there was none. If the
    device is offline, commands alone do not make it present before `expires`; one that fell silent has
    `expires == since`.
    """

    device: Device
    nonce: str
    state: str
    since: int
    expires: int


class Holding(msgspec.Struct, frozen=True, gc=False):
    """A partition whose session a worker holds, or has not let go of yet. Times in milliseconds."""

    partition: int
    since: int
    unfinished: int = 0  # commands received, and not PUBACKed yet
    oldest: int = 0  # how long the oldest of them has waited
    cuts: int = 0  # how often the session was taken from this worker in the last minutes, unexplained


class Worker(msgspec.Struct, frozen=True, gc=False):
    """A server process as it shows itself to the others. `started` in milliseconds since the Unix epoch."""

    id: str
    host: str
    pid: int
    started: int
    version: str = ""
    beats: int = 0  # how often it has shown itself
    holdings: tuple[Holding, ...] = ()
    leaving: bool = False  # lets go of what it holds, and takes nothing on
    stuck: bool = False  # cannot store anything, or is refused a session, for some time
    trouble: str = ""  # what an operator should know of: a rival, a state that does not answer


class State(Protocol):
    """Seen ids, device lists, presence, rate limits and workers.

    A state that cannot be reached answers as one that knows nothing, soon, and says so in `trouble`; only
    `beat`, `workers` and `presence` raise `StateAway`.
    """

    @property
    def shared(self) -> bool:
        """Whether several processes may serve one store with it."""

    @property
    def trouble(self) -> str:
        """What is wrong with it at the moment, for the operator; "" if nothing is."""

    async def close(self) -> None:
        """Lets go of connections."""

    # --- workers: who is alive

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        """Shows `worker` to the others for `ttl` milliseconds. Returns all that show themselves, by id.

        Raises `StateAway` where it cannot be known who is alive.
        """

    async def workers(self) -> list[Worker]:
        """All that show themselves, by id, for whoever is no worker. Raises `StateAway`."""

    async def leave(self, worker: str) -> None:
        """The worker of this id is gone; at once, instead of when its time has run out."""

    # --- deduplication: a hint that saves the index a miss

    async def recall(self, keys: Collection[Key]) -> frozenset[Key]:
        """Those of `keys` that were maybe stored before. On a hit the store is read and answers.

        A key that was never remembered may be among them, seldom; one remembered long ago may be missing.
        """

    async def remember(self, keys: Collection[Key]) -> None:
        """Notes keys, after their commit."""

    # --- device lists: a cache of the store's

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        """The device lists that are known; a user without an entry is to be read from the store."""

    async def lease_devices(self, users: Collection[str]) -> int:
        """Begins a read of the store whose answer `fill_devices` brings. Returns the lease."""

    async def fill_devices(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        """Caches lists read from the store, but for users forgotten since the lease was given.

        A lease that is never brought back costs nothing.
        """

    async def forget_devices(self, users: Collection[str]) -> None:
        """After a registration was committed: the next reader reads the store."""

    async def distrust_devices(self) -> None:
        """Forgets every list: a worker is gone, and may have registered devices without telling."""

    # --- presence

    async def arrive(self, presence: DevicePresence) -> None:
        """A device's `Hello`: replaces whatever connection it had before."""

    async def update(self, presence: DevicePresence) -> bool:
        """A `Status`. False, and nothing changed, if its nonce is not the last `Hello`'s.

        A device whose nonce is not known (the state was lost, and the connection was not) is taken at its
        word. If it goes `offline`, the nonce stays unknown: it may be an earlier connection's last will.
        """

    async def refresh(self, devices: Collection[Device], now: int, expires: int) -> dict[Device, str]:
        """Any command keeps a device present until `expires` or later.

        Returns the devices that were absent and are now online, each with its nonce: devices not known, that
        fell silent, or that went offline by themselves and whose `expires` has passed. A device that fell
        silent keeps its nonce; that of the others is unknown (""). After the state was away, the answer
        includes devices of earlier calls.
        """

    async def presence(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        """The known devices of each user; a user without any has no entry.

        Raises `StateAway` where it cannot be known who is there: that is not to be taken for "nobody".
        """

    async def expired(self, now: int, longest: int | None = None) -> list[DevicePresence]:
        """Devices whose presence has run out by `now` and was not offline; they are offline from now on.

        Each is returned once, as it is now: `since` is when it ran out. A presence that would last for more
        than `longest` milliseconds from now was set by a clock that was ahead, and is shortened to that.
        """

    # --- rate limits

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        """Takes up to so many tokens from each device's bucket; returns how many there were.

        The rate and burst are the state's own. Between two calls whose clock stepped back nothing is added.
        """
