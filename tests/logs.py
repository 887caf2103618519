"""What the processes of a failed test or run have logged, for those who see nothing but its output."""

from pathlib import Path

LINES = 20  # of each file, its last
FILES = 12  # at most, those written to last
LONGEST = 400  # characters of a line
TAIL_BYTES = 32_768


def tails(directory: Path) -> str:
    """The ends of all log files in the directory and those below it, oldest first; "" if there are none."""
    logs = [(it.stat().st_mtime, it) for it in directory.rglob("*.log") if it.is_file() and it.stat().st_size]
    shown: list[str] = []
    for _, log in sorted(logs)[-FILES:]:
        lines = [line[:LONGEST] for line in _end(log).splitlines()[-LINES:]]
        shown += [f"--- {log.relative_to(directory)}", *lines]
    return "\n".join(shown)


def _end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
