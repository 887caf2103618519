"""A device's copy of its logs when packets are lost, repeated or late, and when the store is restored."""

from typing import NamedTuple, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from imqtt.core.changes import Memory, Step, Want
from imqtt.core.device_log import DeviceLog
from imqtt.core.replica import Replica
from imqtt.model import (
    Accepted,
    Content,
    Cursor,
    Device,
    Event,
    Head,
    Id,
    Marks,
    Page,
    RecallBody,
    Send,
    Slice,
    Sync,
)
from imqtt.mosquitto.broker import Mosquitto
from tests.client.fake_server import FakeServer

ALICE = Device("alice", "phone")
TALKS = ("d:alice:bob", "d:alice:carol", "u:alice")
EMPTY = Memory((), (), (), {})


class Question(NamedTuple):
    """An answer on its way, and the conversations whose cursors it judges."""

    page: Page
    asked: dict[str, bool]

    def judge(self, step: Step) -> None:
        """As `Requests` does."""
        for talk in step.doubted & self.asked.keys():
            self.asked[talk] = False
        for talk in step.voided & self.asked.keys():
            del self.asked[talk]


class World(RuleBasedStateMachine):
    """A server's logs, packets on their way from it, and a device."""

    returns_once = True

    def __init__(self) -> None:
        super().__init__()
        self.server = FakeServer(cast("Mosquitto", None))
        self.server.page_size = 5
        self.server.heads_size = 2
        self.replica = Replica(ALICE, EMPTY, adopting=False)
        self.packets: list[Event | Question] = []
        self.kept: dict[tuple[str, int], Event] = {}
        self.returned: list[Event] = []
        self.histories: set[tuple[Id, ...]] = {()}  # every log that the server had, at any time

    @rule()
    def ask(self) -> None:
        self.packets.append(self.question())

    @rule()
    def kill_device(self) -> None:
        """Unstored changes are lost; after the restart the device syncs."""
        logs = tuple(log.state() for log in self.replica.logs.values())
        meta = {"ordinal": str(self.replica.ordinal)}
        self.replica = Replica(ALICE, Memory(logs, (), (), meta), adopting=False)
        self.packets = [self.question()]

    @invariant()
    def the_log_has_no_hole(self) -> None:
        for name, log in self.replica.logs.items():
            seqs = sorted(seq for talk, seq in self.kept if talk == name)
            assert seqs == list(range(log.base + 1, log.cursor.seq + 1))
            ids = [self.kept[name, seq].id for seq in seqs]
            assert ids == sorted(set(ids))

    def teardown(self) -> None:
        """After some answers, the device holds the server's logs, and has returned each event once."""
        self.flush()
        for _ in range(40):
            self.take(self.question())
        for talk, stored in self.server.logs.items():
            log = self.replica.logs.get(talk, DeviceLog(talk, ALICE))
            kept = [self.kept[talk, seq] for seq in range(log.base + 1, log.cursor.seq + 1)]
            assert kept == stored[log.base :]
            assert {event.id for event in kept} <= {event.id for event in self.returned}
        if self.returns_once:
            assert len({event.id for event in self.returned}) == len(self.returned)

    def flush(self) -> None:
        while self.packets:
            self.take(self.packets.pop(0))

    def question(self) -> Question:
        logs = (log for log in self.replica.logs.values())
        known = [Cursor(log.conversation, log.cursor.seq, log.cursor.id) for log in logs]
        heads = self.server._page("alice", Sync(), tuple(known), 0)
        known += [Cursor(talk) for talk in TALKS if talk not in self.replica.logs]
        page = self.server._page("alice", Sync(), tuple(known), None)
        page = Page("", heads.heads, heads.more_heads, page.slices, page.more)
        return Question(page, {cursor.conversation: True for cursor in known if cursor.seq})

    def take(self, packet: Event | Question) -> None:
        frame = packet if isinstance(packet, Event) else packet.page
        held = {key: self.kept[key].id for key in self.replica.overlaps([frame])}
        if isinstance(packet, Event):
            self.replica.event(packet, held)
        else:
            self.replica.page(packet.page, packet.asked, held)
        step = self.replica.take()
        for later in self.packets:
            if isinstance(later, Question):
                later.judge(step)
        restarted = step.changes.restarted
        self.kept = {key: event for key, event in self.kept.items() if key[0] not in restarted}
        for key, (ordinal, event) in step.changes.events.items():
            self.kept[key] = event
            if ordinal is not None:
                self.returned.append(event)


class AnyOrder(World):
    """Packets are lost, reordered and repeated. The server keeps its logs."""

    @rule(talk=st.sampled_from(TALKS), lost=st.booleans())
    def store(self, talk: str, lost: bool) -> None:
        event = self.server.store(talk, "hi")
        self.histories.add(tuple(event.id for event in self.server.logs[talk]))
        if not lost:
            self.packets.append(self.server.live(event))

    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        if self.packets:
            place = data.draw(st.integers(0, len(self.packets) - 1))
            self.take(self.packets[place] if again else self.packets.pop(place))


