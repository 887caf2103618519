"""Files of a data directory and of a broker: who owns them, and who may read them.

`imqtt.private_files` is for files of this process's own user. Here root may give files to the broker's user,
or find some that this user has put in their place.
"""

import contextlib
import os
import stat
from pathlib import Path

from imqtt.mosquitto.system_user import SystemUser

DRAFT = "~"  # at the end of a file's name until it is whole; no user or device id has it


def write_private(path: Path, text: str) -> None:
    """Replaces a file with one that others cannot read and that holds `text`: all of it or nothing.

    A file that is there keeps its group's rights and, if root writes, its owner: a broker that runs as
    another user keeps its access. Raises `OSError`.
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
    """Gives a file or directory this mode, and this owner if one is given. Raises `OSError`.

    Does nothing if there is no such file. Never follows a link and leaves a file with several names alone: in
    its own directory, a broker that was broken into could have created either, for any file of root's.
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
    """Creates a directory that only its owner may enter, with its parents, unless it is there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
