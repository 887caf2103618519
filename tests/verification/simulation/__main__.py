"""Runs seeds on all cores: `python -m tests.verification.simulation --seeds 2000`.

A failing seed is printed as a trace and always fails again: `--seed 17` runs that one. `--faults "store
restored" "clock stepped"` injects only these, which makes their combinations frequent. `--mistake 3` plants
one of the known mistakes and looks for a seed in which the checker finds it.
"""

import argparse
import concurrent.futures
import gc
import json
import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

if os.environ.get("PYTHONHASHSEED") != "0":
    # The order of a set of strings depends on their hashes, and a seed must give the same run in every
    # process.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.verification.simulation", *sys.argv[1:]])

from tests.verification.simulation.faults import FAULTS
from tests.verification.simulation.mistakes import MISTAKES, Mistake
from tests.verification.simulation.scenario import Outcome, draw_shape, run_seed

CHUNK = 20  # seeds per task of a process
TRACE_LINES = 120  # printed of a failing seed without `--full`


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seed", type=int, help="run one seed and print its trace")
    parser.add_argument("--full", action="store_true", help="print the whole trace")
    parser.add_argument(
        "--faults", nargs="+", choices=sorted(FAULTS), default=[], metavar="FAULT", help="inject only these"
    )
    parser.add_argument("--mistake", type=int, help="plant this mistake and stop when it is found")
    parser.add_argument(
        "--innocent", action="store_true", help="run the worlds of all mistakes without the mistakes"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    _silence_logs()
    mistake = None if given.mistake is None else MISTAKES[given.mistake]
    if given.seed is not None:
        return show(given.seed, mistake, given.faults, full=given.full)
    if given.innocent:
        return innocent(range(given.first, given.first + given.seeds))
    if mistake is not None:
        return find_mistake(mistake, range(given.first, given.first + given.seeds))
    return run(range(given.first, given.first + given.seeds), given.faults, given.processes)


def run(seeds: Sequence[int], faults: Sequence[str], processes: int) -> int:
    """Runs all seeds and prints a summary and the first failure. Returns the exit status."""
    started = time.perf_counter()
    fired: Counter[str] = Counter()
    sent = accepted = 0
    longest = 0.0
    failed: list[int] = []
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with concurrent.futures.ProcessPoolExecutor(processes, initializer=_silence_logs) as pool:
        for outcomes in pool.map(partial(_chunk, faults=faults), chunks):
            for outcome in outcomes:
                fired.update(outcome.fired)
                sent += outcome.verdict.sent
                accepted += outcome.verdict.accepted
                longest = max(longest, outcome.seconds)
                if not outcome.ok:
                    failed.append(outcome.seed)
                    print(f"seed {outcome.seed} failed", flush=True)  # in case the run is stopped
    seconds = time.perf_counter() - started
    print(
        f"{len(seeds)} seeds in {seconds:.1f} s ({len(seeds) / seconds:.0f} per second), "
        f"{sum(fired.values())} faults fired, {sent} messages sent, {accepted} accepted, "
        f"{len(failed)} seeds failed"
    )
    print("faults fired: " + ", ".join(f"{name} {count}" for name, count in sorted(fired.items())))
    if failed:
        print(f"failed: {' '.join(map(str, failed[:50]))}")
        show(failed[0], None, faults)
    return 1 if failed else 0


def show(seed: int, mistake: Mistake | None, faults: Sequence[str], *, full: bool = False) -> int:
    """Runs one seed and prints its trace. Returns the exit status."""
    with mistake.make() if mistake else nullcontext():
        outcome = run_seed(seed, shape=mistake.shape() if mistake else draw_shape(seed, faults), trace=True)
    print(f"seed {seed}: {outcome.shape}")
    lines = outcome.trace if full else list(_relevant(outcome))[-TRACE_LINES:]
    print("\n".join(lines))
    for problem in outcome.problems():
        print(f"  {problem}")
    verdict = "ok" if outcome.ok else "failed"
    only = f" --faults {shlex.join(faults)}" if faults else ""
    print(f"seed {seed}: {verdict}; repeat with: python -m tests.verification.simulation --seed {seed}{only}")
    return 0 if outcome.ok else 1


def _relevant(outcome: Outcome) -> Iterable[str]:
    """Lines about the conversations with findings, and lines about no conversation, such as faults."""
    conversations = {finding.conversation for finding in outcome.verdict.findings}
    for line in outcome.trace:
        named = "conversation=" in line
        if not named or not conversations or any(conversation in line for conversation in conversations):
            yield line


def find_mistake(mistake: Mistake, seeds: Iterable[int]) -> int:
    """Prints as JSON in which seed the mistake is found, and its findings. Returns the exit status."""
    with mistake.make():
        for tried, seed in enumerate(seeds, 1):
            outcome = run_seed(seed, shape=mistake.shape())
            kinds = sorted({finding.kind for finding in outcome.verdict.findings})
            if mistake.kinds.intersection(kinds):
                found = [
                    finding.what for finding in outcome.verdict.findings if finding.kind in mistake.kinds
                ]
                print(json.dumps({"seed": seed, "tried": tried, "kinds": kinds, "first": found[0]}))
                return 0
    print(json.dumps({"seed": None}))
    return 1


def innocent(seeds: Sequence[int]) -> int:
    """Runs the worlds of all mistakes without the mistakes: nothing may be found. Returns the exit status."""
    failed = 0
    for mistake in MISTAKES:
        shape = replace(mistake.shape(), without=())
        for seed in seeds:
            outcome = run_seed(seed, shape=shape)
            failed += not outcome.ok
            if not outcome.ok:
                print(f"{mistake.name}, seed {seed}: {outcome.problems()}")
    return 1 if failed else 0


def _silence_logs() -> None:
    logging.disable(logging.CRITICAL)
    gc.freeze()  # modules stay: only the remains of worlds have to be collected


def _chunk(seeds: Sequence[int], faults: Sequence[str]) -> list[Outcome]:
    outcomes = [run_seed(seed, shape=draw_shape(seed, faults)) for seed in seeds]
    gc.collect()  # takes 15 ms, too long for every world
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
