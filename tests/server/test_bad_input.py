"""Senders get an error that says what to do; other devices are unaffected."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from imqtt.model import Accepted, Content, Cursor, Event, Hello, History, Mark, Page, Rejected, Send
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server.app import Server, wall_clock
from imqtt.serving import serving
from tests.device import RawDevice
from tests.server.conftest import config_for
from tests.services import eventually

Make = Callable[..., Awaitable[RawDevice]]
PARTITION = 12  # of d:alice:bob

BAD = {
    "rubbish": (b"\xff\x00\x80rubbish", "malformed"),
    "nothing": (b"", "malformed"),
    "truncated protobuf": (bytes.fromhex("0a200a0b643a616c"), "malformed"),
    "truncated JSON": (b'{"type":"send","conversation":"d:al', "malformed"),
    "no object": (b"{]", "malformed"),
    "wrong shape": (b'{"type":"send","conversation":5}', "malformed"),
    "no content": (b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1"}', "malformed"),
    "unknown command": (b'{"type":"teleport","to":"mars"}', "unsupported"),
    "empty text": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"text":""}}',
        "invalid",
    ),
    "too large": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"text":"'
        + b"x" * 65_537
        + b'"}}',
        "too_large",
    ),
    "far too large": (b'{"type":"send","x":"' + b"x" * 300_000 + b'"}', "too_large"),
    "lone surrogate": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"text":"\\ud800"}}',
        "malformed",
    ),
    "past 64 bits": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"json":'
        + b"9" * 30
        + b"}}",
        "malformed",
    ),
    "nested": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"json":'
        + b"[" * 5_000
        + b"]" * 5_000
        + b"}}",
        "malformed",
    ),
    "two bodies": (
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"text":"a","json":1}}',
        "invalid",
    ),
    "mark past 2**53": (b'{"type":"mark","conversation":"d:alice:bob","read":9007199254740992}', "malformed"),
    "negative mark": (b'{"type":"mark","conversation":"d:alice:bob","read":-1}', "malformed"),
    "unknown state": (b'{"type":"status","state":"asleep","nonce":"n"}', "invalid"),
}


@pytest.mark.parametrize("name", BAD)
async def test_the_sender_of_bad_input_gets_an_error_and_the_rest_of_the_batch_is_stored(
    running: Server, device: Make, name: str
) -> None:
    payload, code = BAD[name]
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    await alice.command(Send("d:alice:bob", "before", Content(text="1")))
    await alice.raw(payload, to=PARTITION)
    await alice.command(Send("d:alice:bob", "after", Content(text="2")))
    rejected = await alice.frame(Rejected)
    assert rejected.code == code
    assert rejected.reason
    assert not rejected.retryable
    assert isinstance(await alice.answer("after"), Accepted)
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == 2)
    assert [event.client_msg_id for event in bob.events("d:alice:bob")] == ["before", "after"]
    assert not [frame for frame in bob.frames if isinstance(frame, Rejected)]


async def test_unknown_fields_are_accepted(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await alice.raw(
        b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","colour":"blue",'
        b'"content":{"text":"hi","font":{"size":[1,2]}}}',
        to=PARTITION,
    )
    assert isinstance(await alice.answer("1"), Accepted)


@pytest.mark.parametrize("conversation", ["d:bob:alice", "d:alice:b ob", "g:some", "d:alice", "u:é", "zzz"])
async def test_an_invalid_conversation_id_is_rejected(
    running: Server, device: Make, conversation: str
) -> None:
    alice = await device("alice@phone")
    answer = await alice.send(conversation, "1")
    assert isinstance(answer, Rejected)
    assert answer.code == ("unsupported" if conversation.startswith("g:") else "invalid")


async def test_only_members_may_write_to_a_conversation(running: Server, device: Make) -> None:
    eve, alice = await device("eve@phone"), await device("alice@phone")
    await alice.hello()
    for conversation in ("d:alice:bob", "u:alice"):
        answer = await eve.send(conversation, "1")
        assert isinstance(answer, Rejected)
        assert answer.code == "not_allowed"
    answer = await alice.send("u:alice", "1")
    assert isinstance(answer, Accepted)
    assert answer.seq == 1


async def test_the_broker_confines_a_device_to_its_own_topics(running: Server, device: Make) -> None:
    eve, alice = await device("eve@phone"), await device("alice@phone")
    await alice.hello()
    payload = b'{"type":"send","conversation":"u:alice","client_msg_id":"1","content":{"text":"forged"}}'
    assert await eve.raw(payload, topic="imqtt/alice@phone/up/3") == [0x87]
    assert await eve.raw(b'{"frames":[]}', topic="imqtt/alice@phone/down") == [0x87]
    answer = await alice.send("u:alice", "mine")
    assert isinstance(answer, Accepted)
    assert answer.seq == 1


async def test_a_command_is_forwarded_only_once(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    payload = b'{"type":"send","conversation":"d:alice:bob","client_msg_id":"1","content":{"text":"hi"}}'
    await alice.raw(payload, to=5, properties=(("imqtt-passed-on", "1"),))
    rejected = await alice.frame(Rejected)
    assert (rejected.code, rejected.client_msg_id) == ("misrouted", "1")


async def test_a_flood_is_not_answered_with_a_flood(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    for hundreds in range(50):
        rubbish = [b"{rubbish %d" % number for number in range(hundreds * 100, hundreds * 100 + 100)]
        await asyncio.gather(*(alice.raw(payload, to=PARTITION) for payload in rubbish))
    assert isinstance(await bob.send("d:alice:bob", "1"), Accepted)
    assert running.counters.by_code["malformed"] == 5_000
    assert running.counters.rejected == 5_000

    # Omitted answers are counted: every command is accounted for.
    def rejections() -> list[Rejected]:
        return [frame for frame in alice.frames if isinstance(frame, Rejected)]

    await eventually(
        lambda: len(rejections()) + sum(rejection.omitted for rejection in rejections()) == 5_000
    )
    assert running.counters.unanswered == sum(rejection.omitted for rejection in rejections()) > 0


async def test_a_device_that_sends_too_fast_is_told_to_slow_down(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    settings = config_for(broker, tmp_path, device_rate=1, device_burst=20)
    await stack.enter_async_context(serving(settings))
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    for number in range(50):
        await alice.command(Send("d:alice:bob", f"m{number}", Content(text="hi")))
    answers = [await alice.answer(f"m{number}") for number in range(50)]
    accepted = [frame for frame in answers if isinstance(frame, Accepted)]
    rejected = [frame for frame in answers if isinstance(frame, Rejected)]
    assert 20 <= len(accepted) < 50
    assert {rejection.code for rejection in rejected} == {"rate_limited"}
    assert all(rejection.retryable and rejection.retry_after for rejection in rejected)
    assert [frame.seq for frame in accepted] == list(range(1, len(accepted) + 1))
    assert isinstance(await bob.send("d:alice:bob", "b1"), Accepted)


async def test_every_message_of_a_burst_far_above_the_rate_is_answered_or_counted(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    """The first rejections name their messages; the last one counts the rest."""
    settings = config_for(broker, tmp_path, device_rate=200, device_burst=20)
    server = await stack.enter_async_context(serving(settings))
    alice = await device("alice@phone")
    assert isinstance(await alice.send("d:alice:bob", "first"), Accepted)
    with closing(sqlite3.connect(tmp_path / "imqtt.db", isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        await alice.command(Send("d:alice:bob", "second", Content(text="hi")))
        await page_of(alice, "1")  # a batch has started and waits for the store
        names = [f"m{number}" for number in range(300)]
        for name in names:
            await alice.command(Send("d:alice:bob", name, Content(text="hi")))
        await page_of(alice, "2")  # the server has received all of them for its next batch
        start = len(alice.frames)
        rival.execute("COMMIT")
    await alice.until(lambda frame: isinstance(frame, Rejected) and frame.omitted > 0, since=start)
    answered = [frame for frame in alice.frames[start:] if isinstance(frame, Accepted | Rejected)]
    assert [frame.client_msg_id for frame in answered] == ["second", *names[:70]]
    assert all(isinstance(frame, Accepted) for frame in answered[:21])
    rejected = [frame for frame in answered[21:] if isinstance(frame, Rejected)]
    assert {(rejection.code, rejection.retryable) for rejection in rejected} == {("rate_limited", True)}
    assert all(rejection.retry_after for rejection in rejected)
    assert [rejection.omitted for rejection in rejected] == [0] * 49 + [230]
    assert server.counters.by_code["rate_limited"] == 280
    assert server.counters.unanswered == 230

    # A message that is repeated as if its answer were lost is stored once.
    for name in names[20:]:
        await eventually(partial(is_accepted, alice, name))
    _, page = await alice.hello(Cursor("d:alice:bob"))
    assert page.heads[0].seq == 302


async def page_of(device: RawDevice, ref: str) -> None:
    await device.command(History("d:alice:bob", ref=ref))
    await device.until(lambda frame: isinstance(frame, Page) and frame.ref == ref)


async def is_accepted(device: RawDevice, name: str) -> bool:
    return isinstance(await device.send("d:alice:bob", name), Accepted)


async def test_a_conversation_that_has_left_the_head_cache_continues_at_its_next_seq(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    settings = config_for(broker, tmp_path, conversations_cached=64, device_burst=10_000)
    server = await stack.enter_async_context(serving(settings))
    alice = await device("alice@phone")
    for number in range(2_000):
        await alice.command(Send(f"d:alice:u{number:04}", "1", Content(text="hi")))
    await alice.until(lambda frame: isinstance(frame, Accepted) and frame.conversation == "d:alice:u1999")
    answer = await alice.send("d:alice:u0000", "2")
    assert isinstance(answer, Accepted)
    assert answer.seq == 2
    assert server.counters.conflicts == 0


async def test_ids_keep_growing_when_the_clock_steps_back_an_hour(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    step = 0
    await stack.enter_async_context(serving(config_for(broker, tmp_path), clock=lambda: wall_clock() + step))
    alice = await device("alice@phone")
    before = await alice.send("u:alice", "1")
    step = -3_600_000
    meanwhile = await alice.send("u:alice", "2")
    again = await alice.send("u:alice", "1")
    assert again == before
    step = 1_000
    after = await alice.send("u:alice", "3")
    assert isinstance(before, Accepted)
    assert isinstance(meanwhile, Accepted)
    assert isinstance(after, Accepted)
    assert (before.seq, meanwhile.seq, after.seq) == (1, 2, 3)
    assert before.id < meanwhile.id < after.id
    assert meanwhile.time == before.time + 1


async def test_ids_keep_growing_when_the_clock_steps_back_within_the_tolerance(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Make
) -> None:
    step = 0
    await stack.enter_async_context(serving(config_for(broker, tmp_path), clock=lambda: wall_clock() + step))
    alice = await device("alice@phone")
    before = await alice.send("u:alice", "1")
    step = -30_000
    after = await alice.send("u:alice", "2")
    assert isinstance(before, Accepted)
    assert isinstance(after, Accepted)
    assert after.id > before.id


@pytest.mark.parametrize(
    "hello",
    [
        Hello("two words"),
        Hello("n", max_packet=100),
        Hello("n", cursors=tuple(Cursor(f"d:a:u{n}") for n in range(1_001))),
    ],
)
async def test_a_hello_with_invalid_fields_is_rejected(running: Server, device: Make, hello: Hello) -> None:
    alice = await device("alice@phone")
    await alice.command(hello)
    rejected = await alice.frame(Rejected)
    code = "too_large" if hello.cursors else "invalid"
    assert (rejected.code, rejected.command) == (code, "hello")


async def test_a_mark_in_an_empty_conversation_is_ignored(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await alice.command(Mark("u:alice", read=5))
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    assert not [frame for frame in alice.frames if isinstance(frame, Rejected)]
