"""SQLite finds each register by one seek in an index that has no entries for plain messages."""

import sqlite3
from contextlib import closing
from pathlib import Path

from imqtt.stores.base import Identity
from imqtt.stores.sqlite import reader as sqlite_reader
from imqtt.stores.sqlite.store import SqliteStore
from tests.contract.stores import log, record

D = "d:alice:bob"


async def test_a_register_is_found_by_one_seek_in_the_partial_index(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.append([*log(D, 1, 300), record(D, 301, register="title")])
    await store.close()
    with closing(sqlite3.connect(tmp_path / "imqtt.db")) as connection:
        for analyzed in (False, True):
            if analyzed:
                connection.execute("ANALYZE")
            plan = connection.execute(f"EXPLAIN QUERY PLAN {sqlite_reader._REGISTERS}", ("{}",)).fetchall()
            steps = [step for *_, step in plan]
            assert (
                "SEARCH events USING COVERING INDEX events_by_register (conversation=? AND register=?)"
                in steps
            )
            assert "SEARCH e USING INTEGER PRIMARY KEY (rowid=?)" in steps
            assert not any("TEMP B-TREE" in step for step in steps)


async def test_a_plain_message_has_no_entry_in_the_index(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    await store.append([*log(D, 1, 300), record(D, 301, register="title")])
    await store.close()
    with closing(sqlite3.connect(tmp_path / "imqtt.db")) as connection:
        connection.execute("ANALYZE")
        statistics = connection.execute("SELECT stat FROM sqlite_stat1 WHERE idx = 'events_by_register'")
        assert statistics.fetchone()[0].split()[0] == "1"
