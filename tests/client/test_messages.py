"""Sending and receiving, with a server under the test's control."""

import asyncio

import pytest

from imqtt.client import Client, Format
from imqtt.errors import Conflict, Invalid, NotAllowed
from imqtt.model import Accepted, Event, Rejected, Send
from tests.client.conftest import QUICK, Devices
from tests.client.fake_server import FakeServer
from tests.services import WITHIN, eventually

TALK = "d:alice:bob"


async def take(events: object, count: int, within: float = WITHIN) -> list[Event]:
    """The next events of an iterator."""
    taken: list[Event] = []
    async with asyncio.timeout(within):
        async for event in events:  # type: ignore[attr-defined]
            taken.append(event)
            if len(taken) == count:
                break
    return taken


def texts(events: list[Event]) -> list[str | None]:
    return [event.content.text for event in events]


@pytest.mark.parametrize("format", list(Format))
async def test_a_sent_message_is_stored_and_is_in_the_senders_own_log(
    fake: FakeServer, device: Devices, format: Format
) -> None:
    async with device(format=format) as alice:
        events = alice.events()
        accepted = await alice.send(TALK, "hi")
        assert (accepted.seq, accepted.id) == (1, fake.logs[TALK][0].id)
        assert await take(events, 1) == fake.logs[TALK]
        assert await alice.outbox() == []


async def test_both_sides_see_one_order(fake: FakeServer, device: Devices) -> None:
    async with device("alice@phone") as alice, device("bob@phone") as bob:
        alices, bobs = alice.events(), bob.events()
        await asyncio.gather(
            *(alice.send(TALK, f"a{number}") for number in range(20)),
            *(bob.send(TALK, f"b{number}") for number in range(20)),
        )
        seen = await take(alices, 40)
        assert seen == await take(bobs, 40) == fake.logs[TALK]
        assert [text for text in texts(seen) if text and text[0] == "a"] == [
            f"a{number}" for number in range(20)
        ]


async def test_a_message_without_an_answer_is_sent_again_with_the_same_client_msg_id(
    fake: FakeServer, device: Devices
) -> None:
    lost: list[Accepted] = []

    def lose(_: object, frame: object) -> bool:
        if isinstance(frame, Accepted) and len(lost) < 2:
            lost.append(frame)
            return True
        return False

    fake.lose = lose
    async with device(timing=QUICK) as alice:
        accepted = await alice.send(TALK, "hi")
        assert accepted == lost[0] == lost[1]
        assert len({send.client_msg_id for send in fake.commands(Send)}) == 1  # type: ignore[union-attr]
        assert len(fake.logs[TALK]) == 1


async def test_a_retryable_rejection_does_not_change_the_senders_order(
    fake: FakeServer, device: Devices
) -> None:
    busy = [3]

    def refuse(command: object) -> Rejected | None:
        if isinstance(command, Send) and command.content.text == "0" and busy[0]:
            busy[0] -= 1
            return Rejected(
                "busy", "later", True, "send", command.conversation, command.client_msg_id, retry_after=20
            )
        return None

    fake.refuse = refuse
    async with device() as alice:
        await asyncio.gather(*(alice.send(TALK, str(number)) for number in range(5)))
        assert texts(fake.logs[TALK]) == ["0", "1", "2", "3", "4"]


async def test_a_rejection_is_raised_and_removes_the_message_from_the_outbox(
    fake: FakeServer, device: Devices
) -> None:
    fake.refuse = lambda command: (
        Rejected("not_allowed", "not yours", False, "send", command.conversation, command.client_msg_id)
        if isinstance(command, Send)
        else None
    )
    async with device() as alice:
        with pytest.raises(NotAllowed, match="not yours"):
            await alice.send("d:bob:carol", "hi")
        assert await alice.outbox() == []


async def test_a_rejected_post_stays_in_the_outbox_and_a_notice_reports_it(
    fake: FakeServer, device: Devices
) -> None:
    fake.refuse = lambda command: (
        Rejected("code_of_tomorrow", "no", False, "send", command.conversation, command.client_msg_id)
        if isinstance(command, Send)
        else None
    )
    async with device(stored=True) as alice:
        notices = alice.notices()
        name = await alice.post(TALK, "hi")
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert refused.entry.client_msg_id == name
        assert refused.error.code == "code_of_tomorrow"
    async with device(stored=True) as alice:
        assert [entry.refused for entry in await alice.outbox()] == ["code_of_tomorrow"]
        assert await alice.discard(TALK, name)
        assert await alice.outbox() == []


