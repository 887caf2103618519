"""`python -m tests.faults.hasty_worker`: `imqtt serve` that waits for less long than a real one.

What takes a real worker half a minute takes this one some seconds: a test of what happens then need not wait.
"""

import sys

from imqtt.cli.app import run
from imqtt.server import assignment

COMMAND = ("tests.faults.hasty_worker",)


def main() -> int:
    assignment.STUCK_SECONDS = 2.0
    assignment.HANDOVER_SECONDS = 3.0
    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
