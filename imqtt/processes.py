"""The processes of this machine."""

import subprocess
from pathlib import Path

SECONDS = 5.0  # for `ps`, on systems without /proc


def command_line(pid: int) -> str:
    """The command line of a process, joined by spaces; empty if unknown."""
    if Path("/proc/self").exists():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return ""
        return b" ".join(words).decode(errors="replace").strip()
    try:
        listed = subprocess.run(  # noqa: S603 - a fixed program, and a number
            ["/bin/ps", "-ww", "-p", str(pid), "-o", "command="],
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return listed.stdout.strip()
