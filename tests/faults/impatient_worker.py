"""`python -m tests.faults.impatient_worker`: `imqtt serve` with shorter timeouts.

Tests of these timeouts take seconds instead of half a minute.
"""

import sys

from imqtt.cli.app import run
from imqtt.server import assignment

COMMAND = ("tests.faults.impatient_worker",)


def main() -> int:
    assignment.STUCK_SECONDS = 2.0
    assignment.HANDOVER_SECONDS = 3.0
    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
