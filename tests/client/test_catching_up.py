"""A device gets the events that it missed, whatever it held before and however the server behaves."""

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


async def all_history(client: object, conversation: str = TALK, limit: int = 10_000) -> list[Event]:
    return await client.history(conversation, limit=limit)  # type: ignore[attr-defined,no-any-return]


async def test_a_new_device_gets_heads_with_their_latest_events_and_the_newest_conversation(
    fake: FakeServer, device: Devices
) -> None:
    for number in range(5):
        fake.store("d:alice:carol", f"c{number}", "carol@phone")
    for number in range(150):
        fake.store(TALK, f"b{number}")
    async with device() as alice:
        events = alice.events("everything")
        summaries = await alice.conversations()
        assert [
            (summary.conversation, summary.head.seq, summary.unread, summary.unread_at_most)
            for summary in summaries
        ] == [
            (TALK, 150, 100, 150),
            ("d:alice:carol", 5, 1, 5),
        ]
        assert [summary.last and summary.last.content.text for summary in summaries] == ["b149", "c4"]
        asked = len(fake.commands(History))
        assert texts(await alice.history(TALK)) == [f"b{number}" for number in range(50, 150)]
        assert len(fake.commands(History)) == asked
        new = fake.store(TALK, "new")
        await fake.send("alice@phone", new)
        assert await take(events, 1) == [new]  # earlier events are history


async def test_a_new_device_that_starts_at_the_beginning_misses_nothing(
    fake: FakeServer, device: Devices
) -> None:
    fake.page_size = 7
    for number in range(40):
        fake.store(TALK, f"b{number}")
        fake.store("d:alice:carol", f"c{number}", "carol@phone")
    async with device(start="beginning") as alice:
        seen = await take(alice.events("archive"), 80)
        assert texts([item for item in seen if item.conversation == TALK]) == [
            f"b{number}" for number in range(40)
        ]


async def test_a_device_that_was_away_gets_the_events_it_missed_in_order(
    fake: FakeServer, device: Devices
) -> None:
    fake.store(TALK, "before")
    async with device(stored=True):
        pass
    missed = [fake.store(TALK, f"b{number}") for number in range(250)]
    missed += [fake.store(f"d:alice:user{number}", "hi", f"user{number}@phone") for number in range(150)]
    async with device(stored=True) as alice:
        seen = await take(alice.events("reader"), 400)
        assert sorted(seen, key=lambda event: event.id) == missed
        assert [item for item in seen if item.conversation == TALK] == missed[:250]
        assert len(await alice.conversations()) == 151


async def test_many_conversations_are_read_from_several_pages_of_heads(
    fake: FakeServer, device: Devices
) -> None:
    fake.heads_size = 10
    for number in range(45):
        fake.store(f"d:alice:user{number}", "hi", f"user{number}@phone")
    async with device(stored=True) as alice:
        assert len(await alice.conversations()) == 45
    fake.store("d:alice:user3", "again", "user3@phone")
    before = len(fake.commands(Sync))
    async with device(stored=True) as alice:
        assert (await alice.conversations())[0].head.seq == 2
    assert len(fake.commands(Sync)) - before <= 5


async def test_an_event_during_the_first_sync_is_new_and_earlier_ones_are_history(
    fake: FakeServer, device: Devices
) -> None:
    fake.heads_size = 1
    fake.store("d:alice:carol", "old", "carol@phone")
    old = fake.store(TALK, "old")
    held: list[Page] = []

    def lose(_: object, frame: object) -> bool:
        if isinstance(frame, Page) and len(held) < 1:
            held.append(frame)
            return True
        return False

    fake.lose = lose
    async with device(wait=0, timing=QUICK) as alice:
        events = alice.events("reader")
        await eventually(lambda: held)
        live = fake.store(TALK, "live")
        await fake.send("alice@phone", live)
        assert await take(events, 1) == [live]
        await alice.caught_up()
        assert await all_history(alice) == [old, live]


async def test_a_lost_last_message_is_found_by_the_next_sync(fake: FakeServer, device: Devices) -> None:
    async with device(timing=dataclasses.replace(PATIENT, sync=0.3)) as alice:
        events = alice.events()
        lost = fake.store(TALK, "lost")
        assert await take(events, 1) == [lost]


