"""Files and directories that only their owner reads: stores, credentials, logs.

A file is created with mode 0600 before anything is written into it, whatever the umask. One that exists and
that others may read was left so by a umask, and is made private. Access of the group alone stays as it is: no
usual umask gives it by accident, and a backup may need it.
"""

import contextlib
import logging
import os
import stat
from pathlib import Path

from imqtt.errors import SetupError

log = logging.getLogger(__name__)

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # of a SQLite database, and of the files beside it


def create_private_file(path: Path) -> None:
    """Creates an empty file of mode 0600; one that exists is made private.

    Raises as `make_private` does, and `OSError` if it cannot be created.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    except FileExistsError:
        make_private(path)


def create_private_directory(path: Path) -> None:
    """Creates a directory of mode 0700, and its parents as the umask says; one that exists is made private.

    Raises as `create_private_file` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY)
    except FileExistsError:
        make_private(path)


def make_private(path: Path) -> None:
    """If others have any access to a file or directory, removes it for them and the group, and logs that.

    Ignores a missing path, and a system without modes. Raises `SetupError` if the file belongs
    to another user, who alone can change its mode.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    if os.name != "posix" or not mode & stat.S_IRWXO:
        return
    private = mode & (PRIVATE_DIRECTORY if stat.S_ISDIR(found.st_mode) else PRIVATE_FILE)
    with contextlib.suppress(FileNotFoundError):  # SQLite removes its log when the last user is gone
        try:
            path.chmod(private)
        except PermissionError as error:
            if found.st_uid == os.geteuid():
                return
            raise SetupError(
                f"{path} belongs to another user, and everybody on this machine has access to it "
                f"(mode {mode:04o}): run `chmod o= {path}` as its owner"
            ) from error
        log.warning("%s had mode %04o, and everybody could read it; it has %04o now", path, mode, private)


def create_private_database(path: Path) -> None:
    """Before SQLite opens it: a new or empty database is private, and so is what SQLite puts beside it.

    Raises as `create_private_file` does. A file with content may be another program's, and is left alone.
    """
    if not path.exists() or path.stat().st_size == 0:
        create_private_file(path)


def make_database_private(path: Path) -> None:
    """`make_private` for a SQLite database and the files beside it."""
    for suffix in DATABASE_SUFFIXES:
        make_private(path.with_name(path.name + suffix))
