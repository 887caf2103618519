"""Run by `machine` in new namespaces: sets up their network and file system, and waits until stdin ends.

Arguments: an empty directory to work in, and the directories whose changes should stay in the namespace.
"""

import contextlib
import fcntl
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # linux/sockios.h, linux/if.h


def main(scratch: Path, directories: list[Path], removed: list[Path]) -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", scratch)
    for number, directory in enumerate(directories):
        upper, work = scratch / f"upper{number}", scratch / f"work{number}"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={directory},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "-o", layers, "overlay", directory)
    for path in removed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (scratch / "home").mkdir()
    print("ready", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


if __name__ == "__main__":
    sys.exit(
        main(
            Path(sys.argv[1]),
            [Path(part) for part in sys.argv[2].split(":")],
            [Path(part) for part in sys.argv[3].split(":")],
        )
    )
