"""Files and directories that only their owner can read: stores, credentials, logs.

A file is created with mode 0600 before anything is written to it, whatever the umask. If an existing file is
accessible to others, a umask made it so, and it is made private. Access of only the group is kept: the usual
umasks do not cause it, and a backup may need it.
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
DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # of a SQLite database and its auxiliary files


def create_private_file(path: Path) -> None:
    """Creates an empty file, or makes an existing one private. Raises `OSError` and as `make_private`."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    except FileExistsError:
        make_private(path)


def create_private_directory(path: Path) -> None:
    """Creates a directory and its parents, or makes an existing one private. Raises likewise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY)
    except FileExistsError:
        make_private(path)


def make_private(path: Path) -> None:
    """If others have any access to a file or directory, removes their access and the group's, and logs it.

    Does nothing if the path is missing, or on a system without modes. Raises `SetupError` if another user
    owns the file and has to change its mode.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    if os.name != "posix" or not mode & stat.S_IRWXO:
        return
    private = mode & (PRIVATE_DIRECTORY if stat.S_ISDIR(found.st_mode) else PRIVATE_FILE)
    with contextlib.suppress(FileNotFoundError):  # SQLite removes its log when the last user closes it
        try:
            path.chmod(private)
        except PermissionError as error:
            if found.st_uid == os.geteuid():
                return
            raise SetupError(
                f"{path} belongs to another user, and all users of this machine have access to it "
                f"(mode {mode:04o}): run `chmod o= {path}` as its owner"
            ) from error
        log.warning("%s was accessible to all users (mode %04o); its mode is %04o now", path, mode, private)


def create_private_database(path: Path) -> None:
    """To be called before SQLite opens a database. SQLite gives its auxiliary files the same mode.

    A file with content may belong to another program and is not changed. Raises like `create_private_file`.
    """
    if not path.exists() or path.stat().st_size == 0:
        create_private_file(path)


def make_database_private(path: Path) -> None:
    for suffix in DATABASE_SUFFIXES:
        make_private(path.with_name(path.name + suffix))
