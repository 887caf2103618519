"""The command line, `imqtt`. Nothing is imported here: other rooms use parts of it without the rest."""

import os
import sys


def main() -> int:
    """Runs the command that the process was given; its exit status.

    0: done; 1: refused or failed; 2: used wrongly; 130: interrupted.
    """
    from imqtt.cli.app import app, run

    if os.environ.get("_IMQTT_COMPLETE") == "complete_bash":
        from imqtt.cli.completion import for_bash

        sys.stdout.write(for_bash(lambda: app([], prog_name="imqtt")))
        return 0
    return run(sys.argv[1:])
