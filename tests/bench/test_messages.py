"""Stores that contain messages before a server starts on them."""

from pathlib import Path

from bench.messages import fill
from imqtt.model import Device
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore

PARTITIONS = 16


async def test_a_filled_store_has_the_messages_in_order(tmp_path: Path) -> None:
    names = ["d:ann:ben", "d:ann:carol", "d:ann:ben"]
    phone = Device("ann", "phone")
    heads = await fill(tmp_path / "imqtt.db", names, [phone], partitions=PARTITIONS, size=10)
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(1))
    try:
        assert store.identity.partitions == PARTITIONS
        assert await store.heads(names) == heads
        first, second = await store.events_after("d:ann:ben", 0, 100)
        assert (first.seq, first.sender, second.seq, second.sender) == (1, "ben", 2, "ann")
        assert first.id < second.id
        assert sorted(head.conversation for head in await store.heads_of("ann", 0, 100)) == sorted(heads)
        assert [each.device for each in (await store.devices(["ann"]))["ann"]] == [phone]
    finally:
        await store.close()
