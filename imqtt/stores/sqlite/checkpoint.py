"""Brings SQLite's log into the database file, mostly while others write.

SQLite does this by itself within whatever commit fills 1,000 pages, and that commit's messages wait for
it: at 5,000 messages a second, p99 6 ms and at most 9 to 18 ms. A thread of its own copies pages without
holding up anybody, and leaves the writer only the last few, which have to be copied between two commits
for the log to begin anew: p99 4 ms, at most 6 to 8 ms, for slightly less work, as a page that is written
often is copied less often. (Measured while the writer had a thread too, and with pages of 4 KiB.)
"""

import logging
import sqlite3
import threading
from pathlib import Path

from imqtt.problems import Problem
from imqtt.stores.sqlite import file as sqlite_file

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.5  # more often copies pages more often; less often holds commits up for longer
LOG_PAGES = 8_000  # 16 MiB: from here on the writer has the log begin anew


class Checkpointer:
    """A thread beside the event loop's, which sets `due` when the writer is to call `checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.due = False
        self._path = path
        self._committed = threading.Event()
        self._stopping = threading.Event()
        self._problem = Problem(
            log,
            f"the log of {path} cannot be brought into it",
            f"the log of {path} is brought into it again",
            calm=0.0,  # it is used by two threads
        )
        self._thread = threading.Thread(target=self._run, name="imqtt-sqlite-checkpointer", daemon=True)
        self._thread.start()

    def committed(self) -> None:
        """There is something to copy."""
        self._committed.set()

    def stop(self) -> None:
        """Ends the thread, and waits for it."""
        self._stopping.set()
        self._committed.set()
        self._thread.join()

    def checkpoint(self, connection: sqlite3.Connection, mode: str = "PASSIVE") -> int:
        """Copies what can be copied, and returns how many pages the log holds. Never raises.

        What fails is still in the log, and tried again.
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
                continue  # the writer meets the same, and says so
            self.due = self.checkpoint(connection) >= LOG_PAGES
        if connection is not None:
            connection.close()
