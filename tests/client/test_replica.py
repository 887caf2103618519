"""A device's copy of a log, whatever gets lost, comes twice or late, and whenever the store is restored."""

from typing import NamedTuple, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from imqtt.cli.mosquitto import Mosquitto
from imqtt.client.replica import Log, Replica, Want
from imqtt.client.store import Memory
from imqtt.client.wanted import Wanted
from imqtt.core.reorder import Reorder
from imqtt.model import Cursor, Device, Event, Id, Page, Sync
from tests.client.little_server import LittleServer

ALICE = Device("alice", "phone")
TALKS = ("d:alice:bob", "d:alice:carol", "u:alice")
EMPTY = Memory((), (), (), {})


class Question(NamedTuple):
    """An answer on its way, and whose cursors it judges."""

    page: Page
    asked: set[str]


class World(RuleBasedStateMachine):
    """A server's logs, packets that are under way from it, and a device."""

    def __init__(self) -> None:
        super().__init__()
        self.server = LittleServer(cast("Mosquitto", None))
        self.server.page_size = 5
        self.server.heads_size = 2
        self.replica = Replica(ALICE, EMPTY, adopting=False, void=self.void)
        self.packets: list[Event | Question] = []
        self.kept: dict[tuple[str, int], Event] = {}
        self.given_out: list[Event] = []

    @rule()
    def ask(self) -> None:
        self.packets.append(self.question())

    @rule()
    def kill_device(self) -> None:
        """What was not stored is forgotten; on coming back, the device asks."""
        logs = tuple(log.state() for log in self.replica.logs.values())
        meta = {"ordinal": str(self.replica.ordinal)}
        self.replica = Replica(ALICE, Memory(logs, (), (), meta), adopting=False, void=self.void)
        self.packets = [self.question()]

    @invariant()
    def the_log_has_no_hole(self) -> None:
        for name, log in self.replica.logs.items():
            seqs = sorted(seq for talk, seq in self.kept if talk == name)
            assert seqs == list(range(log.base + 1, log.cursor.seq + 1))
            ids = [self.kept[name, seq].id for seq in seqs]
            assert ids == sorted(set(ids))

    def teardown(self) -> None:
        """After some answers that arrive, the device has what the server has, and gave nothing out twice."""
        self.flush()
        for _ in range(40):
            self.take(self.question())
        for talk, stored in self.server.logs.items():
            log = self.replica.logs.get(talk, Log(talk, Reorder()))
            kept = [self.kept[talk, seq] for seq in range(log.base + 1, log.cursor.seq + 1)]
            assert kept == stored[log.base :]
        assert len({event.id for event in self.given_out}) == len(self.given_out)

    def flush(self) -> None:
        while self.packets:
            self.take(self.packets.pop(0))

    def question(self) -> Question:
        logs = (log for log in self.replica.logs.values())
        known = [Cursor(it.conversation, it.cursor.seq, it.cursor.id) for it in logs]
        heads = self.server._page("alice", Sync(), tuple(known), 0)
        known += [Cursor(talk) for talk in TALKS if talk not in self.replica.logs]
        page = self.server._page("alice", Sync(), tuple(known), None)
        page = Page("", heads.heads, heads.more_heads, page.slices, page.more)
        return Question(page, {it.conversation for it in known if it.seq})

    def void(self, talk: str) -> None:
        for packet in self.packets:
            if isinstance(packet, Question):
                packet.asked.discard(talk)

    def take(self, packet: Event | Question) -> None:
        if isinstance(packet, Event):
            self.replica.event(packet)
        else:
            self.replica.page(packet.page, packet.asked)
        step = self.replica.take()
        self.kept = {key: it for key, it in self.kept.items() if key[0] not in step.changes.restarted}
        for key, (ordinal, event) in step.changes.events.items():
            self.kept[key] = event
            if ordinal is not None:
                self.given_out.append(event)


