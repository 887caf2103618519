"""The outbox under concurrency: a message is stored, refused or kept, and its sender gets the result."""

import asyncio
import contextlib

import pytest

from imqtt.client import Client, Format, Phase, Refused
from imqtt.core.outbox import Entry, OutboxKey
from imqtt.errors import (
    Conflict,
    DeviceStoreError,
    Discarded,
    Invalid,
    Malformed,
    NotAllowed,
    NotConnected,
    TooLarge,
)
from imqtt.model import Accepted, Content, Hello, Id, JsonText, Position, Recall, Rejected, Send
from imqtt.mosquitto.broker import Mosquitto
from tests.client.conftest import Devices, held
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK
from tests.services import WITHIN, eventually

HUGE = b"x" * 2_000_000  # more than the broker accepts
PICTURE = "image/png"


def contents(fake: FakeServer) -> list[str | None]:
    return [send.content.text for send in fake.commands(Send)]  # type: ignore[union-attr]


async def error_of(sending: "asyncio.Task[Accepted] | asyncio.Task[None]") -> BaseException | None:
    """The error that a `send` raises, or None. It must not wait forever."""
    async with asyncio.timeout(WITHIN):
        await asyncio.wait([sending])
    return sending.exception()


# --- messages that are too large --------------------------------------------------------------------------


async def test_a_message_put_before_the_limits_were_known_is_refused_and_not_published(
    fake: FakeServer, device: Devices
) -> None:
    fake.silent = True
    async with device(wait=0) as alice:
        notices = alice.notices()
        posted = await alice.post(TALK, HUGE, content_type=PICTURE)
        sending = asyncio.create_task(alice.send("d:alice:carol", HUGE, content_type=PICTURE))
        await alice.post(TALK, "small")
        await eventually(lambda: len(alice._parts.sender._outbox) == 3 and fake.commands(Hello))
        await fake.resume()
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert isinstance(refused, Refused)
        assert (refused.entry.client_msg_id, refused.error.code) == (posted, "too_large")
        error = await error_of(sending)
        assert isinstance(error, TooLarge)
        assert (error.size, error.limit) == (len(HUGE), 65_536)
        await eventually(lambda: len(alice._parts.sender._outbox) == 0)
        assert contents(fake) == ["small"]
        assert [entry.refused for entry in await alice.outbox()] == ["too_large"]
        assert len({hello.nonce for hello in fake.commands(Hello)}) == 1  # type: ignore[union-attr]


async def test_a_message_that_an_earlier_process_left_is_refused_too(
    fake: FakeServer, device: Devices
) -> None:
    async with device(stored=True, brokers="127.0.0.1:1") as alice:
        await alice.post(TALK, HUGE, content_type=PICTURE)
    async with device(stored=True) as alice:

        async def is_refused() -> bool:
            return [entry.refused for entry in await alice.outbox()] == ["too_large"]

        await eventually(is_refused)


async def test_a_command_may_be_too_large_though_its_content_is_not(
    fake: FakeServer, device: Devices
) -> None:
    async with device(format=Format.JSON) as alice:
        with pytest.raises(TooLarge, match="command") as caught:
            await asyncio.wait_for(alice.send(TALK, "\x01" * 60_000), WITHIN)  # six bytes each in JSON
        assert caught.value.limit == 262_144
        assert await alice.outbox() == []


# --- values of other types than declared --------------------------------------------------------------