class Restores(World):
    """The server restores backups. Packets arrive in order, except that answers may be late or repeated.

    Events do not name their predecessor, as from an older server, so none is lost.
    """

    @rule(talk=st.sampled_from(TALKS))
    def store(self, talk: str) -> None:
        self.packets.append(self.server.store(talk, "hi"))

    @rule(talk=st.sampled_from(TALKS), keep=st.integers(0, 6), clock_was_ahead=st.booleans())
    def restore(self, talk: str, keep: int, clock_was_ahead: bool) -> None:
        if keep < len(self.server.logs[talk]):
            self.flush()  # packets from before the restore arrive before it
            self.server.restore(talk, keep, clock_was_ahead=clock_was_ahead)

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


class RestoresInAnyOrder(AnyOrder):
    """The server restores backups, and packets from before that still arrive, in any order.

    An event that was lost with a log may thus arrive a second time, and is returned again.
    """

    returns_once = False

    @rule(
        talk=st.sampled_from(TALKS), back=st.integers(1, 3), missed=st.integers(0, 3),
        clock_was_ahead=st.booleans(),
    )  # fmt: skip
    def restore(self, talk: str, back: int, missed: int, clock_was_ahead: bool) -> None:
        """`missed`: further events that the device does not receive, since the backup does not know it."""
        kept = max(0, len(self.server.logs[talk]) - back)
        self.server.restore(talk, kept, clock_was_ahead=clock_was_ahead)
        for _ in range(missed):
            self.store(talk, lost=True)

    @rule(talk=st.sampled_from(TALKS))
    def receive(self, talk: str) -> None:
        """An event that arrives at once."""
        self.store(talk, lost=False)
        self.take(self.packets.pop())

    @invariant()
    def the_log_is_one_that_the_server_had(self) -> None:
        for name, log in self.replica.logs.items():
            assert tuple(self.kept[name, seq].id for seq in range(1, log.cursor.seq + 1)) in self.histories


TestAnyOrder, TestRestores = AnyOrder.TestCase, Restores.TestCase
TestRestoresInAnyOrder = RestoresInAnyOrder.TestCase
TestAnyOrder.settings = TestRestores.settings = TestRestoresInAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


def event(seq: int) -> Event:
    return FakeServer(cast("Mosquitto", None)).store("d:alice:bob", str(seq))


def test_a_hole_is_requested_soon_and_a_conversation_behind_its_head_at_once() -> None:
    server = FakeServer(cast("Mosquitto", None))
    stored = [server.store("d:alice:bob", "hi") for _ in range(3)]
    replica = Replica(ALICE, EMPTY, adopting=False)
    replica.event(stored[2], {})
    assert replica.take().wanted == {"d:alice:bob": Want.HOLE}
    heads = server._page("alice", Sync(heads=True), (), 0)
    replica.page(heads, {}, {})
    assert replica.take().wanted == {"d:alice:bob": Want.BEHIND}


def test_a_new_event_stays_new_though_the_log_restarts_before_it_is_stored() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    replica = Replica(ALICE, EMPTY, adopting=False)
    for _ in range(3):
        replica.event(server.store(talk, "old"), {})
    replica.take()
    cursor = replica.logs[talk].cursor
    server.restore(talk, 2)
    server.store(talk, "another third")
    fourth = server.store(talk, "behind the cursor")
    replica.event(fourth, {})
    asked = server._page("alice", Sync(), (Cursor(talk, cursor.seq, cursor.id),), None)
    replica.page(asked, {talk: True}, {})
    changes = replica.take().changes
    assert changes.restarted == {talk}
    assert changes.events[talk, 4] == (4, fourth)
    assert sorted(seq for _, seq in changes.events) == [1, 2, 3, 4]


def test_a_restarted_log_keeps_no_recall_of_the_previous_log() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    replica = Replica(ALICE, EMPTY, adopting=False)
    first = server.store(talk, "old")
    replica.event(first, {})
    replica.take()
    old = replace(
        first, seq=9, id=Id(99), content=Content(), kind="recall", recall=RecallBody(first.position)
    )
    again = Page(slices=(Slice(talk, (first,), registers=(old,)),))
    replica.page(again, {talk: True}, {})
    server.restore(talk, 0)
    other = server.store(talk, "another first")
    assert other.position != first.position
    anew = Page(slices=(Slice(talk, (other,), restart=True),))
    replica.page(anew, {talk: True}, {})
    changes = replica.take().changes
    assert changes.restarted == {talk}
    assert changes.registers == []
    replica.page(replace(anew, slices=(replace(anew.slices[0], registers=(old,)),)), {}, {})
    assert replica.take().changes.registers == []  # it judges a cursor that no longer exists


