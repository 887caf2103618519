"""The broker's log: a file of bounded size, and the lines in it that concern the operator."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOG_BYTES = 16 * 1024 * 1024  # a longer file becomes `mosquitto.log.1`, in place of the one before
QUIET_SECONDS = 600.0  # the same line is reported once in this time
MAX_KINDS = 100  # of lines whose times are remembered

_TIME = re.compile(r"^\S*\d{4}-\d\d-\d\dT[\d:]+: |^\d+: ")
# Most errors and warnings begin so. The third is what Mosquitto says when it is out of file descriptors.
_SIGNS = (b"Error", b"Warning", b"Unable")
_TROUBLE = re.compile(r"Error\b|Warning\b|Unable to ")
# What a single client does wrong, or what imqtt has chosen knowingly: nothing that an operator can act on.
_HARMLESS = re.compile(
    r"for an unknown packet identifier|Unrecognised command|receive-maximum quota|is deprecated"
)


class LogFile:
    """Appends what the broker prints to `path`, and reports trouble.

    The broker writes into a pipe, not into the file: then a file that has grown can be replaced at any time,
    without a SIGHUP, on which Mosquitto also checks every connected client's password again.

    `report` gets each line that tells of trouble, without its time, but none from before `open_reports`: what
    a broker says while it starts is part of the error if it does not start.
    """

    def __init__(self, path: Path, report: Callable[[str], None], *, limit: int = LOG_BYTES) -> None:
        self.path = path
        self.limit = limit
        self._report = report
        self._changing = threading.Lock()  # the broker's output comes in a thread
        self._held: list[str] | None = None
        self._rest = b""
        self._reported: dict[str, tuple[float, int]] = {}

    @property
    def older(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    def begin(self) -> int:
        """Called before a broker starts. Holds reports back; returns where its output begins in the file.

        A longer file, which an earlier version wrote, is cut to its end. Raises `OSError`.
        """
        with self._changing:
            self._held, self._rest = [], b""
            for path in (self.path, self.older):
                with contextlib.suppress(FileNotFoundError):
                    _keep_end(path, self.limit)
            return self._size()

    def open_reports(self) -> None:
        """Reports what was held back, and from now on everything at once."""
        with self._changing:
            held, self._held = self._held or [], None
            for line in held:
                self._report_once(line)

    def write(self, chunk: bytes) -> None:
        """Takes output as it comes. Never raises: a full disk must not stop the broker."""
        with self._changing:
            with contextlib.suppress(OSError):
                self._append(chunk)
            whole, _, rest = (self._rest + chunk).rpartition(b"\n")
            self._rest = rest[-4_096:]
            if not any(sign in whole for sign in _SIGNS):  # as nearly always
                return
            for line in whole.split(b"\n"):
                text = _TIME.sub("", line.decode(errors="replace")).strip()
                if _TROUBLE.match(text) and not _HARMLESS.search(text):
                    if self._held is None:
                        self._report_once(text)
                    elif len(self._held) < MAX_KINDS:
                        self._held.append(text)

    def last_words(self, start: int = 0, lines: int = 3) -> str:
        """The end of what it has logged after byte `start`, without times; its errors if there are any."""
        try:
            with self.path.open("rb") as log:
                log.seek(max(start, self._size() - 16_384))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        said = [_TIME.sub("", line).strip() for line in text.splitlines()]
        errors = [line for line in said if line.startswith(("Error", "Warning: Unable"))]
        return "; ".join((errors or [line for line in said if line])[-lines:])

    def _append(self, chunk: bytes) -> None:
        if self._size() + len(chunk) > self.limit:
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(self.older)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, chunk)
        finally:
            os.close(descriptor)

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _report_once(self, line: str) -> None:
        kind = re.sub(r"\d+", "0", line)
        now = time.monotonic()
        since, repeated = self._reported.get(kind, (now - QUIET_SECONDS, 0))
        if now - since < QUIET_SECONDS:
            self._reported[kind] = (since, repeated + 1)
            return
        if len(self._reported) >= MAX_KINDS:
            self._reported.clear()
        self._reported[kind] = (now, 0)
        self._report(f"{line} ({repeated} times more since the last report)" if repeated else line)


def _keep_end(path: Path, size: int) -> None:
    """Cuts a file to its last `size` bytes if it has more."""
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
