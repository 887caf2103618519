"""The file with the broker's process id, which is locked while that process lives."""

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from imqtt.errors import SetupError
from imqtt.mosquitto.passwords import broker_pid
from imqtt.processes import command_line

RESEND_SECONDS = 0.5


class PidFile:
    """Identifies the broker of a data directory, no matter which process started it.

    The broker inherits a descriptor of the locked file. So the lock distinguishes it from a later process
    with the same id, even from another Mosquitto.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def process(self) -> int | None:
        """The broker's process id; None if it does not run."""
        pid = broker_pid(self._path)
        if pid is None:
            return None
        try:
            with self._path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return pid
        except OSError:
            return None
        # imqtt 0.1 named the directory in the command line instead.
        return pid if str(self._path.with_name("mosquitto.conf")) in command_line(pid) else None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[tuple[int, Callable[[int], object]]]:
        """Yields a descriptor to inherit, and a function that writes the broker's pid. Raises `OSError`."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # only `process` has the lock, and for a moment
            os.ftruncate(descriptor, 0)
            yield descriptor, lambda pid: os.write(descriptor, str(pid).encode())
        finally:
            os.close(descriptor)

    async def end(self, within: float) -> None:
        """Terminates the broker if one runs. Raises `SetupError` if it still runs after `within` seconds.

        SIGTERM is sent repeatedly, since a Mosquitto that is starting loses the first one.
        """
        now = time.monotonic()
        deadline, asked = now + within, now - RESEND_SECONDS
        while (pid := self.process()) is not None:
            now = time.monotonic()
            if now - asked >= RESEND_SECONDS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked = now
            if now > deadline:
                raise SetupError(f"the Mosquitto of an earlier run (process {pid}) does not end")
            await asyncio.sleep(0.02)

    def remove(self) -> None:
        """To be called after the broker's end."""
        self._path.unlink(missing_ok=True)