class AnyOrder(World):
    """Packets get lost, overtake each other, and come twice. The server keeps what it has."""

    @rule(talk=st.sampled_from(TALKS), lost=st.booleans())
    def store(self, talk: str, lost: bool) -> None:
        event = self.server.store(talk, "hi")
        if not lost:
            self.packets.append(event)

    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        if self.packets:
            place = data.draw(st.integers(0, len(self.packets) - 1))
            self.take(self.packets[place] if again else self.packets.pop(place))


class Restores(World):
    """The server goes back to backups. Packets come in order, but that answers may be late, and twice."""

    @rule(talk=st.sampled_from(TALKS))
    def store(self, talk: str) -> None:
        self.packets.append(self.server.store(talk, "hi"))

    @rule(talk=st.sampled_from(TALKS), keep=st.integers(0, 6))
    def restore(self, talk: str, keep: int) -> None:
        if keep < len(self.server.logs[talk]):
            self.flush()  # what the server said before has arrived by the time that it is back
            self.server.restore(talk, keep)

    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        if self.packets:
            packet = self.packets.pop(0)
            if again and isinstance(packet, Question):
                self.packets.append(packet)
            self.take(packet)

    @rule()
    def delay(self) -> None:
        if self.packets and isinstance(self.packets[0], Question):
            self.packets.append(self.packets.pop(0))


TestAnyOrder, TestRestores = AnyOrder.TestCase, Restores.TestCase
TestAnyOrder.settings = TestRestores.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


def event(seq: int) -> Event:
    return LittleServer(cast("Mosquitto", None)).store("d:alice:bob", str(seq))


def test_a_hole_is_wanted_soon_and_what_the_server_told_of_at_once() -> None:
    server = LittleServer(cast("Mosquitto", None))
    stored = [server.store("d:alice:bob", "hi") for _ in range(3)]
    replica = Replica(ALICE, EMPTY, adopting=False, void=str)
    replica.event(stored[2])
    assert replica.take().wanted == {"d:alice:bob": Want.HOLE}
    heads = server._page("alice", Sync(heads=True), (), 0)
    replica.page(heads, set())
    assert replica.take().wanted == {"d:alice:bob": Want.BEHIND}


def test_what_is_new_stays_new_though_the_log_begins_anew_before_it_is_stored() -> None:
    server, talk = LittleServer(cast("Mosquitto", None)), "d:alice:bob"
    replica = Replica(ALICE, EMPTY, adopting=False, void=str)
    for _ in range(3):
        replica.event(server.store(talk, "old"))
    replica.take()
    cursor = replica.logs[talk].cursor
    server.restore(talk, 2)
    server.store(talk, "another third")
    fourth = server.store(talk, "behind the cursor")
    replica.event(fourth)
    asked = server._page("alice", Sync(), (Cursor(talk, cursor.seq, cursor.id),), None)
    replica.page(asked, {talk})
    changes = replica.take().changes
    assert changes.restarted == {talk}
    assert changes.events[talk, 4] == (4, fourth)
    assert sorted(seq for _, seq in changes.events) == [1, 2, 3, 4]


def test_events_with_numbers_that_no_server_draws_are_counted_and_dropped() -> None:
    replica = Replica(ALICE, EMPTY, adopting=False, void=str)
    for seq, id_ in ((0, 1), (1 << 60, 1), (1, 0), (1, 1 << 63), (-1, 5)):
        good = event(1)
        replica.event(Event(good.conversation, seq, Id(id_), 0, "bob", "phone", "m", good.content))
    assert replica.odd == 5
    assert not replica.take().changes


def test_what_asking_does_not_bring_is_asked_for_less_and_less() -> None:
    wanted = Wanted(lambda: 1.0)
    wanted.add("a", 0.0)
    waits, now = [], 0.0
    for _ in range(12):
        due = wanted.next_at()
        assert due is not None
        waits.append(due - now)
        now = due
        assert wanted.due(now, 10) == ["a"]
        assert wanted.next_at() is None
        wanted.again("a", now, helped=False)
        wanted.add("a", now)  # a wish that did not help does not become more urgent by being repeated
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    wanted.done("a")
    assert wanted.next_at() is None
    assert len(wanted) == 0
