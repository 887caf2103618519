"""Each fault proves its effect or reports that it had none, and the seed decides the plan."""

import errno
import os
from collections.abc import AsyncIterator
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from imqtt.server.app import wall_clock
from tests.verification.chaos import faults
from tests.verification.chaos.disk import Disk
from tests.verification.chaos.fault_kinds import KINDS
from tests.verification.chaos.faults import Fault, NotFired, fire, is_paused
from tests.verification.chaos.plan import AT_ONCE, fits, plan
from tests.verification.chaos.runner import shape
from tests.verification.chaos.session_faults import Rival
from tests.verification.chaos.stack import Stack
from tests.verification.chaos.worker import Clock
from tests.verification.checker.history import History

SHAPES = {
    "sqlite": shape("sqlite", disks=True),
    "sqlite without disks": shape("sqlite", disks=False),
    "scale": shape("scale", disks=True),
}
SESSION = SHAPES["sqlite"].sessions[0]


# --- plans


@pytest.mark.parametrize("name", SHAPES)
def test_every_applicable_kind_of_fault_is_planned(name: str) -> None:
    available = SHAPES[name]
    kinds = {kind for kind in KINDS if KINDS[kind].targets(kind, available)}
    for seed in range(30):
        assert plan(seed, available, 8).kinds == kinds


def test_the_two_stacks_together_cover_every_kind_of_fault() -> None:
    assert plan(1, SHAPES["sqlite"], 8).kinds | plan(1, SHAPES["scale"], 8).kinds == set(KINDS)


def test_the_same_seed_gives_the_same_plan() -> None:
    available = SHAPES["scale"]
    assert plan(7, available, 20) == plan(7, available, 20)
    assert plan(7, available, 20) != plan(8, available, 20)


@pytest.mark.parametrize("name", SHAPES)
def test_combined_faults_do_not_affect_a_part_that_another_needs(name: str) -> None:
    available = SHAPES[name]
    pairs = set()
    for seed in range(30):
        for round_ in plan(seed, available, 14).rounds:
            assert 1 <= len(round_.faults) <= AT_ONCE
            for one, other in combinations(round_.faults, 2):
                assert fits([(one.kind, one.target)], other.kind, other.target, available)
                pairs.add(frozenset((one.kind, other.kind)))
    assert len(pairs) > 100


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("kill broker", "broker"), ("swallow worker-broker", "worker-1>broker")),
        (("kill worker", "worker-1"), ("pause worker", "worker-1")),
        (("restore backup", "store"), ("kill worker", "worker-2")),
        (("full queues", "broker"), ("kill device", "alice@plain")),
    ],
)
def test_faults_that_would_prevent_each_others_effect_are_not_combined(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    assert not fits([first], *second, SHAPES["scale"])
    assert not fits([second], *first, SHAPES["scale"])


def test_faults_that_this_machine_cannot_inject_are_reported_as_omitted() -> None:
    assert plan(1, SHAPES["sqlite without disks"], 5).left_out == ("full disk", "full device disk")
    assert plan(1, SHAPES["sqlite"], 5).left_out == ()


# --- faults on real parts


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with Stack("sqlite", tmp_path, History(tmp_path / "harness.jsonl")) as stack:
        yield stack


def fault(stack: Stack, kind: str, target: str) -> Fault:
    return KINDS[kind](stack, kind, target, Random(1))


async def test_a_fault_that_cannot_happen_has_no_effect(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "EFFECT_SECONDS", 0.5)
    await fault(stack, "kill worker", "worker-1").fire()
    for kind, target in (
        ("kill worker", "worker-1"),  # not running
        ("pause worker", "worker-1"),
        ("leave worker", "worker-1"),
        ("clock ahead", "worker-1"),  # nobody reads it
        ("swallow worker-broker", "worker-1>broker"),  # no connections
        ("old broker", "broker"),  # no old state was saved
        ("restore backup", "store"),  # no backup was taken
        ("rival", f"session {SESSION}"),  # nobody holds the session
    ):
        with pytest.raises(NotFired):
            await fire(fault(stack, kind, target))


async def test_parts_are_killed_paused_and_repaired(stack: Stack) -> None:
    for part in ("worker", "broker"):
        target = {"worker": "worker-1"}.get(part, part)
        killed = faults.process(stack, target).pid
        kill = fault(stack, f"kill {part}", target)
        assert str(killed) in await fire(kill)
        await kill.repair()
        pid = faults.process(stack, target).pid
        assert pid is not None
        assert pid != killed
        pause = fault(stack, f"pause {part}", target)
        await fire(pause)
        assert is_paused(pid)
        await pause.repair()
        assert not is_paused(pid)


async def test_a_worker_uses_the_clock_that_it_is_given(stack: Stack) -> None:
    worker = stack.workers["worker-1"]
    for kind in ("clock ahead", "clock behind", "clock hour behind", "clock hour ahead"):
        step = fault(stack, kind, "worker-1")
        await fire(step)
        assert worker.clock.seen != 0
        await step.repair()
        assert worker.clock.offset == 0


def test_a_clock_has_the_offset_that_was_set(tmp_path: Path) -> None:
    here, there = Clock(tmp_path / "clock"), Clock(tmp_path / "clock")
    here.step(-3_600_000)
    assert here.seen == 0
    assert abs(there.now() - wall_clock() + 3_600_000) < 1_000
    assert here.seen == -3_600_000


async def test_a_rival_takes_a_session_and_the_server_takes_it_back(stack: Stack) -> None:
    client = f"imqtt-server-{SESSION}"
    for kind in ("rival", "clean rival"):
        rival = fault(stack, kind, f"session {SESSION}")
        assert isinstance(rival, Rival)
        await fire(rival)
        await rival.repair()
        # The server may have reconnected before the rival ended: then it does not connect again.
        await faults.wait_for_effect(partial(is_back, stack, client, rival), "the server's connection")


def is_back(stack: Stack, client: str, rival: Rival) -> bool:
    """Whether the client's latest connection is the server's."""
    return stack.broker.last_port(client) not in rival.ports


async def test_a_broker_restarts_with_no_state_or_with_an_old_state(stack: Stack) -> None:
    await stack.back_up()
    assert stack.broker_copy is not None
    wiped = fault(stack, "wipe broker", "broker")
    await fire(wiped)
    assert not stack.broker.state.exists()
    await wiped.repair()
    old = fault(stack, "old broker", "broker")
    await fire(old)
    assert stack.broker.state.read_bytes() == stack.broker_copy.read_bytes()
    await old.repair()
    assert stack.broker.pid is not None


def test_a_disk_is_filled_to_the_last_byte(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        if not disk.is_mounted:
            pytest.skip("disks cannot be mounted here")
        (disk.directory / "kept").write_text("before")
        disk.fill()
        assert disk.ballast > 1_000_000
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk.directory / "file").write_bytes(b"x" * 4_096)
        disk.free()
        (disk.directory / "file").write_bytes(b"x" * 4_096)
    assert (disk.directory / "kept").read_text() == "before"
    assert not os.path.ismount(disk.directory)
