"""Relays the lines of Mosquitto's log that concern an operator to the log of `imqtt up`."""

import asyncio
import logging
import os
import re
from pathlib import Path

from imqtt.mosquitto.file_limits import raise_file_limit
from imqtt.mosquitto.log_file import without_time
from imqtt.printable import printable
from imqtt.problems import Problem

log = logging.getLogger("imqtt.mosquitto")

LOOK_SECONDS = 0.5
CALM_SECONDS = 30.0  # without such a line: it is over
READ_BYTES = 1024 * 1024  # at a look; what is older is not worth the time

# Debian's Mosquitto asks TCP wrappers, which cannot open their files either, and then says that they refused.
_OUT_OF_FILES = re.compile(r"system socket count has been exceeded|denied access by tcpd|Too many open files")
_FULL = re.compile(r"denied: max_connections exceeded")
_ERROR = re.compile(r"^Error\b")
_WARNING = re.compile(r"^Warning\b")
# What a single client does wrong is nothing that an operator can act on.
_HARMLESS = re.compile(r"for an unknown packet identifier|Unrecognised command")


class BrokerLog:
    """Follows one Mosquitto's log from byte `start`, over rotations. Without one: from where it is now."""

    def __init__(self, path: Path, start: int | None = None) -> None:
        self._path = path
        try:
            found = path.stat()
            self._file, self._read = found.st_ino, found.st_size if start is None else start
        except OSError:  # not there yet: all of it will be new
            self._file = self._read = 0
        self._files = _problem(
            "Mosquitto has no file descriptors left, and hangs up on devices and perhaps the server",
            "Mosquitto has file descriptors again",
        )
        self._full = _problem("Mosquitto takes no more devices", "Mosquitto takes as many devices as come")
        self._error = _problem("Mosquitto reports an error", "Mosquitto has reported no error for a while")
        self._warning = _problem("Mosquitto warns", "Mosquitto has not warned for a while")

    def look(self) -> None:
        """Reads what was added since the last look."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                number, size = found.st_ino, found.st_size
                if number != self._file or size < self._read:  # another file, or the same one cut
                    self._file, self._read = number, 0
                start = max(self._read, size - READ_BYTES)
                file.seek(start)
                added = file.read(READ_BYTES)
                end = added.rfind(b"\n") + 1  # half a line is read when it is whole
                self._read = start + end
        except OSError:
            return  # it is being rotated, or the disk is gone: the next look tells
        for line in added[:end].decode(errors="replace").splitlines():
            self.line(line)

    def line(self, line: str) -> None:
        """Takes note of one line."""
        said = without_time(line)
        if _OUT_OF_FILES.search(said):
            self._files.note(f"it may open {raise_file_limit()} (raise `ulimit -n` before `imqtt up`)")
        elif _FULL.search(said):
            self._full.note(
                "a listener has its max_connections, which come from how many files it may open: "
                f"{raise_file_limit()} (raise `ulimit -n` before `imqtt up`)"
            )
        elif _HARMLESS.search(said):
            pass
        elif _ERROR.match(said):
            self._error.note(printable(said))
        elif _WARNING.match(said):
            self._warning.note(printable(said))


async def follow(broker_log: BrokerLog) -> None:
    """Relays what matters of the broker's log to this process's own, until cancelled."""
    while True:
        broker_log.look()
        await asyncio.sleep(LOOK_SECONDS)


def _problem(what: str, over: str) -> Problem:
    return Problem(log, what, over, calm=CALM_SECONDS)
