"""The logs of the processes of a failed test or run, for its output."""

from pathlib import Path

LINES = 20  # the last ones of each file
FILES = 12  # the most recent ones
LONGEST = 400  # characters of a line
TAIL_BYTES = 32_768


def tails(directory: Path) -> str:
    """The ends of all log files below the directory, oldest first; "" if there are none."""
    logs = [
        (log.stat().st_mtime, log) for log in directory.rglob("*.log") if log.is_file() and log.stat().st_size
    ]
    shown: list[str] = []
    for _, log in sorted(logs)[-FILES:]:
        lines = [line[:LONGEST] for line in _end(log).splitlines()[-LINES:]]
        shown += [f"--- {log.relative_to(directory)}", *lines]
    return "\n".join(shown)


def _end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
