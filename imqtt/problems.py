"""Lasting problems, each logged when it starts, when its cause changes and when it ends.

Otherwise a retry loop would log every attempt, or log the first one and hide later causes and the recovery. A
problem has any number of parts, because one cause, such as a lost broker, often affects many connections, and
one line is enough for all of them.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # checked where it is used

CALM_SECONDS = 0.5  # if a problem returns within this time, it had not ended
REPEAT_SECONDS = 600.0  # before the same cause is logged again
CAUSES_REMEMBERED = 100

_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Problem:
    """One problem. Only changes are logged, however often `start` and `end` are called.

    The line about the start begins with `what`, and the line about the end with `over`. The end is logged
    once the problem has been absent for `calm` seconds, so that a connection that is cut again and again does
    not fill the log. Without a running event loop, the end is logged at once.
    """

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        over: str,
        *,
        level: int = logging.WARNING,
        calm: float = CALM_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._what = what
        self._over = over
        self._level = level
        self._calm = calm
        self._clock = clock
        self._causes: dict[str, str] = {}  # by affected part
        self._since: float | None = None  # None: the end was logged
        self._started = ""  # the same time as text
        self._ended = 0.0  # when the last part recovered
        self._affected: set[str] = set()
        self._noted, self._times = "", 0
        self._logged: dict[str, float] = {}  # when each cause, without its numbers, was logged
        self._ending: asyncio.TimerHandle | None = None

    def start(self, cause: str, part: str = "") -> None:
        """To be called on every failure of `part`. Another call for the same part changes the cause."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._causes[part] = cause
        self._affected.add(part)
        where = f" ({part})" if part else ""
        if self._since is None:
            self._since = self._clock()
            self._started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            self._is_new(cause)
            self._log.log(self._level, "%s%s: %s", self._what, where, cause)
        elif self._is_new(cause):
            lasted = duration(self._clock() - self._since)
            self._log.log(self._level, "%s%s, for %s now: %s", self._what, where, lasted, cause)

    def end(self, part: str = "") -> None:
        """To be called on every success of `part`."""
        if self._causes.pop(part, None) is None or self._causes:
            return
        self._ended = self._clock()
        if self._calm:
            with contextlib.suppress(RuntimeError):  # in a thread
                self._ending = asyncio.get_running_loop().call_later(self._calm, self._say_over)
                return
        self._say_over()

    def end_all(self, *, but: str | None = None) -> None:
        """No part has the problem, except perhaps `but`."""
        for part in [part for part in self._causes if part != but]:
            self.end(part)

    def note(self, cause: str) -> None:
        """The problem occurred now. It ends when it has not occurred for `calm` seconds."""
        self._noted = cause
        self._times += 1
        self.start(cause)
        self.end()

    @property
    def cause(self) -> str:
        """The cause at the part affected longest, or the one noted last; "" without a problem."""
        return next(iter(self._causes.values()), self._noted)

    @property
    def text(self) -> str:
        """The problem with its start and cause; "" without a problem."""
        return f"{self._what} since {self._started}: {self.cause}" if self.cause else ""

    @property
    def seconds(self) -> float:
        """How long it has lasted; 0 without a problem."""
        return self._clock() - self._since if self.cause and self._since is not None else 0.0

    def _is_new(self, cause: str) -> bool:
        """Whether to log this cause. Causes that differ only in numbers count as the same."""
        key, now = _NUMBERS.sub("0", cause), self._clock()
        last = self._logged.get(key)
        if last is not None and now - last < REPEAT_SECONDS:
            return False
        if len(self._logged) >= CAUSES_REMEMBERED:
            self._logged.clear()
        self._logged[key] = now
        return True

    def _say_over(self) -> None:
        self._ending = None
        if self._causes or self._since is None:
            return
        lasted = duration(self._ended - self._since)
        parts = f"; {len(self._affected)} were affected" if len(self._affected) > 1 else ""
        times = f"; it happened {self._times} times" if self._times > 1 else ""
        self._log.log(self._level, "%s, after %s%s%s", self._over, lasted, parts, times)
        self._since = None
        self._noted, self._times = "", 0
        self._affected.clear()
        self._logged.clear()


def duration(seconds: float) -> str:
    """`0.3 s`, `45 s`, `12 min`, `5.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h"


def explain(error: BaseException) -> str:
    """The text of an error, with its file, and with the limit if too many files are open."""
    number = error.errno or 0 if isinstance(error, OSError) else 0
    if number in _OUT_OF_FILES:
        return f"{os.strerror(number)}: {file_limit()}"
    if isinstance(error, OSError) and number > 0 and type(error).__module__ == "builtins":
        where = f"{error.filename}: " if error.filename else ""
        return where + os.strerror(number)
    return str(error).rstrip(".") or repr(error)


def open_file_limit() -> int | None:
    """How many files this process may have open; None: there is no limit, or it is unknown."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def file_limit() -> str:
    """The limit of open files of this process, and where to set it."""
    limit = open_file_limit()
    if limit is None:
        return "this process may not open more"
    return f"this process may have {limit} open (ulimit -n; LimitNOFILE in systemd, ulimits in Compose)"
