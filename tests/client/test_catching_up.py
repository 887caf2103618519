"""A device gets the events that it missed, whatever it held before and whatever the server does."""

import asyncio
import dataclasses
from collections.abc import Awaitable

import pytest
from msgspec.structs import replace

from imqtt.client import Restarted
from imqtt.client.transport import Lost
from imqtt.client.uplink import Uplink
from imqtt.errors import NotConnected
from imqtt.model import AnyCommand, AnyFrame, Event, History, Id, Mark, Marks, Page, Sync
from tests.client.conftest import PATIENT, QUICK, Devices
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK, take, texts
from tests.services import WITHIN, eventually
from tests.verification.chaos.proxy import Proxy


async def whole(client: object, conversation: str = TALK, limit: int = 10_000) -> list[Event]:
    return await client.history(conversation, limit=limit)  # type: ignore[attr-defined,no-any-return]


async def test_a_new_device_gets_heads_with_their_latest_and_the_newest_conversation(
    little: FakeServer, device: Devices
) -> None:
    for number in range(5):
        little.store("d:alice:carol", f"c{number}", "carol@phone")
    for number in range(150):
        little.store(TALK, f"b{number}")
    async with device() as alice:
        events = alice.events("everything")
        summaries = await alice.conversations()
        assert [(it.conversation, it.head.seq, it.unread, it.unread_at_most) for it in summaries] == [
            (TALK, 150, 100, 150),
            ("d:alice:carol", 5, 1, 5),
        ]
        assert [it.last and it.last.content.text for it in summaries] == ["b149", "c4"]
        asked = len(little.commands(History))
        assert texts(await alice.history(TALK)) == [f"b{number}" for number in range(50, 150)]
        assert len(little.commands(History)) == asked
        new = little.store(TALK, "new")
        await little.tell("alice@phone", new)
        assert await take(events, 1) == [new]  # earlier events are history


async def test_a_new_device_that_starts_at_the_beginning_misses_nothing(
    little: FakeServer, device: Devices
) -> None:
    little.page_size = 7
    for number in range(40):
        little.store(TALK, f"b{number}")
        little.store("d:alice:carol", f"c{number}", "carol@phone")
    async with device(start="beginning") as alice:
        seen = await take(alice.events("archive"), 80)
        assert texts([it for it in seen if it.conversation == TALK]) == [f"b{number}" for number in range(40)]


async def test_a_device_that_was_away_gets_what_it_missed_in_order(
    little: FakeServer, device: Devices
) -> None:
    little.store(TALK, "before")
    async with device(stored=True):
        pass
    missed = [little.store(TALK, f"b{number}") for number in range(250)]
    missed += [little.store(f"d:alice:user{number}", "hi", f"user{number}@phone") for number in range(150)]
    async with device(stored=True) as alice:
        seen = await take(alice.events("reader"), 400)
        assert sorted(seen, key=lambda it: it.id) == missed
        assert [it for it in seen if it.conversation == TALK] == missed[:250]
        assert len(await alice.conversations()) == 151


async def test_many_conversations_are_read_from_several_pages_of_heads(
    little: FakeServer, device: Devices
) -> None:
    little.heads_size = 10
    for number in range(45):
        little.store(f"d:alice:user{number}", "hi", f"user{number}@phone")
    async with device(stored=True) as alice:
        assert len(await alice.conversations()) == 45
    little.store("d:alice:user3", "again", "user3@phone")
    before = len(little.commands(Sync))
    async with device(stored=True) as alice:
        assert (await alice.conversations())[0].head.seq == 2
    assert len(little.commands(Sync)) - before <= 5


async def test_an_event_during_the_first_heads_is_new_and_what_was_before_it_is_history(
    little: FakeServer, device: Devices
) -> None:
    little.heads_size = 1
    little.store("d:alice:carol", "old", "carol@phone")
    old = little.store(TALK, "old")
    held: list[Page] = []

    def lose(_: object, frame: object) -> bool:
        if isinstance(frame, Page) and len(held) < 1:
            held.append(frame)
            return True
        return False

    little.lose = lose
    async with device(wait=0, timing=QUICK) as alice:
        events = alice.events("reader")
        await eventually(lambda: held)
        live = little.store(TALK, "live")
        await little.tell("alice@phone", live)
        assert await take(events, 1) == [live]
        await alice.caught_up()
        assert await whole(alice) == [old, live]


