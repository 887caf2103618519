"""Whether this process is running out of file descriptors.

When they run out, many things fail, mostly without naming the cause: SQLite says "unable to open database
file", and the event loop silently drops clients of the health page. So this watches the number itself.
"""

import asyncio
import errno
from pathlib import Path

from imqtt.problems import Problem, file_limit, open_file_limit

LOOK_SECONDS = 5.0
FEW = 16  # free descriptors below which it warns: a few connections and readers of the store
DESCRIPTORS = (Path("/proc/self/fd"), Path("/dev/fd"))  # on Linux and on macOS


async def watch(problem: Problem) -> None:
    """Starts and ends `problem` as descriptors run out and return, until cancelled."""
    while True:
        if cause := running_out():
            problem.start(cause)
        else:
            problem.end()
        await asyncio.sleep(LOOK_SECONDS)


def running_out() -> str:
    """Says how many descriptors are left if they are few; "" otherwise, or if the number is unknown."""
    if (limit := open_file_limit()) is None:
        return ""
    for directory in DESCRIPTORS:
        try:
            left = limit - (len(list(directory.iterdir())) - 1)  # one of them is the listing's own
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return f"none is left; {file_limit()}"
            continue
        return f"{max(left, 0)} are left; {file_limit()}" if left < FEW else ""
    return ""
