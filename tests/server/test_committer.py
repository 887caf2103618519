"""The committer on a store that fails in the ways in which real stores fail, one at a time.

The store is SQLite's own; a test injects an outcome of `append` at a chosen moment.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from imqtt.core.conversations import Members, members_from_ids
from imqtt.core.sequencing import Append, Decision, Incoming, Known, Refuse, receive
from imqtt.core.snowflake import Snowflake
from imqtt.errors import AlreadyRecalled, Conflict, ImqttError, StoreFull, StoreReadOnly, Unavailable
from imqtt.model import Content, Device, Recall, Send
from imqtt.server.app import wall_clock
from imqtt.server.committer import Committer
from imqtt.server.counters import Counters
from imqtt.server.head_cache import HeadCache
from imqtt.server.problems import Problems
from imqtt.state.memory import MemoryState
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, RecordRefused
from imqtt.stores.sqlite.store import SqliteStore

ALICE = Device("alice", "phone")
Fault = Callable[[Sequence[Record]], ImqttError | None]


class FaultyStore(SqliteStore):
    """Raises `before` instead of appending, and `after` once it has appended."""

    before: Fault | None = None
    after: Fault | None = None

    async def append(self, records: Sequence[Record]) -> None:
        if self.before is not None and (error := self.before(records)) is not None:
            raise error
        await super().append(records)
        if self.after is not None and (error := self.after(records)) is not None:
            raise error


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyStore]:
    store = await FaultyStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    assert isinstance(store, FaultyStore)
    yield store
    await store.close()


class Owner:
    """A committer and its state, which remembers keys that it is told to."""

    def __init__(self, store: SqliteStore, *, rate: int = 10_000, burst: int = 10_000) -> None:
        self._committer = Committer(
            store=store,
            snowflakes=[Snowflake(0, 60_000)],
            heads=HeadCache(100),
            counters=Counters(),
            problems=Problems(),
            clock=wall_clock,
        )
        self._state = MemoryState(rate, burst)

    async def commit(self, commands: Sequence[Incoming], members: Members) -> list[Decision]:
        senders = Counter(command.sender for command in commands)
        begun = await self._state.begin((), [command.key for command in commands], senders, wall_clock())
        return await self._committer.commit(commands, members, begun)


def messages(*names: str, conversation: str = "u:alice") -> list[Incoming]:
    return [receive(ALICE, Send(conversation, name, Content(text=f"text {name}"))) for name in names]


def batch(*names: str, conversation: str = "u:alice") -> tuple[list[Incoming], Members]:
    return messages(*names, conversation=conversation), members_from_ids([conversation])


def once(error: ImqttError) -> Fault:
    left = [error]
    return lambda _: left.pop() if left else None


def refusing(name: str) -> Fault:
    def fault(records: Sequence[Record]) -> ImqttError | None:
        return RecordRefused("no") if any(record.event.client_msg_id == name for record in records) else None

    return fault


async def log(store: SqliteStore, conversation: str = "u:alice") -> list[tuple[int, str]]:
    events = await store.events_after(conversation, 0, 1_000)
    return [(event.seq, event.client_msg_id) for event in events]


def seqs(decisions: Sequence[Decision]) -> list[int]:
    return [
        decision.event.seq if isinstance(decision, Append) else decision.position.seq
        for decision in decisions
        if not isinstance(decision, Refuse)
    ]


async def test_an_append_of_unknown_outcome_is_sent_again(store: FaultyStore) -> None:
    store.before = once(OutcomeUnknown("gone"))
    decisions = await Owner(store).commit(*batch("1", "2"))
    assert [type(decision) for decision in decisions] == [Append, Append]
    assert await log(store) == [(1, "1"), (2, "2")]


async def test_an_append_that_had_succeeded_after_all_is_recognised(store: FaultyStore) -> None:
    store.after = once(OutcomeUnknown("no answer"))
    decisions = await Owner(store).commit(*batch("1", "2"))
    assert [type(decision) for decision in decisions] == [Append, Append]  # so the events are delivered
    stored = await store.events_after("u:alice", 0, 10)
    assert [decision.event.id for decision in decisions if isinstance(decision, Append)] == [
        event.id for event in stored
    ]


async def test_two_owners_at_once_do_no_harm(store: FaultyStore) -> None:
    one, other = Owner(store), Owner(store)
    await one.commit(*batch("1"))
    await other.commit(*batch("2", "3"))
    decisions = await one.commit(*batch("3", "4", "2", "5"))  # with an outdated head; two are stored already
    assert [type(decision) for decision in decisions] == [Known, Append, Known, Append]
    assert seqs(decisions) == [3, 4, 2, 5]
    assert await log(store) == [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "5")]


async def test_an_event_that_the_store_cannot_hold_fails_its_batch(store: FaultyStore) -> None:
    store.before = refusing("2")
    with pytest.raises(RecordRefused):
        await Owner(store).commit(*batch("1", "2", "3"))
    assert await log(store) == []


async def test_a_full_store_refuses_every_copy_of_a_new_message_and_knows_stored_ones(
    store: FaultyStore,
) -> None:
    owner = Owner(store)
    await owner.commit(*batch("old"))
    store.before = lambda _: StoreFull("full")
    decisions = await owner.commit(*batch("old", "new", "new"))
    assert [type(decision) for decision in decisions] == [Known, Refuse, Refuse]
    assert await log(store) == [(1, "old")]
    store.before = None
    assert seqs(await owner.commit(*batch("new"))) == [2]


@pytest.mark.parametrize("error", [StoreFull("full"), StoreReadOnly("read only")])
async def test_what_a_full_store_has_not_stored_refuses_no_other_command(
    store: FaultyStore, error: Unavailable
) -> None:
    """Neither the second recall nor the other message may be told of an event that does not exist."""
    owner = Owner(store)
    commands, members = batch("1")
    (sent,) = await owner.commit(commands, members)
    assert isinstance(sent, Append)
    target = sent.event.position
    both = [receive(ALICE, Recall("u:alice", name, target)) for name in ("r1", "r2")]
    other = [receive(ALICE, Send("u:alice", "r1", Content(text="x")))]
    store.before = lambda _: error
    decisions = await owner.commit([*both, *other], members)
    assert [decision.error for decision in decisions if isinstance(decision, Refuse)] == [error] * 3
    store.before = None
    again = await owner.commit([*both, *other], members)
    assert [type(decision) for decision in again] == [Append, Refuse, Refuse]
    assert [type(decision.error) for decision in again if isinstance(decision, Refuse)] == [
        AlreadyRecalled,
        Conflict,
    ]


async def test_a_conflict_gives_no_tokens_back(store: FaultyStore) -> None:
    """What precedes the conflict is stored, as in MongoDB, and the rest is decided again."""
    owner = Owner(store, rate=1, burst=3)

    async def append(records: Sequence[Record]) -> None:
        store.append = real  # type: ignore[method-assign]
        await real(records[:2])
        raise AppendConflict(2)

    real = store.append
    store.append = append  # type: ignore[method-assign]  # a store that stores a prefix
    decisions = await owner.commit(*batch("1", "2", "3", "4", "5"))
    assert [type(decision) for decision in decisions] == [Append, Append, Append, Refuse, Refuse]


async def test_a_store_that_cannot_be_read_fails_the_batch(store: FaultyStore) -> None:
    owner = Owner(store)
    await store.close()
    with pytest.raises(Unavailable):
        await owner.commit(*batch("1"))


async def test_members_are_known_before_the_first_event(store: FaultyStore) -> None:
    seen: list[list[str]] = []

    def fault(records: Sequence[Record]) -> None:
        seen.append([record.event.conversation for record in records])

    store.before = fault
    await Owner(store).commit(*batch("1", conversation="d:alice:bob"))
    (head,) = await store.heads_of("bob", 0, 10)
    assert (head.conversation, head.seq) == ("d:alice:bob", 1)


async def test_an_unknown_outcome_stays_unknown_until_the_store_answers(store: FaultyStore) -> None:
    answers: list[ImqttError] = [StoreFull("full")]

    def before(records: Sequence[Record]) -> ImqttError | None:
        return answers.pop() if store.after is None and answers else None

    def after(records: Sequence[Record]) -> ImqttError:
        store.after = None
        return OutcomeUnknown("no answer")

    store.before, store.after = before, after
    (decision,) = await Owner(store).commit(*batch("1"))
    assert isinstance(decision, Append)  # stored by the first try, though the second met a full disk
    assert not answers
    assert await log(store) == [(1, "1")]


async def test_a_stored_message_is_not_rate_limited_when_the_state_has_forgotten_it(
    store: FaultyStore,
) -> None:
    await Owner(store).commit(*batch("1", "2"))
    decisions = await Owner(store, rate=1, burst=1).commit(*batch("1", "2", "3"))
    assert [type(decision) for decision in decisions[:2]] == [Known, Known]


async def test_a_stored_recall_is_known_when_the_state_has_forgotten_it(store: FaultyStore) -> None:
    """Its own event sets the register that refuses another recall."""
    commands, members = batch("1", "2")
    first, second = await Owner(store).commit(commands, members)
    assert isinstance(first, Append)
    assert isinstance(second, Append)
    recall = Recall("u:alice", "r1", first.event.position)
    (recalled,) = await Owner(store).commit([receive(ALICE, recall)], members)
    assert isinstance(recalled, Append)
    again, other, conflict = await Owner(store).commit(
        [
            receive(ALICE, recall),
            receive(ALICE, replace(recall, client_msg_id="r2")),
            receive(ALICE, replace(recall, target=second.event.position)),
        ],
        members,
    )
    assert again == Known(again.incoming, recalled.event.position)
    assert isinstance(other, Refuse)
    assert isinstance(other.error, AlreadyRecalled)
    assert isinstance(conflict, Refuse)
    assert isinstance(conflict.error, Conflict)


async def test_events_that_an_append_of_unknown_outcome_stores_late_are_delivered_too(
    store: FaultyStore,
) -> None:
    """A command that timed out may continue in the store: its rows appear later, under abandoned ids."""
    late: list[Record] = []

    def times_out(records: Sequence[Record]) -> ImqttError | None:
        if not late:
            late.extend(records)
            return OutcomeUnknown("no answer")
        return None

    real = store.append

    async def append(records: Sequence[Record]) -> None:
        if late and records[0].event.id == late[0].event.id:  # sent again, while only a prefix is visible
            await SqliteStore.append(store, late[:1])
            raise AppendConflict(0)
        if late and len(late) > 1:
            rest, late[1:] = late[1:], []
            await SqliteStore.append(store, rest)
        await real(records)

    store.before = times_out
    store.append = append  # type: ignore[method-assign]  # a store that applies writes late
    decisions = await Owner(store).commit(*batch("1", "2", "3"))
    assert [type(decision) for decision in decisions] == [Append, Known, Known]
    assert [decision.untold for decision in decisions if isinstance(decision, Known)] == [True, True]
    assert await log(store) == [(1, "1"), (2, "2"), (3, "3")]
