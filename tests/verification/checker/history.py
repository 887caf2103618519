"""What devices did and saw, as lines of JSON, to be judged afterwards by `tests.verification.checker.check`.

The words are those of Jepsen's histories: a message is invoked, and ends `ok` (accepted), `fail` (refused
for good: it must not be stored) or `info` (its sender does not know: a timeout is that, and so is a kill).
Every message has a value of its own, and order is told by seq: `at` is for people and for recovery times.

Each process appends to a file of its own, one write per line, so that a kill costs at most a broken last
line. `merge` reads them all.
"""

import heapq
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec


class Row(NamedTuple):
    """One event, wherever it was found. `name` is its client_msg_id, `value` its text."""

    seq: int
    id: int
    sender: str
    name: str
    value: str


class Entry(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """One line. `process` is the device, as `user@device`; `at` seconds of the machine's monotonic clock."""

    process: str
    at: float


class Start(Entry, frozen=True):
    """The process begins, for the first time or again. `ordered`: it promises its messages' order.

    `keeps`: what it calls `Taken` is in an outbox that outlives it. Without that, `Taken` is the broker's
    PUBACK, and whether the message is carried out rests with the broker and the server.
    """

    ordered: bool = False
    keeps: bool = False


class Invoke(Entry, frozen=True):
    """It begins to send a message, or sends it again."""

    conversation: str
    name: str
    value: str


class Taken(Entry, frozen=True):
    """Who took the message over will see to it: see `Start.keeps`."""

    conversation: str
    name: str


class Ok(Entry, frozen=True):
    """An `Accepted`. Each one that comes is written: they must all say the same."""

    conversation: str
    name: str
    seq: int
    id: int


class Fail(Entry, frozen=True):
    """Refused for good: sending it again would not help, and it must not be in the log."""

    conversation: str
    name: str
    code: str


class Info(Entry, frozen=True):
    """The sender stopped waiting, and does not know. `answered`: it was told to try again later."""

    conversation: str
    name: str
    why: str
    answered: bool = False


class Seen(Entry, frozen=True):
    """An event as the device gives it to its program: in order, without holes, once."""

    conversation: str
    row: Row


class Begun(Entry, frozen=True):
    """The device has noticed that the server's log is another one (a restored backup) and begins it anew."""

    conversation: str


class Marked(Entry, frozen=True):
    """A member's marks, as the device has them now."""

    conversation: str
    user: str
    delivered: int
    read: int


class Held(Entry, frozen=True):
    """What the device has of a conversation at the end: the events after `base`.

    `fresh`: a device that began with nothing after everything else was over, and asked for all there is.
    A device that knows a conversation of which it holds nothing says so with no rows.
    """

    conversation: str
    base: int
    rows: tuple[Row, ...]
    fresh: bool = False


class Stored(Entry, frozen=True):
    """What the store had of a conversation when `epoch` ended. `marks`: (user, delivered, read).

    An epoch ends with the restore of a backup, the last one with the run.
    """

    epoch: int
    conversation: str
    rows: tuple[Row, ...]
    marks: tuple[tuple[str, int, int], ...] = ()


class Restored(Entry, frozen=True):
    """The store was put back to a backup, which ended `epoch`. `heads`: the backup's, conversation to seq.

    `taken`: the epoch of which it is a backup, if that is not the one that it ended. A backup of long ago
    that has been restored before is one of this epoch, too: all that it holds is in it.
    """

    epoch: int
    heads: dict[str, int]
    taken: int | None = None


class Fault(Entry, frozen=True):
    """Something was really done to `target`. `process` is the harness.

    `phase`: `fired`, `healed`, or `recovered`, when every device has been answered again. `forgets`: a
    broker may have lost, by this, what it had taken.
    """

    kind: str
    target: str
    phase: str = "fired"
    detail: str = ""
    forgets: bool = False


Line = Start | Invoke | Taken | Ok | Fail | Info | Seen | Begun | Marked | Held | Stored | Restored | Fault

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError)  # the latter in the middle of a character


class History:
    """One process's lines, appended to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, line: Line) -> None:
        """In the file when it returns: it outlives the process, not the machine."""
        text = _encode(line) + b"\n"
        if self._file.write(text) < len(text):
            raise OSError(f"the disk is full: half a line stands in {self._file.name}")

    def close(self) -> None:
        self._file.close()


def now() -> float:
    """`at`: the same clock for all processes of a machine, which nobody steps."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def read(path: Path) -> Iterator[Line]:
    """A file's lines. One that a kill has broken off is passed over where it ends the file or a process."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                yield _decode(text)
            except _BROKEN as error:
                if not text.endswith(b"\n"):
                    continue  # the last line
                # A broken line and the first of the restarted process stand on one line.
                start = text.rfind(b'{"type":"start"')
                if start <= 0:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                with suppress(*_BROKEN):
                    yield _decode(text[:start])  # it may lack its end alone
                yield _decode(text[start:])


def merge(paths: Iterable[Path]) -> Iterator[Line]:
    """The lines of all files by time; those of one process in the order in which it wrote them.

    Read as they are asked for: a million messages are gigabytes as a list.
    """
    return heapq.merge(*map(read, paths), key=lambda line: line.at)