async def test_a_lost_last_message_is_found_by_the_next_sync(little: FakeServer, device: Devices) -> None:
    async with device(timing=dataclasses.replace(PATIENT, sync=0.3)) as alice:
        events = alice.events()
        lost = little.store(TALK, "lost")
        assert await take(events, 1) == [lost]


async def test_a_hole_is_asked_for_once_though_many_events_come_after_it(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        events = alice.events()
        stored = [little.store(TALK, str(number)) for number in range(30)]
        asked = len(little.commands(Sync))
        for event in stored[1:]:
            await little.tell("alice@phone", event)
        assert await take(events, 30) == stored
        assert len(little.commands(Sync)) - asked <= 2


async def test_what_comes_again_is_not_asked_about(little: FakeServer, device: Devices) -> None:
    async with device(start="beginning") as alice:
        stored = [little.live(little.store(TALK, str(number))) for number in range(3)]
        await little.tell("alice@phone", *stored)
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        asked = len(little.commands(Sync))
        await little.tell("alice@phone", *stored)
        for text in ("the answer comes behind them", "and this is published behind any question"):
            await alice.send(TALK, text)
        assert len(little.commands(Sync)) == asked


async def test_a_new_log_is_noticed_though_the_device_does_not_hold_what_is_at_its_seqs(
    little: FakeServer, device: Devices
) -> None:
    """The device began after these events, and the new log's ids are lower, since a clock was ahead."""
    for number in range(5):
        little.store(TALK, str(number))
    little.store("d:alice:carol", "newer", "carol@phone")  # so only the head of the other is sent unasked
    async with device() as alice:
        little.restore(TALK, 0, clock_was_ahead=True)
        await little.tell("alice@phone", little.live(little.store(TALK, "new")))
        await eventually(lambda: whole_is(alice, little.logs[TALK]))


async def test_a_server_that_keeps_a_hole_open_is_not_asked_in_a_loop(
    little: FakeServer, device: Devices
) -> None:
    async with device(timing=QUICK) as alice:
        little.store(TALK, "never given out")
        event = little.store(TALK, "hi")
        little.lose = lambda _, frame: isinstance(frame, Page) and bool(frame.slices)
        asked = len(little.commands(Sync))
        began = asyncio.get_running_loop().time()
        await little.tell("alice@phone", event)
        await eventually(lambda: len(little.commands(Sync)) >= asked + 3)
        # A busy loop would have asked that often within milliseconds.
        assert asyncio.get_running_loop().time() - began > QUICK.answer + 2 * QUICK.answer
        little.lose = lambda _, __: False
        await eventually(lambda: whole_is(alice, little.logs[TALK]))


async def whole_is(client: object, log: list[Event]) -> bool:
    return await whole(client) == log


@pytest.mark.parametrize("after", [0, 3, 10])
async def test_a_restored_store_is_noticed_and_the_conversation_begun_anew(
    little: FakeServer, device: Devices, after: int
) -> None:
    """`after`: how many messages are stored after the restore before the device reconnects."""
    for number in range(5):
        little.store(TALK, str(number))
    async with device(stored=True) as alice:
        await alice.mark_read(TALK)
    little.restore(TALK, 2)
    new = [little.store(TALK, f"new {number}") for number in range(after)]
    async with device(stored=True, wait=0) as alice:
        notices = alice.notices()
        assert await asyncio.wait_for(anext(notices), WITHIN) == Restarted(TALK, 1)
        if after == 0:
            new = [little.store(TALK, "new 0")]
            await little.tell("alice@phone", *new)
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        assert await take(alice.events("reader"), len(new)) == new


@pytest.mark.parametrize("answered", ["before the restore", "after it"])
async def test_a_restore_is_noticed_though_the_answer_is_overtaken_by_another_event_of_the_new_log(
    little: FakeServer, device: Devices, answered: str
) -> None:
    """The answer to an earlier request lacks the event, and the next sync is far away."""
    async with device(start="beginning") as alice:
        for number in range(5):
            await little.tell("alice@phone", little.live(little.store(TALK, f"lost {number}")))
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        pages: list[Page] = []
        little.lose = lambda _, frame: isinstance(frame, Page) and pages.append(frame) is None
        if answered == "before the restore":
            odd = little.logs[TALK][2]
            await little.tell("alice@phone", replace(odd, id=Id(odd.id + (1 << 60))))
            await eventually(lambda: pages)
            little.restore(TALK, 0)
        else:
            little.restore(TALK, 0)
            await little.tell("alice@phone", little.store(TALK, "new 1"))
            await eventually(lambda: pages)
        little.lose = lambda _device, _frame: False
        await little.tell("alice@phone", little.store(TALK, "new 2"), pages[0])
        await eventually(lambda: whole_is(alice, little.logs[TALK]))


async def test_a_store_that_lost_everything_is_noticed(little: FakeServer, device: Devices) -> None:
    for number in range(5):
        little.store(TALK, str(number))
    async with device(stored=True) as alice:
        assert len(await whole(alice)) == 5
    little.logs.clear()
    async with device(stored=True) as alice:
        assert await whole(alice) == []
        accepted = await alice.send(TALK, "first")
        assert accepted.seq == 1
        assert texts(await whole(alice)) == ["first"]


async def test_an_answer_that_comes_twice_and_late_does_no_harm(little: FakeServer, device: Devices) -> None:
    async with device(stored=True) as alice:
        for number in range(3):
            await alice.send(TALK, str(number))
    little.restore(TALK, 1)
    little.store(TALK, "other")
    pages: list[Page] = []
    little.lose = lambda _, frame: isinstance(frame, Page) and pages.append(frame) is not None
    async with device(stored=True) as alice:
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        events = alice.events()
        late, little.lose = pages[:], lambda _device, _frame: False
        for page in late:
            await little.tell("alice@phone", page, page)
        last = await alice.send(TALK, "last")
        assert await take(events, 1) == [little.logs[TALK][-1]]
        assert last.seq == 3
        assert await whole(alice) == little.logs[TALK]


async def test_history_comes_from_the_server_once_and_then_from_the_device(
    little: FakeServer, device: Devices
) -> None:
    little.page_size = 30
    stored = [little.store(TALK, str(number)) for number in range(250)]
    newer = little.store("d:alice:carol", "hi", "carol@phone")
    assert newer.seq == 1
    async with device(stored=True) as alice:
        assert await alice.history(TALK, before=201, limit=5) == stored[195:200]
        assert await alice.history(TALK, limit=50) == stored[200:]
        assert await whole(alice) == stored
        asked = len(little.commands(History))
        assert await whole(alice) == stored
        assert await alice.history(TALK, before=100, limit=50) == stored[49:99]
        assert await alice.history(TALK, before=1) == []
        assert len(little.commands(History)) == asked
    async with device(stored=True, brokers="127.0.0.1:1", wait=0) as offline:
        assert await whole(offline) == stored


async def test_history_is_what_there_is_where_the_connection_ends_while_the_server_is_asked(
    little: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object, **__: object) -> None:
        raise Lost("the connection has ended")

    stored = [little.store(TALK, str(number)) for number in range(20)]
    little.store("u:alice", "newest, so that a new device has one event of the other")
    async with device() as alice:
        await alice.caught_up()
        monkeypatch.setattr(Uplink, "publish", lose)
        assert await whole(alice) == stored[-1:]
        with pytest.raises(NotConnected, match="lacks d:alice:bob before seq 20"):
            await alice.history(TALK, before=20)


async def test_a_kept_part_of_the_log_is_bounded_but_for_what_nobody_has_read(
    little: FakeServer, device: Devices
) -> None:
    async with device(keep=20, stored=True) as alice:
        waiting = asyncio.create_task(anext(alice.events("slow")))
        await asyncio.sleep(0)  # its read is submitted, so the store will know the consumer
        waiting.cancel()
        stored = [little.store(TALK, str(number)) for number in range(200)]
        for start in range(0, 200, 10):
            await little.tell("alice@phone", *stored[start : start + 10])
        assert await take(alice.events("slow"), 200) == stored
        asked = len(little.commands(History))
        assert await alice.history(TALK, limit=20) == stored[180:]
        assert len(little.commands(History)) == asked
        assert await alice.history(TALK, limit=60) == stored[140:]


async def test_delivered_marks_go_out_by_themselves_and_together(little: FakeServer, device: Devices) -> None:
    async with device() as alice:
        stored = [little.store(TALK, str(number)) for number in range(20)]
        await little.tell("alice@phone", *stored)
        await eventually(lambda: little.marks.get((TALK, "alice")) == Marks(TALK, "alice", 20, 0))
        assert len(little.commands(Mark)) == 1
        await alice.mark_read(TALK, 12)
        await alice.mark_read(TALK, 7)
        await eventually(lambda: little.marks[TALK, "alice"].read == 12)
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert (summary.unread, summary.read, summary.delivered) == (8, 12, 20)
        await alice.send(TALK, "mine")
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.unread == 8  # the user's own messages count as read


async def test_a_new_device_has_read_its_users_own_messages(little: FakeServer, device: Devices) -> None:
    for number in range(30):
        little.store("u:alice", f"note {number}", "alice@laptop")
        little.store(TALK, f"mine {number}", "alice@laptop")
    little.store(TALK, "hers", "bob@phone")
    async with device() as alice:
        notes, talk = await alice.conversation("alice"), await alice.conversation("bob")
        assert notes is not None
        assert talk is not None
        assert (notes.unread, notes.unread_at_most) == (0, 0)
        assert (talk.unread, await alice.unread("bob")) == (1, 1)


@pytest.mark.parametrize("keep", [None, 10])
async def test_unread_is_exact_once_the_server_was_asked(
    little: FakeServer, device: Devices, keep: int | None
) -> None:
    for number in range(250):
        little.store(TALK, str(number), "alice@laptop" if number % 3 else "bob@phone")
    little.store("d:alice:carol", "newer", "carol@phone")  # so that only the head of the other one is sent
    little.marks[TALK, "alice"] = Marks(TALK, "alice", 20, 20)
    async with device(keep=keep) as alice:
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert (summary.unread, summary.unread_at_most) == (1, 230)
        assert await alice.unread(TALK) == len(range(21, 250, 3))
        await little.disconnect()
        if keep is None:
            assert await alice.unread(TALK) == len(range(21, 250, 3))  # it holds all of them now
        else:
            asking = asyncio.create_task(alice.unread(TALK))
            await asyncio.wait([asking], timeout=0.2)
            assert not asking.done()
            asking.cancel()


@pytest.fixture
def confirm(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set, marks reach the broker and are not acknowledged."""
    confirm = asyncio.Event()
    publish = Uplink.publish

    async def publish_and_wait(uplink: Uplink, command: AnyCommand, **given: bool) -> None:
        await publish(uplink, command, **given)
        if isinstance(command, Mark):
            await confirm.wait()

    monkeypatch.setattr(Uplink, "publish", publish_and_wait)
    return confirm


async def test_marks_that_rise_while_the_broker_has_yet_to_confirm_the_last_ones_are_sent_too(
    little: FakeServer, device: Devices, confirm: asyncio.Event
) -> None:
    async with device() as alice:
        await little.tell("alice@phone", little.store(TALK, "first"))
        await eventually(lambda: little.commands(Mark))
        await little.tell("alice@phone", little.store(TALK, "second"))
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        confirm.set()
        await eventually(lambda: little.marks[TALK, "alice"] == Marks(TALK, "alice", 2, 0))


async def test_marks_of_a_log_that_is_no_more_are_not_taken_for_those_of_the_new_one(
    little: FakeServer, device: Devices, confirm: asyncio.Event
) -> None:
    async with device() as alice:
        await little.tell("alice@phone", *[little.store(TALK, f"old {number}") for number in range(5)])
        await eventually(lambda: Mark(TALK, 5, 0) in little.commands(Mark))
        little.restore(TALK, 0)
        await little.tell("alice@phone", little.store(TALK, "new"))
        await eventually(lambda: whole_is(alice, little.logs[TALK]))
        confirm.set()
        await eventually(lambda: little.commands(Mark)[-1] == Mark(TALK, 1, 0))


async def test_marks_that_the_server_does_not_have_are_sent_again(
    little: FakeServer, device: Devices
) -> None:
    async with device(stored=True) as alice:
        await little.tell("alice@phone", *[little.store(TALK, str(number)) for number in range(5)])
        await eventually(lambda: little.marks.get((TALK, "alice")))
        await alice.mark_read(TALK)
        await eventually(lambda: little.marks[TALK, "alice"].read == 5)
    little.marks.clear()
    async with device(stored=True):
        await eventually(lambda: little.marks.get((TALK, "alice")) == Marks(TALK, "alice", 5, 5))


async def test_a_peers_marks_and_typing_are_told(little: FakeServer, device: Devices) -> None:
    async with device("alice@phone") as alice, device("bob@phone") as bob:
        notices = alice.notices()
        await alice.send(TALK, "hi")
        await eventually(lambda: bob_has(bob, 1))
        await bob.mark_read(TALK)
        await eventually(lambda: marks_are(alice, 1, 1))
        told = await asyncio.wait_for(anext(notices), WITHIN)
        assert (told.conversation, told.user, told.delivered) == (TALK, "bob", 1)


def bob_has(bob: object, seq: int) -> Awaitable[bool]:
    async def has() -> bool:
        summary = await bob.conversation(TALK)  # type: ignore[attr-defined]
        return summary is not None and summary.head.seq == seq

    return has()


def marks_are(client: object, delivered: int, read: int) -> Awaitable[bool]:
    async def are() -> bool:
        marks = (await client.marks(TALK)).get("bob", Marks(TALK, "bob"))  # type: ignore[attr-defined]
        return bool(marks.delivered >= delivered and marks.read >= read)

    return are()


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_what_is_arriving_is_not_asked_for_again(
    little: FakeServer, device: Devices, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[AnyCommand] = []
    confirmed = asyncio.Event()  # by the broker: from then on the device waits for the answer
    publish = Uplink.publish

    async def publish_and_count(uplink: Uplink, command: AnyCommand, **given: bool) -> None:
        asked.append(command)
        await publish(uplink, command, **given)
        confirmed.set()

    broker, timing = little.broker, dataclasses.replace(PATIENT, answer=0.5, patience=0.5)
    old = little.store("d:alice:carol", "old")
    async with (
        Proxy(broker.websocket_port if scheme == "ws" else broker.port) as proxy,
        device(brokers=f"{scheme}://127.0.0.1:{proxy.port}", timing=timing) as alice,
    ):
        events = alice.events()
        monkeypatch.setattr(Uplink, "publish", publish_and_count)
        little.silent = True
        asking = asyncio.create_task(alice._parts.requests.ask(History("d:alice:carol", 2)))
        await asyncio.wait_for(confirmed.wait(), WITHIN)
        proxy.slow(0.0, 20_000)
        told = [little.store(TALK, f"{number} " + "x" * 1_000) for number in range(100)]
        await little.tell("alice@phone", *told)  # the answer may be behind these
        await eventually(lambda: alice._parts.uplink.is_receiving)
        before = len(asked)
        await asyncio.sleep(2 * timing.answer)
        assert len(asked) == before
        proxy.repair()
        await little.speak()
        assert (await asking).slices[0].events == (old,)
        assert await take(events, 100) == told


async def test_what_is_not_arriving_is_asked_for_again(little: FakeServer, device: Devices) -> None:
    lost: list[Page] = []

    def lose(_: object, frame: AnyFrame) -> bool:
        if isinstance(frame, Page) and len(lost) < 2:
            lost.append(frame)
            return True
        return False

    little.lose = lose
    little.store(TALK, "b")
    async with device(start="beginning", timing=QUICK) as alice:
        assert texts(await take(alice.events("archive"), 1)) == ["b"]
    assert len(lost) == 2
