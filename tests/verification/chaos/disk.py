"""A small disk that a harness can fill to the last byte."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

MEGABYTES = 96


class Disk:
    """`with Disk(directory) as disk`: mounts a small tmpfs there, or nothing if mounting is not permitted.

    A limit on file sizes is no substitute: writes then fail with another error. On unmounting, the files are
    copied into the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_mounted = False

    def __enter__(self) -> Self:
        self.directory.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(self.directory)]
        with contextlib.suppress(OSError):
            self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
        if self.is_mounted:
            kept = self.directory.with_name(self.directory.name + ".kept")
            shutil.copytree(self.directory, kept)
            subprocess.run(["umount", str(self.directory)], check=True)
            self.is_mounted = False
            self.directory.rmdir()
            kept.rename(self.directory)

    def fill(self) -> None:
        """Uses up all free space."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 4_096, 512):
                with contextlib.suppress(OSError):  # no space left on the device
                    while True:
                        os.write(file, bytes(size))
        finally:
            os.close(file)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def ballast(self) -> int:
        """Bytes used by `fill`."""
        return self._ballast.stat().st_size if self._ballast.exists() else 0

    @property
    def _ballast(self) -> Path:
        return self.directory / "ballast"
