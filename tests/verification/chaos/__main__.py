"""`python -m tests.verification.chaos`: runs on real parts under faults, and the table of what became of it.

Exit status: 0 if nothing was found and every planned fault fired; 1 otherwise.
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
from tests.verification.chaos.parts import STACKS
from tests.verification.chaos.plan import plan
from tests.verification.chaos.report import Outcome, judged, show
from tests.verification.chaos.runner import judge, run, shape

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
            place = directory / f"{stack}-{seed}"
            place.mkdir(parents=True)
            there_is = shape(stack, disks=_can_mount(place))
            planned = plan(seed, there_is, arguments.rounds or ROUNDS[stack], arguments.only)
            print(f"{stack}, seed {seed}: {len(planned.rounds)} rounds in {place}", flush=True)
            try:
                outcome = asyncio.run(run(planned, place))
            except BaseException:
                print(f"ended early; again: {planned.again}\nkept in {place}\n{tails(place)}", flush=True)
                raise
            if not outcome.ok:
                print(f"failed; again: {planned.again}\nkept in {place}\n{tails(place)}", flush=True)
            elif not arguments.keep:
                shutil.rmtree(place)
            yield outcome
    if not arguments.keep and not any(directory.iterdir()):
        directory.rmdir()


def _judge(directory: Path) -> Outcome:
    """A run that was kept, with what its histories say now."""
    outcome = msgspec.json.decode((directory / "outcome.json").read_bytes(), type=Outcome)
    return judged(outcome, judge(directory / "histories"))


def _can_mount(directory: Path) -> bool:
    trial = directory / "trial"
    with Disk(trial) as disk:
        can = disk.is_mounted
    shutil.rmtree(trial)
    return can


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.chaos", description=__doc__)
    parser.add_argument("--stack", choices=(*STACKS, "both"), default="both")
    parser.add_argument("--seed", type=int, help="of the first run; further ones count on. Default: drawn")
    parser.add_argument("--rounds", type=int, default=0, help="at least; as many as it takes for every kind")
    parser.add_argument("--runs", type=int, default=1, help="of each stack")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="only such faults")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep everything there, whatever comes")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="run nothing; judge a run that was kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