async def test_a_hole_is_requested_once_though_many_events_follow_it(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        events = alice.events()
        stored = [fake.store(TALK, str(number)) for number in range(30)]
        asked = len(fake.commands(Sync))
        for event in stored[1:]:
            await fake.send("alice@phone", event)
        assert await take(events, 30) == stored
        assert len(fake.commands(Sync)) - asked <= 2


async def test_repeated_events_cause_no_sync(fake: FakeServer, device: Devices) -> None:
    async with device(start="beginning") as alice:
        stored = [fake.live(fake.store(TALK, str(number))) for number in range(3)]
        await fake.send("alice@phone", *stored)
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        asked = len(fake.commands(Sync))
        await fake.send("alice@phone", *stored)
        for text in ("the answer comes behind them", "and this is published behind any question"):
            await alice.send(TALK, text)
        assert len(fake.commands(Sync)) == asked


async def test_a_new_log_is_noticed_though_the_device_holds_no_events_at_its_seqs(
    fake: FakeServer, device: Devices
) -> None:
    """The device began after these events, and the new log's ids are lower, since a clock was ahead."""
    for number in range(5):
        fake.store(TALK, str(number))
    fake.store("d:alice:carol", "newer", "carol@phone")  # so only the head of the other is sent unasked
    async with device() as alice:
        fake.restore(TALK, 0, clock_was_ahead=True)
        await fake.send("alice@phone", fake.live(fake.store(TALK, "new")))
        await eventually(lambda: has_log(alice, fake.logs[TALK]))


async def test_a_server_that_keeps_a_hole_open_is_not_asked_in_a_loop(
    fake: FakeServer, device: Devices
) -> None:
    async with device(timing=QUICK) as alice:
        fake.store(TALK, "never given out")
        event = fake.store(TALK, "hi")
        fake.lose = lambda _, frame: isinstance(frame, Page) and bool(frame.slices)
        asked = len(fake.commands(Sync))
        began = asyncio.get_running_loop().time()
        await fake.send("alice@phone", event)
        await eventually(lambda: len(fake.commands(Sync)) >= asked + 3)
        # A busy loop would have asked that often within milliseconds.
        assert asyncio.get_running_loop().time() - began > QUICK.answer + 2 * QUICK.answer
        fake.lose = lambda _, __: False
        await eventually(lambda: has_log(alice, fake.logs[TALK]))


async def has_log(client: object, log: list[Event]) -> bool:
    return await all_history(client) == log


@pytest.mark.parametrize("after", [0, 3, 10])
async def test_a_restored_store_is_noticed_and_the_conversation_restarted(
    fake: FakeServer, device: Devices, after: int
) -> None:
    """`after`: how many messages are stored after the restore before the device reconnects."""
    for number in range(5):
        fake.store(TALK, str(number))
    async with device(stored=True) as alice:
        await alice.mark_read(TALK)
    fake.restore(TALK, 2)
    new = [fake.store(TALK, f"new {number}") for number in range(after)]
    async with device(stored=True, wait=0) as alice:
        notices = alice.notices()
        assert await asyncio.wait_for(anext(notices), WITHIN) == Restarted(TALK, 1)
        if after == 0:
            new = [fake.store(TALK, "new 0")]
            await fake.send("alice@phone", *new)
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        assert await take(alice.events("reader"), len(new)) == new


@pytest.mark.parametrize("answered", ["before the restore", "after it"])
async def test_a_restore_is_noticed_though_the_answer_is_overtaken_by_another_event_of_the_new_log(
    fake: FakeServer, device: Devices, answered: str
) -> None:
    """The answer to an earlier request lacks the event, and the next sync is far away."""
    async with device(start="beginning") as alice:
        for number in range(5):
            await fake.send("alice@phone", fake.live(fake.store(TALK, f"lost {number}")))
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        pages: list[Page] = []
        fake.lose = lambda _, frame: isinstance(frame, Page) and pages.append(frame) is None
        if answered == "before the restore":
            odd = fake.logs[TALK][2]
            await fake.send("alice@phone", replace(odd, id=Id(odd.id + (1 << 60))))
            await eventually(lambda: pages)
            fake.restore(TALK, 0)
        else:
            fake.restore(TALK, 0)
            await fake.send("alice@phone", fake.store(TALK, "new 1"))
            await eventually(lambda: pages)
        fake.lose = lambda _device, _frame: False
        await fake.send("alice@phone", fake.store(TALK, "new 2"), pages[0])
        await eventually(lambda: has_log(alice, fake.logs[TALK]))


async def test_a_store_that_lost_everything_is_noticed(fake: FakeServer, device: Devices) -> None:
    for number in range(5):
        fake.store(TALK, str(number))
    async with device(stored=True) as alice:
        assert len(await all_history(alice)) == 5
    fake.logs.clear()
    async with device(stored=True) as alice:
        assert await all_history(alice) == []
        accepted = await alice.send(TALK, "first")
        assert accepted.seq == 1
        assert texts(await all_history(alice)) == ["first"]


async def test_an_answer_that_comes_twice_and_late_does_no_harm(fake: FakeServer, device: Devices) -> None:
    async with device(stored=True) as alice:
        for number in range(3):
            await alice.send(TALK, str(number))
    fake.restore(TALK, 1)
    fake.store(TALK, "other")
    pages: list[Page] = []
    fake.lose = lambda _, frame: isinstance(frame, Page) and pages.append(frame) is not None
    async with device(stored=True) as alice:
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        events = alice.events()
        late, fake.lose = pages[:], lambda _device, _frame: False
        for page in late:
            await fake.send("alice@phone", page, page)
        last = await alice.send(TALK, "last")
        assert await take(events, 1) == [fake.logs[TALK][-1]]
        assert last.seq == 3
        assert await all_history(alice) == fake.logs[TALK]


async def test_history_comes_from_the_server_once_and_then_from_the_device(
    fake: FakeServer, device: Devices
) -> None:
    fake.page_size = 30
    stored = [fake.store(TALK, str(number)) for number in range(250)]
    newer = fake.store("d:alice:carol", "hi", "carol@phone")
    assert newer.seq == 1
    async with device(stored=True) as alice:
        assert await alice.history(TALK, before=201, limit=5) == stored[195:200]
        assert await alice.history(TALK, limit=50) == stored[200:]
        assert await all_history(alice) == stored
        asked = len(fake.commands(History))
        assert await all_history(alice) == stored
        assert await alice.history(TALK, before=100, limit=50) == stored[49:99]
        assert await alice.history(TALK, before=1) == []
        assert len(fake.commands(History)) == asked
    async with device(stored=True, brokers="127.0.0.1:1", wait=0) as offline:
        assert await all_history(offline) == stored


async def test_history_returns_the_stored_events_if_the_connection_ends_while_the_server_is_asked(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object, **__: object) -> None:
        raise Lost("the connection has ended")

    stored = [fake.store(TALK, str(number)) for number in range(20)]
    fake.store("u:alice", "newest, so that a new device has one event of the other")
    async with device() as alice:
        await alice.caught_up()
        monkeypatch.setattr(Uplink, "publish", lose)
        assert await all_history(alice) == stored[-1:]
        with pytest.raises(NotConnected, match="lacks d:alice:bob before seq 20"):
            await alice.history(TALK, before=20)


async def test_keep_bounds_the_stored_log_except_for_events_that_a_consumer_has_not_read(
    fake: FakeServer, device: Devices
) -> None:
    async with device(keep=20, stored=True) as alice:
        waiting = asyncio.create_task(anext(alice.events("slow")))
        await asyncio.sleep(0)  # its read is submitted, so the store will know the consumer
        waiting.cancel()
        stored = [fake.store(TALK, str(number)) for number in range(200)]
        for start in range(0, 200, 10):
            await fake.send("alice@phone", *stored[start : start + 10])
        assert await take(alice.events("slow"), 200) == stored
        asked = len(fake.commands(History))
        assert await alice.history(TALK, limit=20) == stored[180:]
        assert len(fake.commands(History)) == asked
        assert await alice.history(TALK, limit=60) == stored[140:]


async def test_delivered_marks_are_sent_automatically_and_coalesced(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        stored = [fake.store(TALK, str(number)) for number in range(20)]
        await fake.send("alice@phone", *stored)
        await eventually(lambda: fake.marks.get((TALK, "alice")) == Marks(TALK, "alice", 20, 0))
        assert len(fake.commands(Mark)) == 1
        await alice.mark_read(TALK, 12)
        await alice.mark_read(TALK, 7)
        await eventually(lambda: fake.marks[TALK, "alice"].read == 12)
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert (summary.unread, summary.read, summary.delivered) == (8, 12, 20)
        await alice.send(TALK, "mine")
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert summary.unread == 8  # the user's own messages count as read


async def test_a_new_device_counts_its_users_own_messages_as_read(fake: FakeServer, device: Devices) -> None:
    for number in range(30):
        fake.store("u:alice", f"note {number}", "alice@laptop")
        fake.store(TALK, f"mine {number}", "alice@laptop")
    fake.store(TALK, "theirs", "bob@phone")
    async with device() as alice:
        notes, talk = await alice.conversation("alice"), await alice.conversation("bob")
        assert notes is not None
        assert talk is not None
        assert (notes.unread, notes.unread_at_most) == (0, 0)
        assert (talk.unread, await alice.unread("bob")) == (1, 1)


@pytest.mark.parametrize("keep", [None, 10])
async def test_unread_is_exact_once_the_server_was_asked(
    fake: FakeServer, device: Devices, keep: int | None
) -> None:
    for number in range(250):
        fake.store(TALK, str(number), "alice@laptop" if number % 3 else "bob@phone")
    fake.store("d:alice:carol", "newer", "carol@phone")  # so that only the head of the other one is sent
    fake.marks[TALK, "alice"] = Marks(TALK, "alice", 20, 20)
    async with device(keep=keep) as alice:
        summary = await alice.conversation(TALK)
        assert summary is not None
        assert (summary.unread, summary.unread_at_most) == (1, 230)
        assert await alice.unread(TALK) == len(range(21, 250, 3))
        await fake.disconnect()
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


async def test_marks_that_rise_while_earlier_ones_await_their_puback_are_sent_too(
    fake: FakeServer, device: Devices, confirm: asyncio.Event
) -> None:
    async with device() as alice:
        await fake.send("alice@phone", fake.store(TALK, "first"))
        await eventually(lambda: fake.commands(Mark))
        await fake.send("alice@phone", fake.store(TALK, "second"))
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        confirm.set()
        await eventually(lambda: fake.marks[TALK, "alice"] == Marks(TALK, "alice", 2, 0))


async def test_marks_of_a_replaced_log_do_not_count_as_those_of_the_new_one(
    fake: FakeServer, device: Devices, confirm: asyncio.Event
) -> None:
    async with device() as alice:
        await fake.send("alice@phone", *[fake.store(TALK, f"old {number}") for number in range(5)])
        await eventually(lambda: Mark(TALK, 5, 0) in fake.commands(Mark))
        fake.restore(TALK, 0)
        await fake.send("alice@phone", fake.store(TALK, "new"))
        await eventually(lambda: has_log(alice, fake.logs[TALK]))
        confirm.set()
        await eventually(lambda: fake.commands(Mark)[-1] == Mark(TALK, 1, 0))


async def test_marks_that_the_server_has_lost_are_sent_again(fake: FakeServer, device: Devices) -> None:
    async with device(stored=True) as alice:
        await fake.send("alice@phone", *[fake.store(TALK, str(number)) for number in range(5)])
        await eventually(lambda: fake.marks.get((TALK, "alice")))
        await alice.mark_read(TALK)
        await eventually(lambda: fake.marks[TALK, "alice"].read == 5)
    fake.marks.clear()
    async with device(stored=True):
        await eventually(lambda: fake.marks.get((TALK, "alice")) == Marks(TALK, "alice", 5, 5))


async def test_a_peers_marks_are_reported(fake: FakeServer, device: Devices) -> None:
    async with device("alice@phone") as alice, device("bob@phone") as bob:
        notices = alice.notices()
        await alice.send(TALK, "hi")
        await eventually(lambda: bob_has(bob, 1))
        await bob.mark_read(TALK)
        await eventually(lambda: marks_are(alice, 1, 1))
        notice = await asyncio.wait_for(anext(notices), WITHIN)
        assert (notice.conversation, notice.user, notice.delivered) == (TALK, "bob", 1)


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
async def test_an_answer_that_is_arriving_is_not_requested_again(
    fake: FakeServer, device: Devices, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[AnyCommand] = []
    confirmed = asyncio.Event()  # PUBACKed by the broker: from then on the device waits for the answer
    publish = Uplink.publish

    async def publish_and_count(uplink: Uplink, command: AnyCommand, **given: bool) -> None:
        asked.append(command)
        await publish(uplink, command, **given)
        confirmed.set()

    broker, timing = fake.broker, dataclasses.replace(PATIENT, answer=0.5, patience=0.5)
    old = fake.store("d:alice:carol", "old")
    async with (
        Proxy(broker.websocket_port if scheme == "ws" else broker.port) as proxy,
        device(brokers=f"{scheme}://127.0.0.1:{proxy.port}", timing=timing) as alice,
    ):
        events = alice.events()
        monkeypatch.setattr(Uplink, "publish", publish_and_count)
        fake.silent = True
        asking = asyncio.create_task(alice._parts.requests.ask(History("d:alice:carol", 2)))
        await asyncio.wait_for(confirmed.wait(), WITHIN)
        proxy.slow(0.0, 20_000)
        sent = [fake.store(TALK, f"{number} " + "x" * 1_000) for number in range(100)]
        await fake.send("alice@phone", *sent)  # the answer may be behind these
        await eventually(lambda: alice._parts.uplink.is_receiving)
        before = len(asked)
        await asyncio.sleep(2 * timing.answer)
        assert len(asked) == before
        proxy.repair()
        await fake.resume()
        assert (await asking).slices[0].events == (old,)
        assert await take(events, 100) == sent


async def test_an_answer_that_is_lost_is_requested_again(fake: FakeServer, device: Devices) -> None:
    lost: list[Page] = []

    def lose(_: object, frame: AnyFrame) -> bool:
        if isinstance(frame, Page) and len(lost) < 2:
            lost.append(frame)
            return True
        return False

    fake.lose = lose
    fake.store(TALK, "b")
    async with device(start="beginning", timing=QUICK) as alice:
        assert texts(await take(alice.events("archive"), 1)) == ["b"]
    assert len(lost) == 2
