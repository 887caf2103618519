"""The interface of all states. The suite in `tests/contract` defines their behaviour.

The workers of a deployment share one state. Losing all of it costs speed, never a message: a missing answer
always means "read the store". Each call takes a whole batch, since a remote state costs a round trip. Times
are milliseconds since the Unix epoch.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

import msgspec

from imqtt.errors import ImqttError
from imqtt.model import Device, Key, Registration

# Milliseconds for which commands may leave a device offline after it went offline by itself. A later
# `expires` comes from a clock that was ahead, and does not count.
SILENCED_MOST = 60_000


class StateAway(ImqttError):
    """The state does not answer in time."""

    code = "state_away"
    retryable = True


class DevicePresence(msgspec.Struct, frozen=True, gc=False):
    """A device's last known state. `nonce` is that of the connection's `Hello`; times in milliseconds.

    An empty `nonce`: the device's `Hello` is unknown, because the state lost it or there was none. If the
    device is offline, commands alone do not make it present before `expires`; a device that fell silent has
    `expires == since`.
    """

    device: Device
    nonce: str
    state: str
    since: int
    expires: int


class Holding(msgspec.Struct, frozen=True, gc=False):
    """A partition whose session a worker holds or has not released yet. Times in milliseconds."""

    partition: int
    since: int
    unfinished: int = 0  # commands received and not PUBACKed yet
    oldest: int = 0  # age of the oldest of them
    cuts: int = 0  # recent unexplained disconnections


class Worker(msgspec.Struct, frozen=True, gc=False):
    """A server process, as its heartbeats describe it. `started` in milliseconds since the Unix epoch."""

    id: str
    host: str
    pid: int
    started: int
    version: str = ""
    beats: int = 0  # number of heartbeats
    holdings: tuple[Holding, ...] = ()
    leaving: bool = False  # releases its partitions and takes none
    stuck: bool = False  # has not been able to store anything, or was refused a session, for some time
    trouble: str = ""  # its problems, for the operator


class Workers(Protocol):
    """The live workers."""

    async def beat(self, worker: Worker, ttl: int) -> list[Worker]:
        """Records a heartbeat, valid for `ttl` ms. Returns all live workers, by id. Raises `StateAway`."""

    async def workers(self) -> list[Worker]:
        """All live workers, by id, for callers that are not workers. Raises `StateAway`."""

    async def leave(self, worker: str) -> None:
        """Removes a worker at once, before its heartbeat expires."""


class SeenKeys(Protocol):
    """The keys of recent messages: a hint that saves most lookups in the store."""

    async def seen(self, keys: Collection[Key]) -> frozenset[Key]:
        """The `keys` that may be stored already; the caller asks the store about them.

        False positives are rare. A key that was marked long ago may be missing.
        """

    async def mark_seen(self, keys: Collection[Key]) -> None:
        """Marks keys as stored, after their commit."""


class DeviceLists(Protocol):
    """A cache of the store's device lists."""

    async def devices(self, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        """The cached device lists; a user without an entry must be read from the store."""

    async def lease_devices(self, users: Collection[str]) -> int:
        """Begins a read of the store, which `fill_devices` ends. Returns the lease."""

    async def fill_devices(self, lease: int, lists: Mapping[str, tuple[Registration, ...]]) -> None:
        """Caches lists read from the store, except of users forgotten since the lease was given.

        A lease that is never used costs nothing.
        """

    async def forget_devices(self, users: Collection[str]) -> None:
        """Called after a registration was committed: the next reader reads the store."""

    async def distrust_devices(self) -> None:
        """Forgets every list. A dead worker may have registered devices and not forgotten their lists."""


class PresenceState(Protocol):
    """The presence of devices."""

    async def arrive(self, presence: DevicePresence) -> None:
        """Records a device's `Hello`; replaces the entry of an earlier connection."""

    async def update(self, presence: DevicePresence) -> bool:
        """Records a `Status`. Changes nothing and returns False if its nonce is not the last `Hello`'s.

        If the device's nonce is unknown, because the state was lost and the connection was not, the status is
        accepted. If it is `offline`, the nonce stays unknown, since it may be an earlier connection's last
        will.
        """

    async def refresh(self, devices: Collection[Device], now: int, expires: int) -> dict[Device, str]:
        """Called after any command; keeps the devices present until `expires` or later.

        Returns the devices that were absent and are now online, each with its nonce: devices that were
        unknown, that fell silent, or that went offline by themselves and whose `expires` has passed. A device
        that fell silent keeps its nonce; that of the others is unknown (""). After the state was away, the
        answer includes devices of earlier calls.
        """

    async def presence(self, users: Collection[str]) -> dict[str, tuple[DevicePresence, ...]]:
        """The known devices of each user; a user without any has no entry.

        Raises `StateAway`, so that an unreachable state is not mistaken for an empty one.
        """

    async def expired(self, now: int, longest: int | None = None) -> list[DevicePresence]:
        """Sets devices offline whose presence has expired by `now`, and returns them, each once.

        Their `since` is the time of expiry. A presence that would last for more than `longest` milliseconds
        from now comes from a clock that was ahead, and is shortened to that.
        """


class RateLimits(Protocol):
    """A token bucket for each device."""

    async def take(self, wanted: Mapping[Device, int], now: int) -> dict[Device, int]:
        """Takes up to this many tokens from each device's bucket; returns how many were available.

        Rate and burst are properties of the state. If the clock stepped back since the last call, no tokens
        are added.
        """


class Begun(NamedTuple):
    """The answers of `State.begin`: as those of `devices`, `seen` and `take`."""

    lists: dict[str, tuple[Registration, ...]]
    maybe: frozenset[Key]
    tokens: dict[Device, int]


class State(Workers, SeenKeys, DeviceLists, PresenceState, RateLimits, Protocol):
    """Workers, seen keys, device lists, presence and rate limits.

    A state that cannot be reached soon answers like an empty one and sets `trouble`; only `beat`, `workers`
    and `presence` raise `StateAway`.
    """

    async def begin(
        self, users: Collection[str], keys: Collection[Key], wanted: Mapping[Device, int], now: int
    ) -> Begun:
        """`devices`, `seen` and `take` in one round trip: what a batch needs before its decisions."""

    async def finish(
        self, stored: Collection[Key], users: Collection[str]
    ) -> dict[str, tuple[Registration, ...]]:
        """`mark_seen` and `devices` in one round trip, after a batch's commit."""

    @property
    def shared(self) -> bool:
        """Whether several processes may share it."""

    @property
    def trouble(self) -> str:
        """Its current problem, for the operator; "" if there is none."""

    async def close(self) -> None:
        """Closes connections."""
