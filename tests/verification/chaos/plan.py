"""The plan of a run: when each fault is injected, and with which others. The seed alone decides it."""

from collections.abc import Collection, Sequence
from itertools import combinations
from random import Random

import msgspec

from tests.verification.chaos.faults import DEVICES, WORKERS, WORKERS_WAYS, Shape
from tests.verification.chaos.kinds import KINDS

AT_ONCE = 3  # faults in a round, at most
STAGGER = 0.7  # seconds: within so many, the faults of a round are fired
HOLD = (0.5, 4.0)  # seconds for which they last, least and most
KEEP_EVERY = 4  # rounds: how often what a later round may put back is copied


class Planned(msgspec.Struct, frozen=True):
    """One fault. `after`: seconds from the beginning of its round."""

    kind: str
    target: str
    after: float


class Round(msgspec.Struct, frozen=True):
    """Faults that are fired together, last for `hold` seconds, and are then all healed.

    `keep`: before them, a backup is taken of what they, or later ones, may put back.
    """

    faults: tuple[Planned, ...]
    hold: float
    keep: bool = False


class Plan(msgspec.Struct, frozen=True):
    """All of a run that the seed decides. `asked` and `only`: what else was asked for."""

    seed: int
    shape: Shape
    rounds: tuple[Round, ...]
    asked: int = 0
    only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # kinds that could be tried on this stack, but not on this machine

    @property
    def again(self) -> str:
        """The command that makes the same plan."""
        only = "".join(f" --only '{kind}'" for kind in self.only)
        given = f"--stack {self.shape.stack} --seed {self.seed} --rounds {self.asked}"
        return f"python -m tests.verification.chaos {given}{only}"

    @property
    def kinds(self) -> set[str]:
        return {fault.kind for round_ in self.rounds for fault in round_.faults}


def plan(seed: int, shape: Shape, rounds: int, kinds: Collection[str] = ()) -> Plan:
    """At least so many rounds: as many as it takes for every kind (or of those given, each) to fire once."""
    chance = Random(f"{seed} {shape.stack}")
    possible = [kind for kind in KINDS if KINDS[kind].targets(kind, shape) and (not kinds or kind in kinds)]
    faults: list[list[tuple[str, str]]] = [[] for _ in range(rounds)]
    for kind in chance.sample(possible, len(possible)):
        target = chance.choice(list(KINDS[kind].targets(kind, shape)))
        fitting = [fault for fault in faults if fits(fault, kind, target, shape)]
        if not fitting:
            faults.append([])
            fitting = [faults[-1]]
        fewest = min(map(len, fitting))
        chance.choice([group for group in fitting if len(group) == fewest]).append((kind, target))
    for _ in range(rounds):  # and some more, so that rounds differ in how much goes wrong
        kind = chance.choice(possible)
        target = chance.choice(list(KINDS[kind].targets(kind, shape)))
        if fitting := [fault for fault in faults if fits(fault, kind, target, shape)]:
            chance.choice(fitting).append((kind, target))
    chance.shuffle(faults)
    disks = msgspec.structs.replace(shape, disks=True)
    left_out = [
        kind for kind in KINDS if KINDS[kind].targets(kind, disks) and not KINDS[kind].targets(kind, shape)
    ]
    return Plan(
        seed,
        shape,
        tuple(
            _round(them, chance, keep=number % KEEP_EVERY == 0)
            for number, them in enumerate(fault for fault in faults if fault)
        ),
        rounds,
        tuple(kinds),
        tuple(left_out),
    )


def fits(faults: Sequence[tuple[str, str]], kind: str, target: str, shape: Shape) -> bool:
    """Whether the fault can be fired together with these, and each still show that it has."""
    together = [*faults, (kind, target)]
    if len(together) > AT_ONCE:
        return False
    for one, other in combinations(together, 2):
        for (a, on_a), (b, on_b) in ((one, other), (other, one)):
            broken = _all(KINDS[a].breaks(a, on_a), shape)
            if broken & _all(KINDS[b].breaks(b, on_b) | KINDS[b].needs(b, on_b), shape):
                return False
    return True


def _all(names: Collection[str], shape: Shape) -> set[str]:
    every = {
        WORKERS: shape.workers,
        DEVICES: shape.devices,
        WORKERS_WAYS: tuple(f"{worker}>" for worker in shape.workers),
    }
    return {part for name in names for part in every.get(name, (name,))}


def _round(faults: Sequence[tuple[str, str]], chance: Random, *, keep: bool) -> Round:
    planned = tuple(Planned(*fault, round(chance.uniform(0, STAGGER), 2)) for fault in faults)
    least = max(KINDS[fault.kind].hold for fault in planned)
    return Round(planned, round(max(least, chance.uniform(*HOLD)), 2), keep)
