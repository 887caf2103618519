"""The command line, `imqtt`. Nothing is imported here: other rooms use parts of it without the rest."""

import sys


def main() -> int:
    """Runs the command that the process was given; its exit status.

    0: done; 1: refused or failed; 2: used wrongly; 130: interrupted.
    """
    from imqtt.cli.app import run

    return run(sys.argv[1:])
