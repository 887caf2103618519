"""A primary steps down with rows that no majority had: each record is in the log once, or not yet.

Not every machine has a replica set of several nodes, so this one is in memory. It has only what `append` and
the resolution of its outcome depend on: the two unique indexes over the primary's own rows, reads of the rows
that a majority has, and the two ways in which a step-down can end.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

import bson
import pytest
from pymongo.errors import AutoReconnect

from imqtt.errors import StoreFull, StoreUnreachable
from imqtt.model import Position
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, RecordRefused
from imqtt.stores.mongo.claim import Claim
from imqtt.stores.mongo.client import Database
from imqtt.stores.mongo.store import MongoStore
from tests.contract.stores import log, record

D = "d:alice:bob"
Row = dict[str, Any]


class ReplicaSet:
    """The database and its collection `events`, as far as the store's log uses them."""

    def __init__(self) -> None:
        self.local: list[Row] = []  # what the primary has applied; the first `majority` cannot be rolled back
        self.majority = 0
        self.replicating = True
        self.refusal: Row | None = None  # of the document with this `at`, its `code` and `errmsg`

    def depose(self, *, rolled_back: bool, known: int | None = None) -> None:
        """Another node becomes primary: it has the rows of the majority, or all rows of this one.

        `known`: how many of them it knows a majority to have, until a majority has one of its own writes.
        """
        if rolled_back:
            del self.local[self.majority :]
        self.majority = len(self.local) if known is None else known

    # --- called by the driver

    def get_collection(self, name: str) -> "ReplicaSet":
        return self

    async def command(self, command: Row) -> Row:
        if "update" in command:
            return self._update()
        assert command["ordered"]
        assert command["writeConcern"] == {"w": "majority", "j": True}
        reply: Row = {"ok": 1}
        for index, document in enumerate(command["documents"]):
            row = bson.decode(document.raw)
            failed = self._failure(index, row)
            if failed:
                reply["writeErrors"] = [{"index": index, **failed}]
                break
            self.local.append(row)
        if not self.replicating and len(self.local) > self.majority:
            raise AutoReconnect("connection closed")
        self.majority = len(self.local)
        return reply

    async def find_one(self, wanted: Row, fields: Row, **_: object) -> Row | None:
        for row in reversed(self.local[: self.majority]):
            if all(row[name] == value for name, value in wanted.items()):
                return row
        return None

    def _update(self) -> Row:
        if not self.replicating:
            raise AutoReconnect("connection closed")
        self.majority = len(self.local)
        return {"ok": 1}

    def _failure(self, index: int, row: Row) -> Row | None:
        if self.refusal is not None and self.refusal["at"] == index:
            return self.refusal
        taken = any(
            [stored[name] for name in index] == [row[name] for name in index]
            for stored in self.local
            for index in ("pcs", "pcum")
        )
        return {"code": 11000, "errmsg": "duplicate key"} if taken else None


class ImpatientReplicaSet(ReplicaSet):
    """A replica set that reports at once a duplicate that no majority has.

    MongoDB waits for a majority in this case too, but the store does not depend on that.
    """

    async def command(self, command: Row) -> Row:
        before = len(self.local)
        try:
            return await super().command(command)
        except AutoReconnect:
            if len(self.local) > before:
                raise
            return {"ok": 1, "writeErrors": [{"index": 0, "code": 11000, "errmsg": "duplicate key"}]}


@pytest.fixture(params=[ReplicaSet, ImpatientReplicaSet])
def replica_set(request: pytest.FixtureRequest) -> ReplicaSet:
    kind: type[ReplicaSet] = request.param
    return kind()


@pytest.fixture
def store(replica_set: ReplicaSet) -> MongoStore:
    return MongoStore(cast("Database", replica_set), Identity.draw(1), cast("Claim", None))


def seqs(replica_set: ReplicaSet) -> list[int]:
    return [row["s"] for row in replica_set.local]


async def test_a_row_that_was_rolled_back_is_stored_by_sending_it_again(
    replica_set: ReplicaSet, store: MongoStore
) -> None:
    await store.append(log(D, 1, 2))
    replica_set.replicating = False
    with pytest.raises(OutcomeUnknown):
        await store.append(log(D, 3, 5))
    assert seqs(replica_set) == [1, 2, 3, 4, 5]
    assert await store.heads([D]) == {D: log(D, 2, 2)[0].event.position}
    replica_set.depose(rolled_back=True)
    replica_set.replicating = True
    await store.append(log(D, 3, 5))
    assert seqs(replica_set) == [1, 2, 3, 4, 5]


