"""What is done to a soak's parts: those faults after which the worker's process is still the same one."""

from collections.abc import Collection, Iterator
from random import Random

from tests.verification.chaos.faults import Fault, NotFired, Shape, shows
from tests.verification.chaos.kinds import KINDS
from tests.verification.chaos.wires import BETWEEN, HOW, Wire
from tests.verification.soak.parts import LoadProcess, SoakStack

DEAF = 10  # devices

# Not those by which a worker is begun anew, which has nothing left then of what was to be measured; nor those
# by which the store has less than was accepted.
CHOSEN = (
    "kill broker", "pause broker", "wipe broker", "old broker", "kill redis", "pause redis", "flush redis",
    "kill store", "pause store", "pause worker", "sleeping worker", "join worker", "rival", "clean rival",
    "clock ahead", "clock behind", "clock hour ahead", "clock hour behind", "full reads",
    *(f"{how} {between}" for how in HOW for between in BETWEEN),
)  # fmt: skip


class Drop(Wire):
    """`drop`: the connections that there are are reset, and new ones may be made at once."""

    async def fire(self) -> str:
        hit = self.stack.ways[self.target].drop()
        if not hit:
            raise NotFired(f"{self.target} had no connections")
        return f"{hit.connections} connections, {hit.bytes} bytes"


class Deaf(Fault):
    """Some devices ack nothing, until the broker sends them nothing. Healed by their going on."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("devices",)

    async def fire(self) -> str:
        stack = self.stack
        assert isinstance(stack, SoakStack)
        assert stack.load is not None
        self._load: LoadProcess = stack.load
        self._deaf = self.chance.sample(self._load.devices, DEAF)
        for name in self._deaf:
            self._load.tell("deafen", name)
        try:
            await shows(
                lambda: set(self._deaf) & set(self._load.tally.stuck), "the broker keeping something back"
            )
        except AssertionError:
            await self.heal()
            raise
        return f"the broker keeps back what comes for {len(self._load.tally.stuck)} of {DEAF} devices"

    async def heal(self) -> str:
        count = len(self._load.tally.stuck)
        for name in self._deaf:
            self._load.tell("hear", name)
        return f"it kept back what came for {count}"


SOAK_KINDS: dict[str, type[Fault]] = {
    **{kind: KINDS[kind] for kind in CHOSEN},
    **{f"drop {between}": Drop for between in BETWEEN},
    "deaf devices": Deaf,
}


def faults(shape: Shape, kinds: Collection[str], chance: Random) -> Iterator[tuple[str, str]]:
    """Kinds and targets without an end. Each kind comes once before any comes again."""
    possible = [
        kind for kind in kinds or SOAK_KINDS if kind in SOAK_KINDS and SOAK_KINDS[kind].targets(kind, shape)
    ]
    while possible:
        for kind in chance.sample(possible, len(possible)):
            yield kind, chance.choice(list(SOAK_KINDS[kind].targets(kind, shape)))
