"""Owners and modes of the files of a data directory and a broker.

`imqtt.private_files` is for files of this process's own user. Here, root may give files to the broker's user,
and that user may have replaced them.
"""

import contextlib
import os
import stat
from pathlib import Path

from imqtt.mosquitto.system_user import SystemUser

DRAFT = "~"  # suffix of an incomplete file; no user or device id contains it


def write_private(path: Path, text: str) -> None:
    """Atomically replaces a file by one with `text` that others cannot read. Raises `OSError`.

    An existing file keeps the mode of its group and, if root writes, its owner, so that a broker that runs as
    another user can still read it.
    """
    mode, owner = 0o600, None
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            mode = stat.S_IMODE(found.st_mode) & 0o770
            owner = (found.st_uid, found.st_gid)
    draft = path.with_name(path.name + DRAFT)
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if owner is not None and owner != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def set_access(path: Path, mode: int, user: SystemUser | None = None) -> None:
    """Sets the mode of a file or directory, and its owner if one is given. Raises `OSError`.

    Ignores a missing file, a symbolic link and a file with several hard links: a compromised broker could
    have created links to root's files in its own directory.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            return
        if user is not None and (found.st_uid, found.st_gid) != (user.uid, user.gid):
            os.fchown(descriptor, user.uid, user.gid)
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def create_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
