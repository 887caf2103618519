"""The command line, `imqtt`. Imports are inside `main`, so that parts can be used without the rest."""

import os
import sys


def main() -> int:
    """Runs the command in `sys.argv`. Returns its exit status, which the help of `imqtt` explains."""
    _open_standard_streams()
    from imqtt.cli.app import app, run

    if os.environ.get("_IMQTT_COMPLETE") == "complete_bash":
        from imqtt.cli.completion import for_bash

        sys.stdout.write(for_bash(lambda: app([], prog_name="imqtt")))
        return 0
    return run(sys.argv[1:])


def _open_standard_streams() -> None:
    """Opens /dev/null for each closed standard stream (`<&-`).

    Otherwise the next file would get its number: a database, or an event loop, which aborts the process.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the process ends