async def test_one_client_msg_id_is_one_message(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        first, second = await asyncio.gather(
            alice.send(TALK, "hi", client_msg_id="m1"), alice.send(TALK, "hi", client_msg_id="m1")
        )
        assert first == second
        assert await alice.send(TALK, "hi", client_msg_id="m1") == first
        fake.silent = True
        await alice.post(TALK, "hello", client_msg_id="m2")
        with pytest.raises(Conflict):
            await alice.post(TALK, "other", client_msg_id="m2")


async def test_a_timeout_of_send_does_not_withdraw_the_message(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        fake.silent = True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.send(TALK, "hi"), 0.1)
        assert len(await alice.outbox()) == 1
        await eventually(lambda: fake.commands(Send))
        await fake.resume()
        await eventually(lambda: fake.logs[TALK])


async def test_events_that_arrive_in_any_order_and_twice_are_returned_once_and_in_order(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        events = alice.events()
        stored = [fake.store(TALK, str(number)) for number in range(10)]
        for place in (2, 0, 0, 4, 3, 2, 1, 9, 8, 5, 1, 7):
            await fake.send("alice@phone", stored[place])
        assert await take(events, 10) == stored  # the seventh was lost, and requested


async def test_a_slow_reader_blocks_nothing(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        slow, quick = alice.events(), alice.events()
        stored = [fake.store(TALK, str(number)) for number in range(300)]
        await fake.send("alice@phone", *stored)
        assert await take(quick, 300) == stored
        assert await take(slow, 1) == stored[:1]
        await alice.send(TALK, "still here")
        assert texts(await take(slow, 300))[-1] == "still here"


async def test_a_consumer_resumes_after_its_last_processed_event(fake: FakeServer, device: Devices) -> None:
    async with device(stored=True) as alice:
        stored = [fake.store(TALK, str(number)) for number in range(5)]
        await fake.send("alice@phone", *stored)
        assert await take(alice.events("bot"), 3) == stored[:3]  # the third is returned but not processed
    async with device(stored=True) as alice:
        events = alice.events("bot")
        assert await take(events, 2) == stored[2:4]
        await events.finish()
    async with device(stored=True) as alice:
        assert await take(alice.events("bot"), 1) == stored[4:]


async def test_packets_that_are_not_frames_do_no_harm(fake: FakeServer, device: Devices) -> None:
    async with device(format=Format.JSON) as alice:
        events = alice.events()
        for rubbish in (b"", b"\xff\xff", b"{", b'{"frames":[{"type":"of_tomorrow"}]}', b'{"frames":{}}'):
            await fake.raw("alice@phone", rubbish)
        event = fake.store(TALK, "hi")
        await fake.send("alice@phone", event)
        assert await take(events, 1) == [event]
        assert alice.counts["malformed"] >= 2


async def test_invalid_content_is_refused_at_once(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        for content in ("", b"bytes without a type", "x" * 70_000):
            with pytest.raises(Exception, match="content") as caught:
                await alice.send(TALK, content)
            assert caught.value.code in ("invalid", "too_large")  # type: ignore[attr-defined]
        assert await alice.outbox() == []
        accepted = await alice.send(TALK, {"lat": 1.5})
        assert fake.logs[TALK][accepted.seq - 1].content.json == '{"lat":1.5}'


async def test_direct_returns_the_id_of_the_conversation_with_a_user(device: Devices) -> None:
    alice: Client = device()
    assert (alice.direct("bob"), alice.direct("Zoe")) == ("d:alice:bob", "d:Zoe:alice")
    assert alice.direct("alice") == "u:alice"


async def test_a_users_name_stands_for_the_conversation_with_that_user(
    fake: FakeServer, device: Devices
) -> None:
    async with device("alice@phone") as alice, device("bob@phone") as bob:
        events = alice.events(conversation="bob")
        accepted = await alice.send("bob", "hi")
        assert (accepted.conversation, accepted.seq) == (TALK, 1)
        name = await alice.post("bob", "more")
        assert texts(await take(events, 2)) == ["hi", "more"]
        assert await alice.discard("bob", name) is False  # it is stored already
        assert texts(await bob.history("alice")) == ["hi", "more"]
        await bob.mark_read("alice", 1)
        await bob.typing("alice")
        await eventually(lambda: alice.marks("bob"))
        for client, other in ((alice, "bob"), (bob, "alice")):
            summary = await client.conversation(other)
            assert summary is not None
            assert summary.conversation == TALK
        assert (await bob.marks("alice"))["bob"].read == 1
        assert await bob.unread("alice") == 1
        assert (await alice.send("alice", "note")).conversation == "u:alice"


@pytest.mark.parametrize("name", ["", "b ob", "bob@phone", "böb"])
async def test_a_text_that_is_neither_a_user_nor_a_conversation_is_refused(
    device: Devices, name: str
) -> None:
    async with device(brokers="127.0.0.1:1") as alice:
        for use in (
            alice.send(name, "hi"),
            alice.post(name, "hi"),
            alice.history(name),
            alice.mark_read(name),
        ):
            with pytest.raises(Invalid, match="neither a user nor a conversation"):
                await use
