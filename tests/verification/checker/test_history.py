import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.verification.checker.history import (
    Fail,
    Fault,
    Held,
    History,
    Info,
    Invoke,
    Line,
    LogRestarted,
    Marked,
    Ok,
    Paged,
    Queued,
    Restored,
    Row,
    Seen,
    Start,
    Stored,
    merge,
    now,
    read,
)

TALK = "d:alice:bob"
ALICE = "alice@phone"
ROW = Row(1, (1 << 63) - 1, "alice", "m1", 'umlauts äöü, a 🙂, a "quote", {"type":"start"} and a\nnewline')

ONE_OF_EACH: list[Line] = [
    Start(ALICE, 1.0, ordered=True, durable=True),
    Invoke(ALICE, 2.5, TALK, "m1", ROW.value),
    Queued(ALICE, 3.0, TALK, "m1"),
    Ok(ALICE, 4.0, TALK, "m1", 1, ROW.id),
    Fail(ALICE, 5.0, TALK, "m2", "conflict"),
    Info(ALICE, 6.0, TALK, "m3", "timeout"),
    Seen(ALICE, 7.0, TALK, ROW),
    Paged(ALICE, 7.5, TALK, (ROW,), (ROW,), ((1, 7),)),
    LogRestarted(ALICE, 8.0, TALK),
    Marked(ALICE, 9.0, TALK, "bob", 3, 2),
    Held(ALICE, 10.0, TALK, 0, (ROW,), fresh=True),
    Stored("store", 11.0, 0, TALK, (ROW,), (("bob", 3, 2),)),
    Restored("harness", 12.0, 0, {TALK: 1}, backup_epoch=0),
    Fault("harness", 13.0, "killed", "broker", "fired", "by 9", loses_state=True),
]


def write(path: Path, *lines: Line) -> Path:
    history = History(path)
    for line in lines:
        history.write(line)
    history.close()
    return path


def broken(path: Path, line: Line, size: int) -> Path:
    """Truncates the last line after `size` bytes, as a kill does."""
    before = path.read_bytes() if path.exists() else b""
    write(path, line)
    path.write_bytes(path.read_bytes()[: len(before) + size])
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.jsonl"


def test_written_lines_are_read_back(path: Path) -> None:
    assert list(read(write(path, *ONE_OF_EACH))) == ONE_OF_EACH


def test_every_kind_of_line_is_covered() -> None:
    assert {type(line) for line in ONE_OF_EACH} == set(get_args(Line))


def test_a_written_line_is_in_the_file_at_once(path: Path) -> None:
    history = History(path)
    for number, line in enumerate(ONE_OF_EACH, 1):
        history.write(line)
        assert len(list(read(path))) == number
    history.close()


def test_a_restarted_process_appends_to_its_file(path: Path) -> None:
    write(path, *ONE_OF_EACH[:3])
    write(path, *ONE_OF_EACH[3:])
    assert list(read(path)) == ONE_OF_EACH


def test_a_last_line_truncated_by_a_kill_is_ignored(path: Path) -> None:
    write(path, ONE_OF_EACH[0])
    whole = len(path.read_bytes())
    write(path, ONE_OF_EACH[1])
    text = path.read_bytes()
    for end in range(whole, len(text) - 1):  # also within a multi-byte character
        path.write_bytes(text[:end])
        assert list(read(path)) == ONE_OF_EACH[:1]


def test_a_last_line_that_lacks_only_its_newline_is_read(path: Path) -> None:
    write(path, *ONE_OF_EACH[:2])
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read(path)) == ONE_OF_EACH[:2]


def test_a_line_truncated_before_a_restart_is_ignored(path: Path) -> None:
    """The truncated line and the next one share a line, and the truncated one may contain a start's text."""
    write(path, ONE_OF_EACH[0])
    whole = path.read_bytes()
    size = len(write(path, ONE_OF_EACH[1]).read_bytes()) - len(whole)
    for kept in range(size):
        path.write_bytes(whole)
        broken(path, ONE_OF_EACH[1], kept)
        write(path, ONE_OF_EACH[0], ONE_OF_EACH[2])
        lines = list(read(path))
        whole_line = ONE_OF_EACH[1:2] if kept == size - 1 else []
        assert lines == [ONE_OF_EACH[0], *whole_line, ONE_OF_EACH[0], ONE_OF_EACH[2]]


def test_a_truncated_start_line_before_a_start_line_is_ignored(path: Path) -> None:
    broken(path, ONE_OF_EACH[0], 20)
    write(path, ONE_OF_EACH[0])
    assert list(read(path)) == ONE_OF_EACH[:1]


def test_a_truncated_line_elsewhere_is_an_error(path: Path) -> None:
    write(path, ONE_OF_EACH[0])
    broken(path, ONE_OF_EACH[1], 30)
    write(path, ONE_OF_EACH[2])
    with pytest.raises(ValueError, match="line 2"):
        list(read(path))


def test_a_process_killed_while_writing_leaves_a_readable_history(path: Path) -> None:
    writer = (
        "import sys; from pathlib import Path\n"
        "from tests.verification.checker.history import *\n"
        "history = History(Path(sys.argv[1])); number = 0\n"
        "history.write(Start('alice@phone', now()))\n"
        "while True:\n"
        "    number += 1\n"
        "    history.write(Invoke('alice@phone', now(), 'd:alice:bob', str(number), 'x' * 5_000))\n"
        "    print(number, flush=True)\n"
    )
    for life in range(1, 4):
        process = subprocess.Popen(
            [sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(50):
            assert process.stdout.readline()
        process.kill()
        process.communicate()
        lines = list(read(path))
        assert sum(isinstance(line, Start) for line in lines) == life
        assert sum(isinstance(line, Invoke) for line in lines) >= 50 * life


def test_a_full_disk_raises_instead_of_truncating_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        name = str(path)

        def write(self, text: bytes) -> int:
            return len(text) // 2

    history = History(path)
    history.close()
    monkeypatch.setattr(history, "_file", Full())
    with pytest.raises(OSError, match="full"):
        history.write(ONE_OF_EACH[0])


def test_merged_lines_are_in_order_of_time(tmp_path: Path) -> None:
    one = write(tmp_path / "one", *ONE_OF_EACH[::2])
    other = write(tmp_path / "other", *ONE_OF_EACH[1::2])
    assert list(merge([one, other])) == ONE_OF_EACH


def test_merged_lines_of_one_process_keep_their_order(tmp_path: Path) -> None:
    """Also for equal times and for a clock that stepped back."""

    def lines(process: str, *times: float) -> Iterator[Line]:
        for number, at in enumerate(times):
            yield Invoke(process, at, TALK, str(number), "")

    one = write(tmp_path / "one", *lines("one", 1, 1, 1, 3, 2, 3))
    other = write(tmp_path / "other", *lines("other", 1, 1, 2, 2, 3))
    merged = list(merge([one, other]))
    for process, count in ("one", 6), ("other", 5):
        names = [line.name for line in merged if isinstance(line, Invoke) and line.process == process]
        assert names == [str(number) for number in range(count)]


def test_now_never_goes_back() -> None:
    times = [now() for _ in range(1_000)]
    assert times == sorted(times)