async def test_the_same_content_in_another_spelling_is_no_conflict(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        fake.silent = True
        for text in ('{"a": 1}', '{"a":1}', ' {"a" : 1}'):
            await alice.post(TALK, Content(json=JsonText(text)), client_msg_id="m1")
            await eventually(lambda: fake.commands(Send))
        assert [entry.content.json for entry in await alice.outbox()] == ['{"a":1}']


async def test_a_content_that_is_no_json_is_refused_and_not_stored(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        with pytest.raises(Malformed):
            await alice.post(TALK, Content(json=JsonText("{oops")))
        assert await alice.outbox() == []


async def test_a_content_and_parts_of_one_are_not_given_together(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        for given in (
            {"reply_to": Position(1, Id(2))},
            {"mentions": ["bob"]},
            {"content_type": "text/plain"},
        ):
            with pytest.raises(Invalid):
                await alice.post(TALK, Content(text="hi"), **given)  # type: ignore[arg-type]
        assert await alice.outbox() == []


async def test_a_position_may_be_of_plain_integers(fake: FakeServer, device: Devices) -> None:
    position = Position(1, 77)  # type: ignore[arg-type]
    async with device() as alice:
        fake.silent = True
        await alice.post(TALK, "yes", reply_to=position)
        recalling = asyncio.create_task(alice.recall("d:alice:carol", position))
        await eventually(lambda: fake.commands(Send) and fake.commands(Recall))
        answer, recall = (entry.command for entry in await alice.outbox())
        assert isinstance(answer, Send)
        assert isinstance(recall, Recall)
        assert answer.content.reply_to == recall.target == Position(1, Id(77))
        recalling.cancel()


async def test_what_the_outbox_could_not_read_again_is_refused(device: Devices) -> None:
    async with device(stored=True, brokers="127.0.0.1:1") as alice:
        with pytest.raises(Malformed, match="reply_to"):
            await alice.post(TALK, Content(text="one", reply_to=Position(1, 5)))  # type: ignore[arg-type]
        await alice.post(TALK, "two")
        assert [entry.content.text for entry in await alice.outbox()] == ["two"]


# --- waiting callers -----------------------------------------------------------------------------------


async def test_a_waiting_send_raises_discarded_when_its_message_is_discarded(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        fake.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: fake.commands(Send))
        assert await alice.discard(TALK, "m1")
        assert isinstance(await error_of(sending), Discarded)
        assert await alice.outbox() == []
        assert len(alice._parts.sender._outbox) == 0


async def test_a_message_can_be_discarded_while_it_is_put_into_the_outbox(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        with held(alice):
            sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
            await asyncio.sleep(0)
            discarding = asyncio.create_task(alice.discard(TALK, "m1"))
            await asyncio.sleep(0)
            again = asyncio.create_task(alice.send(TALK, "hello", client_msg_id="m1"))
            await asyncio.sleep(0)
        assert await discarding
        assert isinstance(await error_of(sending), Discarded)
        assert await error_of(again) is None
        assert contents(fake) == ["hello"]
        assert len(alice._parts.sender._outbox) == 0


async def test_a_discard_completes_though_its_caller_is_cancelled(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        fake.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: fake.commands(Send))
        with held(alice):
            discarding = asyncio.create_task(alice.discard(TALK, "m1"))
            await asyncio.sleep(0)
            discarding.cancel()
            await asyncio.wait([discarding])
        assert isinstance(await error_of(sending), Discarded)
        assert len(alice._parts.sender._outbox) == 0


async def test_a_discard_that_fails_changes_nothing(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device() as alice:
        fake.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: fake.commands(Send))
        monkeypatch.setattr(alice._parts.store, "discard", failing)
        with pytest.raises(DeviceStoreError):
            await alice.discard(TALK, "m1")
        await fake.resume()
        assert await error_of(sending) is None


async def test_a_send_after_the_end_raises_and_its_message_stays_in_the_outbox(
    fake: FakeServer, device: Devices
) -> None:
    async def send_at_the_end(alice: Client) -> None:
        async for _ in alice.states():
            pass
        await alice.send(TALK, "late")

    async with device(stored=True) as alice:
        fake.silent = True
        sending = asyncio.create_task(alice.send(TALK, "early"))
        late = asyncio.create_task(send_at_the_end(alice))
        await eventually(lambda: fake.commands(Send))
        close = alice._parts.store.close

        async def close_after_late() -> None:
            await error_of(late)
            await close()

        alice._parts.store.close = close_after_late  # type: ignore[method-assign]
        closing = asyncio.create_task(alice.close())
        for waiting in (sending, late):
            assert isinstance(await error_of(waiting), NotConnected)
        await closing
    fake.silent = False
    async with device(stored=True):
        await eventually(lambda: len(fake.logs[TALK]) == 2)
    assert [event.content.text for event in fake.logs[TALK]] == ["early", "late"]


async def test_a_waiting_send_raises_the_rejection_though_the_store_fails(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.refuse = refuse
    async with device() as alice:
        monkeypatch.setattr(alice._parts.store, "discard", failing)
        sending = asyncio.create_task(alice.send(TALK, "hi"))
        assert isinstance(await error_of(sending), NotAllowed)
        await eventually(lambda: alice.state.phase is Phase.CLOSED)
        assert "disk full" in alice.state.reason


async def test_a_refusal_is_reported_though_the_connection_ends_meanwhile(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    fake.silent = True
    async with device(wait=0) as alice:
        notices = alice.notices()
        posted = await alice.post(TALK, HUGE, content_type=PICTURE)
        store = alice._parts.store
        refusing = asyncio.Event()
        refuse = store.refuse

        def refuse_slowly(key: OutboxKey, code: str, reason: str) -> "asyncio.Future[None]":
            stack.enter_context(held(alice))
            refusing.set()
            return refuse(key, code, reason)

        store.refuse = refuse_slowly  # type: ignore[method-assign]
        await eventually(lambda: fake.commands(Hello))
        with contextlib.ExitStack() as stack:
            await fake.resume()
            await asyncio.wait_for(refusing.wait(), WITHIN)
            await broker.kill()
            await eventually(lambda: alice.state.phase is not Phase.ESTABLISHED)
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert isinstance(refused, Refused)
        assert refused.entry.client_msg_id == posted
        assert [entry.refused for entry in await alice.outbox()] == ["too_large"]


async def test_a_refusal_that_nobody_waits_for_any_more_is_a_notice(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        notices = alice.notices()
        fake.refuse = refuse
        discarding = asyncio.Event()
        discard = alice._parts.store.discard

        def discard_slowly(key: OutboxKey) -> "asyncio.Future[bool]":
            stack.enter_context(held(alice))
            discarding.set()
            return discard(key)

        alice._parts.store.discard = discard_slowly  # type: ignore[method-assign]
        with contextlib.ExitStack() as stack:
            sending = asyncio.create_task(alice.send(TALK, "hi"))
            await asyncio.wait_for(discarding.wait(), WITHIN)
            sending.cancel()
            await asyncio.wait([sending])
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert isinstance(refused, Refused)
        assert refused.error.code == "not_allowed"


# --- one client_msg_id, two messages ---------------------------------------------------------------------


async def test_a_content_that_was_discarded_while_it_was_read_is_not_published(
    fake: FakeServer, device: Devices
) -> None:
    fake.silent = True
    async with device(wait=0) as alice:
        await alice.post(TALK, "old", client_msg_id="m1")
        reading = asyncio.Event()
        entries = alice._parts.store.entries

        def read_slowly(keys: list[OutboxKey] | None = None) -> "asyncio.Future[dict[OutboxKey, Entry]]":
            if not reading.is_set():
                stack.enter_context(held(alice))
                reading.set()
            return entries(keys)

        alice._parts.store.entries = read_slowly  # type: ignore[method-assign, assignment]
        await eventually(lambda: fake.commands(Hello))
        with contextlib.ExitStack() as stack:
            await fake.resume()
            await asyncio.wait_for(reading.wait(), WITHIN)
            discarding = asyncio.create_task(alice.discard(TALK, "m1"))
            await asyncio.sleep(0)
            sending = asyncio.create_task(alice.send(TALK, "new", client_msg_id="m1"))
            await asyncio.sleep(0)
        assert await discarding
        assert await error_of(sending) is None
        assert contents(fake) == ["new"]


async def test_a_published_client_msg_id_is_bound_to_its_content_until_it_is_answered(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        fake.silent = True
        await alice.post(TALK, "old", client_msg_id="m1")
        await eventually(lambda: fake.commands(Send))
        await alice.discard(TALK, "m1")
        with pytest.raises(Conflict):  # otherwise the answer to the old content would count for this one
            await alice.post(TALK, "new", client_msg_id="m1")
        fake.silent = False
        await alice.send(TALK, "old", client_msg_id="m1")
        assert [event.content.text for event in fake.logs[TALK]] == ["old"]


def failing(_: OutboxKey) -> "asyncio.Future[bool]":
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_exception(DeviceStoreError("disk full"))
    return future


def refuse(command: object) -> Rejected | None:
    if not isinstance(command, Send):
        return None
    return Rejected("not_allowed", "not yours", False, "send", command.conversation, command.client_msg_id)
