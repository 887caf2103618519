"""Large stores, written with bulk inserts: ten million events in two or three minutes.

The events are not in order of conversation but in order of arrival, one in each conversation and then again
one in each, as in a store that has grown. Indexes are created afterwards, by sorting.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from bench.messages import DAY, DEVICE
from bench.traffic import numbered_conversation, text_of
from imqtt.bodies import Change
from imqtt.core.partitions import partition_of
from imqtt.core.snowflake import SEQUENCE_BITS
from imqtt.model import SNOWFLAKE_EPOCH, SNOWFLAKE_TIME_SHIFT, Content
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore

TEXT_BYTES = 60  # of a message; more would only need more space on the disk

_EVENTS = """
WITH RECURSIVE rounds (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM rounds WHERE seq < :each)
INSERT INTO events
SELECT
    c.number, r.seq,
    (:first + (r.seq - 1) * :conversations + c.number) << :time_shift | c.partition << :partition_shift,
    c.user, :device, lower(hex(randomblob(16))), 'message', 0, :digest, :body, NULL
FROM rounds AS r CROSS JOIN drafts AS c
"""
_DEVICES = """
WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < :count)
INSERT INTO devices (user, device, format, platform, max_packet, seen)
SELECT printf('idle%07d', number), :device, 'protobuf', '', 0, :seen FROM numbers
"""


async def generate(path: Path, *, conversations: int, devices: int, events: int, partitions: int) -> None:
    """Creates a store at `path`. A file that exists is complete and stays as it is.

    The conversations are those of `bench.traffic.AcrossConversations`; the devices belong to other users.
    """
    if path.exists():
        return
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    await (await SqliteStore.open(draft, Identity.draw(partitions))).close()
    with closing(sqlite3.connect(draft, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -1000000")
        db.execute("PRAGMA temp_store = FILE")
        db.execute("PRAGMA threads = 1")
        db.execute("BEGIN EXCLUSIVE")
        _write(db, conversations, devices, events, partitions)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
    draft.rename(path)
    for suffix in ("-wal", "-shm", ".lock"):
        Path(f"{draft}{suffix}").unlink(missing_ok=True)


def _write(db: sqlite3.Connection, conversations: int, devices: int, events: int, partitions: int) -> None:
    now = int(time.time() * 1_000)
    names = [numbered_conversation(number, conversations) for number in range(conversations)]
    numbered = list(enumerate(names, 1))
    db.executemany("INSERT INTO conversations VALUES (?, ?)", numbered)
    members = ((user, number) for number, name in numbered for user in name.split(":")[1:])
    db.executemany("INSERT INTO members VALUES (?, ?)", sorted(members))
    db.execute("CREATE TEMP TABLE drafts (number INTEGER PRIMARY KEY, partition INTEGER, user TEXT)")
    drafts = ((number, partition_of(name, partitions), name.split(":")[2]) for number, name in numbered)
    db.executemany("INSERT INTO drafts VALUES (?, ?, ?)", drafts)
    indexes = db.execute(
        "SELECT name, sql FROM sqlite_schema WHERE tbl_name = 'events' AND type = 'index'"
    ).fetchall()
    for name, _ in indexes:
        db.execute(f"DROP INDEX {name}")
    change = Change("message", Content(text_of(TEXT_BYTES)))
    body = change.encode()
    values = {
        "each": events // conversations,
        "conversations": conversations,
        "first": now - DAY - events - SNOWFLAKE_EPOCH,
        "time_shift": SNOWFLAKE_TIME_SHIFT,
        "partition_shift": SEQUENCE_BITS,
        "device": DEVICE,
        "digest": change.digest(body),
        "body": body.decode(),
    }
    db.execute(_EVENTS, values)
    for _, statement in indexes:
        db.execute(statement)
    db.execute(_DEVICES, {"count": devices, "device": DEVICE, "seen": now})
