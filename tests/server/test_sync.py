import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from imqtt.model import (
    Accepted,
    Content,
    Cursor,
    Hello,
    History,
    Id,
    Page,
    Rejected,
    Send,
    Slice,
    Sync,
    Welcome,
)
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import Format, encode_frame
from imqtt.server.app import Server
from imqtt.server.pages import PAGE_BYTES
from imqtt.serving import serving
from imqtt.stores.base import Record
from imqtt.stores.sqlite.store import SqliteStore
from tests.device import RawDevice
from tests.server.conftest import config_for

Make = Callable[..., Awaitable[RawDevice]]


async def fill(sender: RawDevice, conversation: str, count: int, text: str = "hi") -> list[Accepted]:
    answers: list[Accepted] = []
    for number in range(count):
        await sender.command(Send(conversation, f"f{number}", Content(text=text)))
    for number in range(count):
        answer = await sender.answer(f"f{number}", since=0)
        assert isinstance(answer, Accepted)
        answers.append(answer)
    return answers


async def page_of(device: RawDevice, command: Sync | History) -> Page:
    start = len(device.frames)
    await device.command(command)
    return await device.frame(Page, since=start)


async def sync_all(device: RawDevice, cursor: Cursor) -> list[Slice]:
    """Asks until there is no more."""
    slices: list[Slice] = []
    while True:
        page = await page_of(device, Sync((cursor,)))
        slices += page.slices
        if page.slices:
            last = page.slices[-1].events[-1]
            cursor = Cursor(cursor.conversation, last.seq, last.id)
        if not page.more:
            return slices


