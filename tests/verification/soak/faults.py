"""The faults of a soak: those that do not restart a worker's process."""

from collections.abc import Collection, Iterator
from random import Random

from tests.verification.chaos.fault_kinds import KINDS
from tests.verification.chaos.faults import Fault, NotFired, Shape, wait_for_effect
from tests.verification.chaos.network_faults import CONNECTIONS, NETWORK_FAULTS, NetworkFault
from tests.verification.soak.stack import LoadProcess, SoakStack

SILENT_DEVICES = 10

# Without faults that restart a worker, which would reset the figures that are measured, and without those
# that remove accepted messages from the store.
CHOSEN = (
    "kill broker", "pause broker", "wipe broker", "old broker", "kill redis", "pause redis", "flush redis",
    "kill store", "pause store", "pause worker", "sleeping worker", "join worker", "rival", "clean rival",
    "clock ahead", "clock behind", "clock hour ahead", "clock hour behind", "full reads",
    *(f"{how} {between}" for how in NETWORK_FAULTS for between in CONNECTIONS),
)  # fmt: skip


class Drop(NetworkFault):
    """`drop`: present connections are reset; new ones are accepted at once."""

    async def fire(self) -> str:
        effect = self.stack.proxies[self.target].drop()
        if not effect:
            raise NotFired(f"{self.target} had no connections")
        return f"{effect.connections} connections, {effect.bytes} bytes"


class DeviceStopsReading(Fault):
    """Some devices ack nothing until the broker sends them nothing more. Repaired by reading again."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("devices",)

    async def fire(self) -> str:
        stack = self.stack
        assert isinstance(stack, SoakStack)
        assert stack.load is not None
        self._load: LoadProcess = stack.load
        self._chosen = self.rng.sample(self._load.devices, SILENT_DEVICES)
        for name in self._chosen:
            self._load.tell("stop reading", name)
        try:
            await wait_for_effect(
                lambda: set(self._chosen) & set(self._load.tally.stuck), "the broker holding back messages"
            )
        except AssertionError:
            await self.repair()
            raise
        return f"messages held back for {len(self._load.tally.stuck)} of {SILENT_DEVICES} devices"

    async def repair(self) -> str:
        count = len(self._load.tally.stuck)
        for name in self._chosen:
            self._load.tell("resume reading", name)
        return f"messages were held back for {count} devices"


SOAK_KINDS: dict[str, type[Fault]] = {
    **{kind: KINDS[kind] for kind in CHOSEN},
    **{f"drop {between}": Drop for between in CONNECTIONS},
    "deaf devices": DeviceStopsReading,
}


def faults(shape: Shape, kinds: Collection[str], rng: Random) -> Iterator[tuple[str, str]]:
    """An endless sequence of kinds and targets. No kind repeats before every kind has occurred."""
    possible = [
        kind for kind in kinds or SOAK_KINDS if kind in SOAK_KINDS and SOAK_KINDS[kind].targets(kind, shape)
    ]
    while possible:
        for kind in rng.sample(possible, len(possible)):
            yield kind, rng.choice(list(SOAK_KINDS[kind].targets(kind, shape)))
