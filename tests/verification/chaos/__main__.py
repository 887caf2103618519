"""`python -m tests.verification.chaos`: real devices and servers under injected faults, and the results.

Exit status: 0 if there are no findings and every planned fault fired; 1 otherwise.
"""

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from tests.given_mosquitto import use_given
from tests.logs import tails
from tests.verification.chaos.disk import Disk
from tests.verification.chaos.plan import Plan, plan
from tests.verification.chaos.report import Outcome, show, with_verdict
from tests.verification.chaos.runner import check_histories, run, shape
from tests.verification.chaos.stack import STACKS

ROUNDS = {"sqlite": 14, "scale": 20}


def main() -> int:
    arguments = _arguments()
    use_given()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    outcomes = [_judge(arguments.judge)] if arguments.judge else list(_runs(arguments))
    show(outcomes, Console(width=max(150, Console().width)))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)))
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _runs(arguments: argparse.Namespace) -> Iterator[Outcome]:
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="imqtt-chaos-"))
    for number in range(arguments.runs):
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed + number
        for stack in STACKS if arguments.stack == "both" else (arguments.stack,):
            run_directory = directory / f"{stack}-{seed}"
            run_directory.mkdir(parents=True)
            available = shape(stack, disks=_can_mount(run_directory))
            planned = plan(seed, available, arguments.rounds or ROUNDS[stack], arguments.only)
            print(f"{stack}, seed {seed}: {len(planned.rounds)} rounds in {run_directory}", flush=True)
            try:
                outcome = asyncio.run(run(planned, run_directory))
            except BaseException:
                print(f"ended early; {_how_to_repeat(planned, run_directory)}", flush=True)
                raise
            if not outcome.ok:
                print(f"failed; {_how_to_repeat(planned, run_directory)}", flush=True)
            elif not arguments.keep:
                shutil.rmtree(run_directory)
            yield outcome
    if not arguments.keep and not any(directory.iterdir()):
        directory.rmdir()


def _how_to_repeat(plan: Plan, directory: Path) -> str:
    return f"repeat with: {plan.command}\nkept in {directory}\n{tails(directory)}"


def _judge(directory: Path) -> Outcome:
    """Checks the histories of a kept run again."""
    outcome = msgspec.json.decode((directory / "outcome.json").read_bytes(), type=Outcome)
    return with_verdict(outcome, check_histories(directory / "histories"))


def _can_mount(directory: Path) -> bool:
    trial = directory / "trial"
    with Disk(trial) as disk:
        can = disk.is_mounted
    shutil.rmtree(trial)
    return can


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.chaos", description=__doc__)
    parser.add_argument("--stack", choices=(*STACKS, "both"), default="both")
    parser.add_argument("--seed", type=int, help="of the first run; each further run adds 1. Default: random")
    parser.add_argument("--rounds", type=int, default=0, help="minimum; more until every kind of fault fires")
    parser.add_argument("--runs", type=int, default=1, help="number of runs on each stack")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="inject only this kind (repeatable)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in DIR, also after success")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="check the histories of a kept run again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
