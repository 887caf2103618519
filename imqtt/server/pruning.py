"""Removing the records of abandoned devices.

A browser that logs in anew each time leaves a device behind each time, and every message is published to each
of them. A removed device that comes back is registered like a new one.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from imqtt.errors import Unavailable
from imqtt.model import Device, Registration
from imqtt.problems import Problem, explain
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.presence import Presences
from imqtt.server.sliced_queue import SlicedQueue, alone
from imqtt.state.base import StateAway
from imqtt.stores.base import Store

log = logging.getLogger(__name__)

DAY = 86_400_000  # milliseconds
WRITE_SECONDS = 10.0  # between two writes of last-seen times
SWEEP_SECONDS = 6 * 3_600.0  # between two sweeps over all devices
RETRY_SECONDS = 60.0  # after a sweep that failed
REGISTRATIONS_AT_ONCE = 500
REMOVED_AT_ONCE = 50
NAMED = 10  # devices that one line of the log names
JUMP = 7 * DAY  # report a clock that is further ahead of the measured time; a suspended machine's is, too


@dataclass(eq=False, repr=False)
class Pruning:
    """Removes devices not seen for `max_age` days, and devices of a user beyond `per_user`.

    Of a user's surplus, the devices not seen for longest are removed first. A present device stays.
    `patience` is in seconds: by then every connected device has sent a command, so a state that began empty
    knows which devices are present.

    A clock that is months ahead would make every device old. So a process removes no device for its age at
    its first sweep, and at later ones counts no more time since the first than it has measured itself.
    """

    store: Store
    devices: Devices
    presences: Presences
    counters: Counters
    max_age: int
    per_user: int
    patience: float
    sweeps: Callable[[], bool]  # whether this worker is the one that looks at all devices
    clock: Callable[[], int]
    timer: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        self._first: tuple[int, float] | None = None  # clock and timer at the first sweep
        self._jump = Problem(
            log, "the clock has jumped ahead, and no device is removed by its time", "the clock is back"
        )
        self._writing = Problem(
            log, "devices' last-seen times cannot be stored", "devices' last-seen times are stored again"
        )
        self._looking = Problem(
            log, "abandoned devices cannot be looked for", "abandoned devices are looked for again"
        )
        self._crowded = SlicedQueue("removing users' surplus devices", alone(self._thin_out))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_seen(), name="devices-seen")
            tasks.create_task(self._sweep_often(), name="devices-sweep")
            tasks.create_task(self._crowded.run(), name="devices-crowded")

    async def _write_seen(self) -> None:
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + self.patience
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            try:
                await self.devices.write_seen()
                self._writing.end()
            except Exception as error:  # whatever it is, it must not end the server
                self._writing.start(explain(error))
                log.debug("storing devices' last-seen times failed", exc_info=True)
            if loop.time() > patient_until:
                grown, self.devices.grown = self.devices.grown, {}
                for user, count in grown.items():
                    if count > self.per_user:
                        self._crowded.put(user)

    async def _sweep_often(self) -> None:
        pause = self.patience
        while True:
            await asyncio.sleep(pause)
            pause = SWEEP_SECONDS
            try:
                if self.sweeps():
                    await self.sweep()
                self._looking.end()
            except (Unavailable, StateAway) as error:
                self._looking.start(explain(error))
                pause = RETRY_SECONDS
            except Exception:
                log.exception("looking for abandoned devices failed")

    async def sweep(self) -> None:
        """Looks at all devices once. Raises `Unavailable` or `StateAway`."""
        started = self.clock(), self.timer()
        time = self._believed(*started)
        after, user, count = Device("", ""), "", 0
        while rows := await self.store.registrations(after, REGISTRATIONS_AT_ONCE):
            after = rows[-1].device
            now = self.clock()
            # Devices that imqtt 0.1 registered have no time; theirs counts from now on.
            await self.devices.see({row.device: now for row in rows if not row.seen})
            oldest = time - self.max_age * DAY
            old = [row for row in rows if 0 < row.seen < oldest]
            present = await self.presences.present({row.device.user for row in old})
            absent = [row for row in old if row.device not in present]
            await self._remove(absent, f"not seen for {self.max_age} days")
            for row in rows:
                count = count + 1 if row.device.user == user else 1
                user = row.device.user
                if count == self.per_user + 1:
                    self._crowded.put(user)
        self._first = self._first or started

    def _believed(self, clock: int, timer: float) -> int:
        """The time to compute devices' ages with. Until the first sweep is done, 0: no device is old."""
        if self._first is None:
            return 0
        first, began = self._first
        measured = first + int((timer - began) * 1_000)
        if clock - measured > JUMP:
            self._jump.start(
                f"it is {(clock - measured) // DAY} days further than the time measured by this process; "
                "if it is right, as after the machine was suspended, start the server again"
            )
        else:
            self._jump.end()
        return min(clock, measured)

    async def _thin_out(self, user: str, _: str) -> str:
        registrations = (await self.store.devices([user]))[user]
        if len(registrations) <= self.per_user:
            return ""
        known = {presence.device: presence for presence in await self.presences.of_devices(user)}
        now = self.clock()

        def seen(registration: Registration) -> int:
            presence = known.get(registration.device)
            return max(registration.seen or now, presence.since if presence is not None else 0)

        gone = [
            row for row in registrations if row.device not in known or known[row.device].state == "offline"
        ]
        surplus = sorted(gone, key=seen)[: len(registrations) - self.per_user]
        await self._remove(surplus, f"{user} has more than {self.per_user}")
        return ""

    async def _remove(self, registrations: Sequence[Registration], why: str) -> None:
        if not registrations:
            return
        for start in range(0, len(registrations), REMOVED_AT_ONCE):
            some = registrations[start : start + REMOVED_AT_ONCE]
            await self.devices.remove({row.device: row.seen for row in some})
        self.counters.devices_removed += len(registrations)
        names = ", ".join(str(row.device) for row in registrations[:NAMED])
        more = "" if len(registrations) <= NAMED else f" and {len(registrations) - NAMED} more"
        log.info("%d devices removed (%s): %s%s", len(registrations), why, names, more)