async def test_welcome_contains_limits_and_partitions(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    welcome, page = await alice.hello(nonce="abc", ref="r1")
    assert (welcome.nonce, welcome.ref, page.ref) == ("abc", "r1", "r1")
    assert (welcome.user, welcome.device, welcome.partitions) == ("alice", "phone", 16)
    assert welcome.limits.content == 65_536
    assert welcome.limits.page == 100
    assert page == Page("r1")


async def test_a_new_device_gets_heads_and_the_latest_events_of_the_newest_conversation(
    running: Server, device: Make
) -> None:
    alice = await device("alice@phone")
    await fill(alice, "d:alice:bob", 3)
    newest = await fill(alice, "u:alice", 120)
    tablet = await device("alice@tablet")
    _, page = await tablet.hello()
    assert [(head.conversation, head.seq) for head in page.heads] == [("u:alice", 120), ("d:alice:bob", 3)]
    assert all(head.latest is not None and head.latest.seq == head.seq for head in page.heads)
    (part,) = page.slices
    assert (part.conversation, part.missing) == ("u:alice", "")
    assert part.events[-1].id == newest[-1].id
    assert [event.seq for event in part.events] == list(range(21, 121))  # the heads' events do not count


async def test_a_device_that_was_away_gets_the_events_it_missed_in_pages_of_100(
    running: Server, device: Make
) -> None:
    alice = await device("alice@phone")
    answers = await fill(alice, "d:alice:bob", 250)
    bob = await device("bob@laptop")
    at = Cursor("d:alice:bob", 10, answers[9].id)
    _, page = await bob.hello(at)
    assert page.more
    assert [event.seq for event in page.slices[0].events] == list(range(11, 111))
    slices = await sync_all(bob, at)
    assert [len(part.events) for part in slices] == [100, 100, 40]
    assert [event.seq for part in slices for event in part.events] == list(range(11, 251))
    assert [part.more for part in slices] == [True, True, False]


async def test_a_cursor_at_the_head_gets_nothing(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    answers = await fill(alice, "u:alice", 3)
    page = await page_of(alice, Sync((Cursor("u:alice", 3, answers[2].id),), ref="x"))
    assert page == Page("x")


async def test_a_cursor_of_another_log_restarts_the_conversation(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    answers = await fill(alice, "u:alice", 5)
    wrong_id = Cursor("u:alice", 3, Id(answers[2].id + 1))
    past_the_end = Cursor("u:alice", 9, Id(answers[4].id + 1))
    empty_here = Cursor("d:alice:bob", 2, Id(5))
    for cursor in (wrong_id, past_the_end):
        (part,) = (await page_of(alice, Sync((cursor,)))).slices
        assert part.restart
        assert [event.seq for event in part.events] == [1, 2, 3, 4, 5]
    (part,) = (await page_of(alice, Sync((empty_here,)))).slices
    assert part.restart
    assert part.events == ()


async def test_a_cursor_without_an_id_is_not_checked(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await fill(alice, "u:alice", 5)
    (part,) = (await page_of(alice, Sync((Cursor("u:alice", 3),)))).slices
    assert [event.seq for event in part.events] == [4, 5]
    assert not part.restart


async def test_cursors_of_conversations_that_the_user_is_not_in_are_skipped(
    running: Server, device: Make
) -> None:
    alice, eve = await device("alice@phone"), await device("eve@phone")
    await fill(alice, "d:alice:bob", 2)
    page = await page_of(
        eve, Sync((Cursor("d:alice:bob"), Cursor("nonsense"), Cursor("g:group")), heads=True)
    )
    assert page == Page()


async def test_history_goes_backwards_to_the_start(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await fill(alice, "u:alice", 130)
    (newest,) = (await page_of(alice, History("u:alice"))).slices
    assert newest.history
    assert [event.seq for event in newest.events] == list(range(31, 131))
    assert (newest.more, newest.missing) == (True, "")
    (oldest,) = (await page_of(alice, History("u:alice", before=31, limit=500))).slices
    assert [event.seq for event in oldest.events] == list(range(1, 31))
    assert (oldest.more, oldest.missing) == (False, "start")
    (few,) = (await page_of(alice, History("u:alice", before=31, limit=2))).slices
    assert [event.seq for event in few.events] == [29, 30]


async def test_history_is_rejected_for_a_user_who_is_not_a_member(running: Server, device: Make) -> None:
    eve = await device("eve@phone")
    await eve.command(History("d:alice:bob", ref="r9"))
    rejected = await eve.frame(Rejected)
    assert (rejected.code, rejected.command, rejected.ref) == ("not_allowed", "history", "r9")


async def test_heads_come_in_pages_newest_first(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    for number in range(130):
        await alice.command(Send(f"d:alice:u{number:03}", "m", Content(text="hi")))
    for _ in range(130):
        await alice.frame(Accepted)
    await alice.until(lambda frame: isinstance(frame, Accepted) and frame.conversation == "d:alice:u129")
    tablet = await device("alice@tablet")
    _, page = await tablet.hello(Cursor("u:alice"))
    heads = list(page.heads)
    while page.more_heads:
        page = await page_of(tablet, Sync(heads=True, heads_before=page.more_heads))
        heads += page.heads
    assert len(heads) == 130
    assert [head.id for head in heads] == sorted((head.id for head in heads), reverse=True)


async def test_a_page_fits_the_packets_of_its_device(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await fill(alice, "d:alice:bob", 30, text="x" * 500)
    await alice.send("d:alice:bob", "big", "y" * 5_000)
    small = await device("bob@sensor", format=Format.JSON)
    await small.hello(Cursor("d:alice:bob"), max_packet=2_048)
    slices = await sync_all(small, Cursor("d:alice:bob"))
    events = [event for part in slices for event in part.events]
    assert [event.seq for event in events] == list(range(1, 32))
    assert all(event.content.text == "x" * 500 for event in events[:30])
    assert events[30].content == Content()
    assert events[30].withheld > 5_000
    for frame in small.frames:
        assert len(encode_frame(frame, Format.JSON)) < 2_048


async def test_a_page_is_small_enough_for_a_slow_link(running: Server, device: Make) -> None:
    alice, tablet = await device("alice@phone"), await device("alice@tablet", format=Format.JSON)
    await fill(alice, "d:alice:bob", 20, text="x" * 10_000)
    await fill(alice, "u:alice", 2, text="y" * 65_536)
    await tablet.hello(Cursor("d:alice:bob"), Cursor("u:alice"))
    slices = await sync_all(tablet, Cursor("d:alice:bob"))
    assert [event.seq for part in slices for event in part.events] == list(range(1, 21))
    assert [len(part.events) for part in slices] == [6, 6, 6, 2]
    # A larger event has a page of its own, whole.
    slices = await sync_all(tablet, Cursor("u:alice"))
    assert [event.content.text for part in slices for event in part.events] == ["y" * 65_536] * 2
    pages = [frame for frame in tablet.frames if isinstance(frame, Page)]
    assert all(
        len(encode_frame(page, Format.JSON)) <= PAGE_BYTES
        or [len(part.events) for part in page.slices] == [1]
        for page in pages
    )


async def test_a_page_full_of_heads_still_moves_a_cursor(running: Server, device: Make) -> None:
    alice, tablet = await device("alice@phone"), await device("alice@tablet", format=Format.JSON)
    for number in range(100):
        await alice.command(Send(f"d:alice:u{number:03}", "m", Content(text="x" * 3_000)))
    await alice.until(lambda frame: isinstance(frame, Accepted) and frame.conversation == "d:alice:u099")
    await fill(alice, "u:alice", 3, text="y" * 40_000)
    cursor = Cursor("u:alice")
    for seq in (1, 2, 3):
        page = await page_of(tablet, Sync((cursor,), heads=True))
        assert 10 < len(page.heads) < 20
        assert page.more_heads
        ((event,),) = (part.events for part in page.slices)
        assert event.seq == seq
        assert page.more == (seq < 3)
        cursor = Cursor("u:alice", event.seq, event.id)


@pytest.mark.parametrize(("max_packet", "text"), [(2_048, 200), (4_096, 1_100), (65_536, 60_000)])
async def test_a_small_packet_full_of_heads_still_moves_a_cursor(
    running: Server, device: Make, max_packet: int, text: int
) -> None:
    alice = await device("alice@phone")
    names = [f"d:alice:u{number:03}" for number in range(60)]
    for name in names:
        await alice.command(Send(name, "m", Content(text="hi")))
    await fill(alice, "u:alice", 3, text="y" * text)
    tablet = await device("alice@tablet")
    _, page = await tablet.hello(Cursor("u:alice"), max_packet=max_packet)
    assert page.more
    cursor, listed = Cursor("u:alice"), set()
    for _ in range(3):
        page = await page_of(tablet, Sync((cursor,), heads=True))
        assert len(encode_frame(page, Format.JSON)) < max_packet
        listed.update(head.conversation for head in page.heads)
        last = page.slices[-1].events[-1]
        assert last.seq > cursor.seq
        cursor = Cursor("u:alice", last.seq, last.id)
        if not page.more:
            break
    assert cursor.seq == 3
    while page.more_heads:
        page = await page_of(tablet, Sync((cursor,), heads=True, heads_before=page.more_heads))
        listed.update(head.conversation for head in page.heads)
    assert listed == {*names, "u:alice"}


async def test_a_hello_at_partition_0_is_forwarded(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await alice.command(Hello("n7"), to=0)
    assert (await alice.frame(Welcome)).nonce == "n7"


async def test_a_new_device_of_a_user_with_many_conversations_gets_the_events_of_the_newest_one_too(
    running: Server, device: Make
) -> None:
    alice = await device("alice@phone")
    for number in range(120):
        await alice.command(Send(f"d:alice:u{number:03}", "m", Content(text="hi")))
    await alice.until(lambda frame: isinstance(frame, Accepted) and frame.conversation == "d:alice:u119")
    await fill(alice, "u:alice", 5)
    tablet = await device("alice@tablet")
    _, page = await tablet.hello()
    assert len(page.heads) == 100
    (part,) = page.slices
    assert (part.conversation, part.missing) == ("u:alice", "start")
    assert [event.seq for event in part.events] == [1, 2, 3, 4, 5]


async def test_many_conversations_restart_in_small_packets(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    names = [f"d:alice:u{number:03}" for number in range(60)]
    for name in names:
        await alice.command(Send(name, "m", Content(text="x" * 300)))
    await alice.until(lambda frame: isinstance(frame, Accepted) and frame.conversation == names[-1])
    tablet = await device("alice@tablet")
    cursors = {name: Cursor(name, 1, Id(1)) for name in names}  # ids of another store
    await tablet.hello(*cursors.values(), max_packet=4_096)
    restarted: list[str] = []
    for _ in range(100):
        page = await page_of(tablet, Sync(tuple(cursors.values())))
        for part in page.slices:
            assert part.restart
            assert len(part.events) == 1
            restarted.append(part.conversation)
            cursors[part.conversation] = Cursor(part.conversation, 1, part.events[0].id)
        assert len(encode_frame(page, Format.JSON)) < 4_096
        if not page.more:
            break
    assert sorted(restarted) == names


async def test_more_reads_than_may_wait_are_answered_while_a_batch_waits_for_the_store(
    broker: Mosquitto, tmp_path: Path, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, go = SqliteStore.append, asyncio.Event()

    async def stalled(store: SqliteStore, records: Sequence[Record]) -> None:
        await go.wait()
        await append(store, records)

    async with serving(config_for(broker, tmp_path, reads_waiting=1, reads_at_once=1)):
        alice = await device("alice@phone")
        await alice.hello()
        monkeypatch.setattr(SqliteStore, "append", stalled)
        await alice.command(Send("u:alice", "m", Content(text="hi")))
        for ref in ("1", "2", "3"):
            await alice.command(Sync(ref=ref))
        for ref in ("1", "2", "3"):
            await alice.until(lambda frame, ref=ref: isinstance(frame, Page) and frame.ref == ref)
        go.set()
        assert (await alice.answer("m")).client_msg_id == "m"
