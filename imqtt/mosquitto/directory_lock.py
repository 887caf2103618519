"""The lock on a data directory: only one process at a time runs its broker."""

import fcntl
import os
from pathlib import Path
from typing import IO

from imqtt.errors import SetupError
from imqtt.lock_holder import Holder
from imqtt.processes import command_line


class DirectoryLock:
    """A locked file, which holds the process id of its holder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    def acquire(self) -> None:
        """Raises `SetupError` if another object or process has the lock, and `OSError`."""
        if self._file is not None:
            return
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip()
            file.close()
            by = f" by {Holder(int(pid), command_line(int(pid)))}" if pid.isdigit() else ""
            raise SetupError(
                f"the data directory {self._path.parent} is in use{by}: end it, or use another --data"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