def test_a_live_event_is_kept_without_its_previous() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    stored = [server.store(talk, text) for text in ("first", "second")]
    replica = Replica(ALICE, EMPTY, adopting=False)
    for event in stored:
        replica.event(server.live(event), {})
    assert [event for _, event in replica.take().changes.events.values()] == stored


def test_an_accepted_message_of_another_log_leaves_the_outbox_and_its_event_comes_with_the_sync() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    replica = Replica(ALICE, EMPTY, adopting=False)
    for text in ("kept", "lost"):
        replica.event(server.live(server.store(talk, text)), {})
    replica.take()
    server.restore(talk, 1)
    server.store(talk, "not sent live")
    mine = server.store(talk, "hi", "alice@phone", "m1")
    accepted = Accepted(talk, "m1", mine.seq, mine.id, mine.time, server.live(mine).previous)
    replica.accepted(accepted, Send(talk, "m1", mine.content, 0), {})
    step = replica.take()
    assert step.wanted == {talk: Want.CHECK}
    assert not step.changes.events
    assert step.accepted == [accepted]
    assert step.changes.sent == [(talk, "m1")]
    cursor = replica.logs[talk].cursor
    replica.page(
        server._page("alice", Sync(), (Cursor(talk, cursor.seq, cursor.id),), None), {talk: True}, {}
    )
    assert [event for _, event in replica.take().changes.events.values()] == server.logs[talk]


def test_accepted_contains_previous_whichever_answer_arrives() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    first = server.store(talk, "first")
    mine = server.live(server.store(talk, "hi", "alice@phone", "m1"))
    accepted = Accepted(talk, "m1", mine.seq, mine.id, mine.time, first.id)
    command = Send(talk, "m1", mine.content, 0)
    for answer in ("accepted", "event"):
        replica = Replica(ALICE, EMPTY, adopting=False)
        replica.event(first, {})
        if answer == "accepted":
            replica.accepted(accepted, command, {})
        else:
            replica.event(mine, {})
        assert replica.take().accepted == [accepted]


def test_marks_that_were_not_sent_are_sent_after_a_restart_though_no_head_lists_them() -> None:
    server, talk = FakeServer(cast("Mosquitto", None)), "d:alice:bob"
    replica = Replica(ALICE, EMPTY, adopting=False)
    for _ in range(5):
        replica.event(server.store(talk, "hi"), {})
    replica.take()
    replica.server_has(talk, 5, 0)
    assert replica.mark_read(talk, 3)
    changes = replica.take().changes
    states, own = tuple(changes.logs.values()), tuple(changes.marks)
    restarted = Memory((replica.logs[talk].state(), *states), own, (), changes.meta)
    again = Replica(ALICE, restarted, adopting=False)
    assert again.take().marked == {talk}
    again.server_has(talk, 5, 3)
    stored = Memory(restarted.logs, own, (), again.take().changes.meta)
    assert not Replica(ALICE, stored, adopting=False).take().marked


def test_events_with_numbers_that_no_server_draws_are_counted_and_dropped() -> None:
    replica = Replica(ALICE, EMPTY, adopting=False)
    for seq, id_ in ((0, 1), (1 << 60, 1), (1, 0), (1, 1 << 63), (-1, 5)):
        good = event(1)
        replica.event(Event(good.conversation, seq, Id(id_), 0, "bob", "phone", "m", good.content), {})
    assert replica.odd == 5
    assert not replica.take().changes


def test_a_log_known_only_from_an_accepted_begins_there_if_no_head_lists_it() -> None:
    """Its conversation moved to the front while the device read the list, and the message was discarded."""
    replica = Replica(ALICE, EMPTY, adopting=True)
    replica.accepted(Accepted("d:alice:bob", "m1", 50, Id(1 << 40), 0), None, {})
    replica.end_adoption()
    step = replica.take()
    assert step.changes.logs["d:alice:bob"].base == 49
    assert step.changes.logs["d:alice:bob"].cursor.seq == 49
    assert step.wanted == {"d:alice:bob": Want.HOLE}


def test_own_marks_that_come_before_the_page_of_their_conversation_are_kept() -> None:
    """Another device raised them after the page was read and before it arrived."""
    replica = Replica(ALICE, EMPTY, adopting=True)
    replica.marks(Marks("u:alice", "alice", 3, 2))
    replica.page(
        Page(heads=(Head("u:alice", 3, Id(1 << 40), marks=(Marks("u:alice", "alice", 1, 1),)),)), {}, {}
    )
    log = replica.logs["u:alice"]
    assert (log.marks.delivered, log.marks.read) == (3, 2)
