"""Thousands of interleavings of the real server and SDK; see `docs/reliability.md`."""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys

import pytest

from tests.verification.simulation.faults import FAULTS
from tests.verification.simulation.loop import Deadlock, simulated
from tests.verification.simulation.mistakes import MISTAKES

SEEDS = 100
RESTORED_SEEDS = 40  # with two faults only, each of them fires in most worlds
MANY_SEEDS = 2_000
WORLDS_FOR_A_MISTAKE = 1_500  # worlds within which a mistake must be found
WORLDS_FOR_A_RARE_MISTAKE = 6_000
FIRST_NEW = 1_000_000  # seeds from here on are drawn; those before are tried by every run


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, "-m", "tests.verification.simulation", *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=1_200,
    )  # fmt: skip


@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MANY_SEEDS, marks=pytest.mark.verify)])
def test_no_interleaving_loses_doubles_or_reorders_anything(seeds: int) -> None:
    done = simulation("--seeds", str(seeds))
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    fired = dict(re.findall(r"([a-z][a-z ]*) (\d+)", done.stdout.split("faults fired: ")[1]))
    seldom = {fault for fault in FAULTS if int(fired.get(fault, 0)) <= seeds // 200}
    assert not seldom, "a fault that rarely fires proves little"


@pytest.mark.parametrize("seeds", [RESTORED_SEEDS, pytest.param(MANY_SEEDS, marks=pytest.mark.verify)])
def test_no_restore_after_a_wrong_clock_loses_doubles_or_reorders_anything(seeds: int) -> None:
    """The ids of the new log may be lower than those of the old one."""
    done = simulation("--seeds", str(seeds), "--faults", "store restored", "clock stepped")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


@pytest.mark.verify
def test_no_new_interleaving_loses_doubles_or_reorders_anything() -> None:
    first = secrets.randbelow(FIRST_NEW) + FIRST_NEW
    done = simulation("--first", str(first), "--seeds", str(MANY_SEEDS))
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(at, id=mistake.name, marks=pytest.mark.verify if mistake.rare else ())
        for at, mistake in enumerate(MISTAKES)
    ],
)
def test_a_planted_mistake_is_found_and_named(number: int) -> None:
    seeds = WORLDS_FOR_A_RARE_MISTAKE if MISTAKES[number].rare else WORLDS_FOR_A_MISTAKE
    first = MISTAKES[number].first
    done = simulation("--mistake", str(number), "--first", str(first), "--seeds", str(seeds))
    assert done.returncode == 0, f"not found: {done.stdout[-3_000:]}{done.stderr[-3_000:]}"
    found = json.loads(done.stdout)
    again = simulation("--mistake", str(number), "--seed", str(found["seed"]))
    assert again.returncode == 1
    assert found["first"] in again.stdout, "a seed must give the same run in every process"


def test_the_same_worlds_without_planted_mistakes_have_no_findings() -> None:
    done = simulation("--innocent", "--seeds", "2")
    assert done.returncode == 0, done.stdout[-3_000:]


def test_the_same_seed_gives_the_same_world() -> None:
    first, second = (simulation("--seed", "11", "--full") for _ in range(2))
    assert first.stdout == second.stdout
    assert len(first.stdout.splitlines()) > 50
    assert simulation("--seed", "12", "--full").stdout != first.stdout


def test_virtual_time_advances_only_when_every_process_waits() -> None:
    with simulated(1) as loop:

        async def sleep() -> float:
            await asyncio.sleep(3_600.0)
            return loop.time()

        assert loop.run_until_complete(sleep()) == pytest.approx(3_600.0, abs=0.01)


def test_a_killed_process_runs_no_further_code_not_even_finally_blocks() -> None:
    done: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(1.0)
            done.append(name)
        finally:
            done.append(f"{name}, finally")

    with simulated(1) as loop:

        async def world() -> None:
            first, second = loop.new_process("first"), loop.new_process("second")
            first.spawn(work("first"))
            second.spawn(work("second"))
            await asyncio.sleep(0.5)
            loop.kill(first)
            await asyncio.sleep(5.0)

        loop.run_until_complete(world())
        assert done == ["second", "second, finally"]


def test_a_paused_process_runs_its_callbacks_after_the_pause() -> None:
    woken: list[float] = []

    async def work() -> None:
        await asyncio.sleep(1.0)
        woken.append(asyncio.get_running_loop().time())

    with simulated(1) as loop:

        async def world() -> None:
            process = loop.new_process("sleeper")
            process.spawn(work())
            await asyncio.sleep(0.5)
            loop.pause(process)
            await asyncio.sleep(9.5)
            loop.resume(process)
            await asyncio.sleep(1.0)

        loop.run_until_complete(world())
    assert woken == [pytest.approx(10.0, abs=0.01)]


def test_a_world_without_pending_events_raises_an_error() -> None:
    with simulated(1) as loop, pytest.raises(Deadlock):
        loop.run_until_complete(asyncio.Event().wait())
