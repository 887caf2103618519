"""Checkpoints SQLite's write-ahead log, mostly in a thread beside the writer.

By itself, SQLite checkpoints within the commit that fills 1,000 pages, and the messages of that commit wait:
at 5,000 messages a second p99 is 6 ms, the maximum 9 to 18 ms. A separate thread copies pages without
blocking the writer, which only copies the last few between two commits so that the log can restart: p99 is
4 ms, the maximum 6 to 8 ms. It also does slightly less work, since a page that changes often is copied less
often. (Measured while the writer had its own thread too, and with pages of 4 KiB.)
"""

import logging
import sqlite3
import threading
from pathlib import Path

from imqtt.problems import Problem
from imqtt.stores.sqlite import file as sqlite_file

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.5  # shorter copies pages more often; longer delays commits for longer
LOG_PAGES = 8_000  # 16 MiB: the writer checkpoints when the log is at least this long


class Checkpointer:
    """A thread that checkpoints, and sets `due` when the writer has to call `checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.due = False
        self._path = path
        self._committed = threading.Event()
        self._stopping = threading.Event()
        self._problem = Problem(
            log,
            f"the write-ahead log of {path} cannot be checkpointed",
            f"the write-ahead log of {path} is checkpointed again",
            calm=0.0,  # two threads use it
        )
        self._thread = threading.Thread(target=self._run, name="imqtt-sqlite-checkpointer", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        self._committed.set()

    def stop(self) -> None:
        self._stopping.set()
        self._committed.set()
        self._thread.join()

    def checkpoint(self, connection: sqlite3.Connection, mode: str = "PASSIVE") -> int:
        """Copies pages from the log, and returns the number of pages in it. Never raises.

        After an error the pages are still in the log; the next call copies them.
        """
        self.due = False
        try:
            _, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            self._problem.start(str(error))
            return 0
        self._problem.end()
        return int(pages)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while not self._stopping.wait(INTERVAL_SECONDS):
            self._committed.wait()
            self._committed.clear()
            try:
                connection = connection or sqlite_file.connect_to_write(self._path)
            except sqlite3.Error:
                continue  # the writer gets the same error and reports it
            self.due = self.checkpoint(connection) >= LOG_PAGES
        if connection is not None:
            connection.close()
