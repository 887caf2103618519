"""Stores that contain messages before a server starts on them."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from bench.traffic import text_of
from imqtt.bodies import Change
from imqtt.core.partitions import partition_of
from imqtt.core.snowflake import SEQUENCE_BITS
from imqtt.model import (
    SNOWFLAKE_EPOCH,
    SNOWFLAKE_TIME_SHIFT,
    Content,
    Device,
    Event,
    Id,
    Position,
    Registration,
)
from imqtt.stores.base import Identity, Record, chunks
from imqtt.stores.sqlite.store import SqliteStore

AT_ONCE = 500  # records in one append
DAY = 86_400_000  # milliseconds
DEVICE = "phone"


def members_of(conversation: str) -> list[str]:
    """The two users of a direct conversation."""
    return conversation.split(":")[1:]


async def fill(
    path: Path, arrivals: Iterable[str], devices: Iterable[Device], *, partitions: int, size: int
) -> dict[str, Position]:
    """Creates a store with a message in each of these direct conversations, in order, and registered devices.

    The members of a conversation write in turn. Returns the conversations' heads.
    """
    content = Content(text_of(size))
    change = Change("message", content)
    body = change.encode()
    digest = change.digest(body)
    heads: dict[str, Position] = {}
    counts: Counter[str] = Counter()
    first = int(time.time() * 1_000) - DAY

    def record(number: int, conversation: str) -> Record:
        counts[conversation] = seq = counts[conversation] + 1
        sender = members_of(conversation)[seq % 2]
        sent = first + number
        partition = partition_of(conversation, partitions)
        identity = Id((sent - SNOWFLAKE_EPOCH) << SNOWFLAKE_TIME_SHIFT | partition << SEQUENCE_BITS)
        heads[conversation] = Position(seq, identity)
        event = Event(
            conversation, seq, identity, identity.time, sender, DEVICE, uuid4().hex, content, client_time=sent
        )  # fmt: skip
        return Record(event, body, digest)

    store = await SqliteStore.open(path, Identity.draw(partitions))
    try:
        seen = int(time.time() * 1_000)
        await store.put_devices([Registration(device, "protobuf", seen=seen) for device in devices])
        for records in chunks(itertools.starmap(record, enumerate(arrivals)), AT_ONCE):
            begun = [one.event.conversation for one in records if one.event.seq == 1]
            await store.put_members([(user, name) for name in begun for user in members_of(name)])
            await store.append(records)
    finally:
        await store.close()
    return heads
