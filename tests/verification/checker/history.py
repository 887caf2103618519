"""Histories: what devices did and saw, as lines of JSON, to be checked by `tests.verification.checker.check`.

The terms are Jepsen's: a message is invoked and ends as `ok` (accepted), `fail` (permanently rejected: it
must not be stored) or `info` (outcome unknown to the sender, as after a timeout or a kill). Every message has
a unique value, and seq defines the order: `at` serves readers and recovery times only.

Each process appends to its own file, one write per line, so a kill truncates at most the last line. `merge`
reads them all.
"""

import heapq
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec


class Row(NamedTuple):
    """One event, wherever it was found. `name` is its client_msg_id, `value` its text.

    The value is empty if a device shows a message as recalled, and `recall SEQ ID` for a recall.
    """

    seq: int
    id: int
    sender: str
    name: str
    value: str


RECALL = "recall"  # the first word of a recall's value


def recall_of(seq: int, id: int) -> str:
    """The value of a recall of the message at this place."""
    return f"{RECALL} {seq} {id}"


def target_of(row: Row) -> tuple[int, int] | None:
    """The seq and id of the message that the row recalls, if it recalls one."""
    word, *numbers = row.value.split(" ")
    return (int(numbers[0]), int(numbers[1])) if word == RECALL and len(numbers) == 2 else None


class Entry(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """One line. `process` is the device, as `user@device`; `at`: seconds of the machine's monotonic clock."""

    process: str
    at: float


class Start(Entry, frozen=True):
    """The process starts or restarts. `ordered`: its messages must be stored in the order it sent them.

    `durable`: `Queued` messages are in an outbox that survives the process. Otherwise `Queued` is the
    broker's PUBACK, and storing the message is up to the broker and the server.
    """

    ordered: bool = False
    durable: bool = False


class Invoke(Entry, frozen=True):
    """The process begins to send a message, or sends it again."""

    conversation: str
    name: str
    value: str


class Queued(Entry, frozen=True):
    """The outbox or the broker has taken the message: see `Start.durable`."""

    conversation: str
    name: str


class Ok(Entry, frozen=True):
    """An `Accepted`. Each one is recorded: all for one message must agree."""

    conversation: str
    name: str
    seq: int
    id: int


class Fail(Entry, frozen=True):
    """Permanently rejected: resending would not help, and the message must not be in the log."""

    conversation: str
    name: str
    code: str


class Info(Entry, frozen=True):
    """The sender stopped waiting and does not know the outcome. `answered`: it was told to retry later."""

    conversation: str
    name: str
    why: str
    answered: bool = False


class Seen(Entry, frozen=True):
    """An event as the device gives it to its program: in order, without holes, once."""

    conversation: str
    row: Row


class Paged(Entry, frozen=True):
    """A page of a conversation as the server sent it: its events, and later ones that change them.

    `known`: recalls that the device knew when it asked, as (seq, id) of the recalled messages.
    """

    conversation: str
    rows: tuple[Row, ...]
    registers: tuple[Row, ...]
    known: tuple[tuple[int, int], ...]


class LogRestarted(Entry, frozen=True):
    """The device has noticed that the server's log was replaced (a restored backup) and restarts its own."""

    conversation: str


class Marked(Entry, frozen=True):
    """A member's marks as the device now has them."""

    conversation: str
    user: str
    delivered: int
    read: int


class Held(Entry, frozen=True):
    """The events after `base` that the device holds of a conversation at the end.

    `fresh`: a device that started with an empty store after everything else was over, and synced. A device
    that knows a conversation but holds none of its events records no rows.
    """

    conversation: str
    base: int
    rows: tuple[Row, ...]
    fresh: bool = False


class Stored(Entry, frozen=True):
    """The store's contents of a conversation when `epoch` ended. `marks`: (user, delivered, read).

    An epoch ends when a backup is restored; the last one ends with the run.
    """

    epoch: int
    conversation: str
    rows: tuple[Row, ...]
    marks: tuple[tuple[str, int, int], ...] = ()


class Restored(Entry, frozen=True):
    """A backup was restored, which ended `epoch`. `heads`: the backup's heads, conversation to seq.

    `backup_epoch`: the epoch in which the backup was taken, if not the one that ended. A backup that was
    already restored once also counts as one of this epoch, which contains everything in it.
    """

    epoch: int
    heads: dict[str, int]
    backup_epoch: int | None = None


class Fault(Entry, frozen=True):
    """A fault had an effect on `target`. `process` is the harness.

    `phase`: `fired`, `repaired`, or `recovered` (every device has been answered again). `loses_state`: the
    broker may have lost messages that it acked.
    """

    kind: str
    target: str
    phase: str = "fired"
    detail: str = ""
    loses_state: bool = False


Line = (
    Start
    | Invoke
    | Queued
    | Ok
    | Fail
    | Info
    | Seen
    | Paged
    | LogRestarted
    | Marked
    | Held
    | Stored
    | Restored
    | Fault
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError)  # UnicodeDecodeError: truncated within a character


class History:
    """Appends one process's lines to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, line: Line) -> None:
        """The line is in the file on return: it survives the process, not the machine."""
        text = _encode(line) + b"\n"
        if self._file.write(text) < len(text):
            raise OSError(f"the disk is full: {self._file.name} ends with half a line")

    def close(self) -> None:
        self._file.close()


def now() -> float:
    """The time for `at`: one clock for all processes of a machine, which is never stepped."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def read(path: Path) -> Iterator[Line]:
    """A file's lines. A line truncated by a kill is skipped at the end of the file or before a restart."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                yield _decode(text)
            except _BROKEN as error:
                if not text.endswith(b"\n"):
                    continue  # the last line
                # The truncated line and the restarted process's first line share a line.
                start = text.rfind(b'{"type":"start"')
                if start <= 0:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                with suppress(*_BROKEN):
                    yield _decode(text[:start])  # only its newline may be missing
                yield _decode(text[start:])


def merge(paths: Iterable[Path]) -> Iterator[Line]:
    """The lines of all files ordered by time; those of one process in the order of writing.

    An iterator, because a million messages take gigabytes as a list.
    """
    return heapq.merge(*map(read, paths), key=lambda line: line.at)
