"""The plan of a run: when each fault is injected and together with which others. Depends only on the seed."""

from collections.abc import Collection, Sequence
from itertools import combinations
from random import Random

import msgspec

from tests.verification.chaos.fault_kinds import KINDS
from tests.verification.chaos.faults import DEVICES, WORKER_CONNECTIONS, WORKERS, Shape

AT_ONCE = 3  # faults in a round, at most
STAGGER = 0.7  # seconds within which the faults of a round are fired
HOLD = (0.5, 4.0)  # shortest and longest duration in seconds
BACKUP_EVERY = 4  # rounds between backups


class Planned(msgspec.Struct, frozen=True):
    """One fault. `after`: seconds from the start of its round."""

    kind: str
    target: str
    after: float


class Round(msgspec.Struct, frozen=True):
    """Faults that are fired together, last for `hold` seconds, and are then all repaired.

    `backup`: back up the store and the broker's state first, for faults that restore them.
    """

    faults: tuple[Planned, ...]
    hold: float
    backup: bool = False


class Plan(msgspec.Struct, frozen=True):
    """Everything in a run that the seed decides. `asked`: the requested rounds; `only`: the requested
    kinds.
    """

    seed: int
    shape: Shape
    rounds: tuple[Round, ...]
    asked: int = 0
    only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # kinds that need disks, which this machine cannot mount

    @property
    def command(self) -> str:
        """The command that makes the same plan."""
        only = "".join(f" --only '{kind}'" for kind in self.only)
        given = f"--stack {self.shape.stack} --seed {self.seed} --rounds {self.asked}"
        return f"python -m tests.verification.chaos {given}{only}"

    @property
    def kinds(self) -> set[str]:
        return {fault.kind for round_ in self.rounds for fault in round_.faults}


def plan(seed: int, shape: Shape, rounds: int, kinds: Collection[str] = ()) -> Plan:
    """At least `rounds` rounds; more if that is needed to fire every kind (or each of `kinds`) once."""
    rng = Random(f"{seed} {shape.stack}")
    possible = [kind for kind in KINDS if KINDS[kind].targets(kind, shape) and (not kinds or kind in kinds)]
    faults: list[list[tuple[str, str]]] = [[] for _ in range(rounds)]
    for kind in rng.sample(possible, len(possible)):
        target = rng.choice(list(KINDS[kind].targets(kind, shape)))
        fitting = [fault for fault in faults if fits(fault, kind, target, shape)]
        if not fitting:
            faults.append([])
            fitting = [faults[-1]]
        fewest = min(map(len, fitting))
        rng.choice([group for group in fitting if len(group) == fewest]).append((kind, target))
    for _ in range(rounds):  # further faults, so that rounds differ in size
        kind = rng.choice(possible)
        target = rng.choice(list(KINDS[kind].targets(kind, shape)))
        if fitting := [fault for fault in faults if fits(fault, kind, target, shape)]:
            rng.choice(fitting).append((kind, target))
    rng.shuffle(faults)
    disks = msgspec.structs.replace(shape, disks=True)
    left_out = [
        kind for kind in KINDS if KINDS[kind].targets(kind, disks) and not KINDS[kind].targets(kind, shape)
    ]
    return Plan(
        seed,
        shape,
        tuple(
            _round(group, rng, backup=number % BACKUP_EVERY == 0)
            for number, group in enumerate(fault for fault in faults if fault)
        ),
        rounds,
        tuple(kinds),
        tuple(left_out),
    )


def fits(faults: Sequence[tuple[str, str]], kind: str, target: str, shape: Shape) -> bool:
    """Whether the fault can be combined with these so that each still shows its effect."""
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
        WORKER_CONNECTIONS: tuple(f"{worker}>" for worker in shape.workers),
    }
    return {part for name in names for part in every.get(name, (name,))}


def _round(faults: Sequence[tuple[str, str]], rng: Random, *, backup: bool) -> Round:
    planned = tuple(Planned(*fault, round(rng.uniform(0, STAGGER), 2)) for fault in faults)
    least = max(KINDS[fault.kind].hold for fault in planned)
    return Round(planned, round(max(least, rng.uniform(*HOLD)), 2), backup)