async def test_a_row_that_was_kept_is_found_by_sending_it_again(
    replica_set: ReplicaSet, store: MongoStore
) -> None:
    replica_set.replicating = False
    with pytest.raises(OutcomeUnknown):
        await store.append(log(D, 1, 3))
    replica_set.depose(rolled_back=False)
    replica_set.replicating = True
    with pytest.raises(AppendConflict) as caught:
        await store.append(log(D, 1, 3))
    assert caught.value.stored == 0
    records = log(D, 1, 3)
    found = await store.find([record.key for record in records])
    assert [found[record.key].position for record in records] == [record.event.position for record in records]
    assert seqs(replica_set) == [1, 2, 3]


async def test_a_duplicate_that_no_majority_has_does_not_count_as_stored(
    replica_set: ReplicaSet, store: MongoStore
) -> None:
    replica_set.replicating = False
    for _ in range(3):
        with pytest.raises(OutcomeUnknown):
            await store.append(log(D, 1, 1))
    rival = record(D, 1, message="another", sender="bob", number=77)
    with pytest.raises(OutcomeUnknown):
        await store.append([rival])
    replica_set.depose(rolled_back=True)
    replica_set.replicating = True
    await store.append([rival])
    assert [row["u"] for row in replica_set.local] == ["bob"]


async def test_after_a_barrier_a_new_primary_shows_all_that_was_acknowledged(
    replica_set: ReplicaSet, store: MongoStore
) -> None:
    await store.append(log(D, 1, 3))
    last = log(D, 3, 3)[0].event
    replica_set.depose(rolled_back=False, known=1)
    assert await store.ids_at([(D, 3)]) == {}
    replica_set.replicating = False
    with pytest.raises(StoreUnreachable):
        await store.barrier()
    replica_set.replicating = True
    await store.barrier()
    assert await store.ids_at([(D, 3)]) == {(D, 3): last.id}


@pytest.mark.parametrize("seed", range(40))
async def test_each_record_is_stored_once_in_order_whatever_happens_to_the_primaries(
    replica_set: ReplicaSet, store: MongoStore, seed: int
) -> None:
    chance = Random(seed)

    def something_happens() -> None:
        if chance.random() < 0.4:
            replica_set.replicating = not replica_set.replicating
        if chance.random() < 0.3:
            replica_set.depose(rolled_back=chance.random() < 0.5)

    acknowledged: list[Record] = []
    while len(acknowledged) < 40:
        first = len(acknowledged) + 1
        acknowledged += await store_until_known(
            store, log(D, first, first + chance.randrange(5)), something_happens
        )
        # Acknowledged records stay, whatever happens to the others.
        kept = replica_set.local[: replica_set.majority]
        expected = [(record.event.seq, record.event.id) for record in acknowledged]
        assert [(row["s"], row["i"]) for row in kept][: len(expected)] == expected
    assert len({(row["u"], row["m"]) for row in replica_set.local}) == len(replica_set.local)


async def store_until_known(
    store: MongoStore, records: Sequence[Record], between: Callable[[], None]
) -> Sequence[Record]:
    """Appends as a server does: the same records until their outcome is known, then the rest."""
    left = list(records)
    while left:
        between()
        try:
            await store.append(left)
            break
        except OutcomeUnknown:
            continue
        except AppendConflict:
            found = await store.find([record.key for record in left])
            left = [record for record in left if record.key not in found]
    return records


# --- refusals by the server


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (121, RecordRefused),
        (10334, RecordRefused),
        (14031, StoreFull),
        (8000, StoreFull),
        (189, OutcomeUnknown),
    ],
)
async def test_a_refused_first_record_raises_the_reason_and_nothing_is_stored(
    replica_set: ReplicaSet, store: MongoStore, code: int, expected: type[Exception]
) -> None:
    replica_set.refusal = {"at": 0, "code": code, "errmsg": "no"}
    with pytest.raises(expected):
        await store.append(log(D, 1, 3))
    assert seqs(replica_set) == []


@pytest.mark.parametrize("code", [121, 14031, 189])
async def test_a_refused_later_record_leaves_those_before_it_stored(
    replica_set: ReplicaSet, store: MongoStore, code: int
) -> None:
    replica_set.refusal = {"at": 2, "code": code, "errmsg": "no"}
    with pytest.raises(AppendConflict) as caught:
        await store.append(log(D, 1, 3))
    assert caught.value.stored == 2
    assert await store.heads([D]) == {D: Position(2, log(D, 2, 2)[0].event.id)}
