"""`python -m tests.verification.soak`: a million messages, a fault every ten seconds, and limits on growth.

Exit status: 0 if there are no findings, every fault fired and every figure is within its limit; 1 otherwise.
"""

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import msgspec
from rich.console import Console

from tests.given_mosquitto import use_given
from tests.logs import tails
from tests.verification.chaos.stack import STACKS, WORKERS
from tests.verification.soak.faults import SOAK_KINDS
from tests.verification.soak.report import show
from tests.verification.soak.run import Soak, soak

# The tests' substitute for MongoDB handles some hundreds of messages per second, and only short logs.
MESSAGES = {"sqlite": 1_000_000, "scale": 20_000}
RATES = {"sqlite": 4_000.0, "scale": 300.0}
WIDTH = 160  # minimum, of the tables


def main() -> int:
    arguments = _arguments()
    use_given()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="imqtt-soak-"))
    plan = Soak(
        arguments.stack,
        seed,
        messages=arguments.messages or MESSAGES[arguments.stack],
        rate=arguments.rate or RATES[arguments.stack],
        every=arguments.every,
        kinds=_kinds(arguments.only),
        workers=WORKERS[arguments.stack],
    )
    print(f"{plan.stack}, seed {seed}: {plan.messages:,} messages in {directory}", flush=True)
    outcome = asyncio.run(soak(plan, directory))
    show(outcome, Console(width=max(WIDTH, Console().width)))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    if not outcome.ok:
        print(f"failed, with seed {seed}; kept in {directory}\n{tails(directory)}")
    elif not arguments.keep:
        shutil.rmtree(directory)
    return 0 if outcome.ok else 1


def _kinds(only: Collection[str]) -> tuple[str, ...]:
    for kind in only:
        if kind not in SOAK_KINDS:
            sys.exit(f"no such fault: {kind}; choose from {', '.join(sorted(SOAK_KINDS))}")
    return tuple(only)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.soak", description=__doc__)
    parser.add_argument(
        "--messages", type=int, default=0, help="minimum; more until the last fault is repaired"
    )
    parser.add_argument("--stack", choices=STACKS, default="sqlite")
    parser.add_argument("--rate", type=float, default=0, help="messages per second of all devices together")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults, and measurements")
    parser.add_argument("--seed", type=int, help="of faults and messages. Default: random")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", help="inject only this kind (repeatable)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in DIR, also after success")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
