"""The process that holds a lock on a file, to be named in an error."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from imqtt.processes import command_line

LOCKS = Path("/proc/locks")
MAX_COMMAND = 200  # characters of a command line
SECONDS = 5.0  # for `lsof`, on systems without /proc


class Holder(NamedTuple):
    """A process. `command` is its command line; empty if unknown."""

    pid: int
    command: str

    def __str__(self) -> str:
        command = self.command if len(self.command) <= MAX_COMMAND else self.command[:MAX_COMMAND] + "…"
        return f"process {self.pid}" + (f" ({command})" if command else "")


def holder_of(path: Path) -> Holder | None:
    """The process that holds a lock on `path`; None if unknown.

    This does not open the file: closing it would release the locks that this process has on it.
    """
    try:
        pids = _by_proc(path) if LOCKS.exists() else _by_lsof(path)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Holder(pids[0], " ".join(command_line(pids[0]).split())) if pids else None


def _by_proc(path: Path) -> list[int]:
    """Parses lines such as `1: POSIX  ADVISORY  WRITE 2043 fd:01:1311 1073741824 1073742335`."""
    file = path.stat()
    pids: list[int] = []
    for line in LOCKS.read_text().splitlines():
        fields = line.split()
        if "->" in fields or len(fields) < 6:
            continue  # a process that waits for a lock
        pid, (major, minor, inode) = int(fields[4]), fields[5].split(":")
        device = (int(major, 16), int(minor, 16))
        here = device == (os.major(file.st_dev), os.minor(file.st_dev)) or _has_open(pid, path)
        if int(inode) == file.st_ino and pid > 0 and here:
            pids.append(pid)
    return pids


def _has_open(pid: int, path: Path) -> bool:
    """For file systems whose device in /proc/locks differs from that of `stat`."""
    try:
        return any(fd.samefile(path) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _by_lsof(path: Path) -> list[int]:
    program = shutil.which("lsof") or "/usr/sbin/lsof"
    done = subprocess.run(  # noqa: S603 - a fixed program, and a file's name
        [program, "-t", "--", str(path)], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    return [int(line) for line in done.stdout.split() if int(line) != os.getpid()]
