"""Relays the lines of Mosquitto's log that concern an operator to the log of `imqtt up`."""

import asyncio
import logging
import os
import re
from functools import partial
from pathlib import Path

from imqtt.mosquitto.file_limits import raise_file_limit
from imqtt.mosquitto.log_file import without_time
from imqtt.printable import printable
from imqtt.problems import Problem

log = logging.getLogger("imqtt.mosquitto")

LOOK_SECONDS = 0.5
CALM_SECONDS = 30.0  # without such a line, the problem is over
READ_BYTES = 1024 * 1024  # at most per look; older lines are skipped

# Debian's Mosquitto uses TCP wrappers, which deny access if they cannot open their files.
_OUT_OF_FILES = re.compile(r"system socket count has been exceeded|denied access by tcpd|Too many open files")
_FULL = re.compile(r"denied: max_connections exceeded")
_ERROR = re.compile(r"^Error\b")
_WARNING = re.compile(r"^Warning\b")
# Faults of single clients, about which an operator can do nothing.
_HARMLESS = re.compile(r"for an unknown packet identifier|Unrecognised command")


class BrokerLog:
    """Follows Mosquitto's log from byte `start` (default: its present end) across rotations."""

    def __init__(self, path: Path, start: int | None = None) -> None:
        self._path = path
        try:
            found = path.stat()
            self._file, self._read = found.st_ino, found.st_size if start is None else start
        except OSError:  # it does not exist yet
            self._file = self._read = 0
        problem = partial(Problem, log, calm=CALM_SECONDS)
        self._files = problem(
            "Mosquitto has no file descriptors left and refuses connections",
            "Mosquitto has file descriptors again",
        )
        self._full = problem("Mosquitto accepts no more devices", "Mosquitto accepts devices again")
        self._error = problem("Mosquitto reports an error", "Mosquitto reports no more errors")
        self._warning = problem("Mosquitto warns", "Mosquitto warns no more")

    def look(self) -> None:
        """Reads the lines that were added since the last look."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                number, size = found.st_ino, found.st_size
                if number != self._file or size < self._read:  # rotated or truncated
                    self._file, self._read = number, 0
                start = max(self._read, size - READ_BYTES)
                file.seek(start)
                added = file.read(READ_BYTES)
                end = added.rfind(b"\n") + 1  # an incomplete line is read later
                self._read = start + end
        except OSError:
            return  # it is being rotated: the next look reads it
        for line in added[:end].decode(errors="replace").splitlines():
            self.line(line)

    def line(self, line: str) -> None:
        text = without_time(line)
        if _OUT_OF_FILES.search(text):
            self._files.note(f"it may open {raise_file_limit()} (raise `ulimit -n` before `imqtt up`)")
        elif _FULL.search(text):
            self._full.note(
                "a listener has reached max_connections, which is derived from the limit of open files: "
                f"{raise_file_limit()} (raise `ulimit -n` before `imqtt up`)"
            )
        elif _HARMLESS.search(text):
            pass
        elif _ERROR.match(text):
            self._error.note(printable(text))
        elif _WARNING.match(text):
            self._warning.note(printable(text))


async def follow(broker_log: BrokerLog) -> None:
    """Relays errors and warnings of the broker's log until cancelled."""
    while True:
        broker_log.look()
        await asyncio.sleep(LOOK_SECONDS)
