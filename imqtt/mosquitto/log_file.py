"""The broker's log file, whose size is bounded."""

import contextlib
import os
import re
import threading
from pathlib import Path

LOG_BYTES = 16 * 1024 * 1024  # a larger file is renamed to `mosquitto.log.1`

_TIME = re.compile(r"^\S*\d{4}-\d\d-\d\dT[\d:]+: |^\d+: ")


class LogFile:
    """Appends the output of the broker to `path`.

    The broker writes into a pipe, so the file can be rotated without a SIGHUP, on which Mosquitto would also
    check the passwords of all connected clients.
    """

    def __init__(self, path: Path, *, limit: int = LOG_BYTES) -> None:
        self.path = path
        self.older = path.with_name(path.name + ".1")
        self.limit = limit
        self._changing = threading.Lock()  # a thread reads the broker's output

    def begin(self) -> int:
        """To be called before a broker starts. Returns the size of the file. Raises `OSError`.

        Truncates larger files of earlier versions to their last `limit` bytes.
        """
        with self._changing:
            for path in (self.path, self.older):
                with contextlib.suppress(FileNotFoundError):
                    _keep_end(path, self.limit)
            return self._size()

    def write(self, chunk: bytes) -> None:
        """Appends output. Never raises: a full disk must not stop the broker."""
        with self._changing, contextlib.suppress(OSError):
            if self._size() + len(chunk) > self.limit:
                with contextlib.suppress(FileNotFoundError):
                    self.path.replace(self.older)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, chunk)
            finally:
                os.close(descriptor)

    def last_errors(self, start: int = 0) -> str:
        """The last errors after byte `start`, or else the last lines, without their times."""
        try:
            with self.path.open("rb") as log:
                log.seek(max(start, self._size() - 16_384))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        lines = [without_time(line).strip() for line in text.splitlines()]
        errors = [line for line in lines if line.startswith(("Error", "Warning: Unable"))]
        return "; ".join((errors or [line for line in lines if line])[-3:])

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


def without_time(line: str) -> str:
    return _TIME.sub("", line)


def _keep_end(path: Path, size: int) -> None:
    if path.stat().st_size <= size:
        return
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        end = file.read()
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(end)
    draft.replace(path)
