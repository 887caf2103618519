"""The outbox under concurrency: a message is stored, refused or kept, and its sender gets the result."""

import asyncio
import contextlib

import pytest

from imqtt.client import Client, Format, Phase, Refused
from imqtt.core.outbox import Entry, OutboxKey
from imqtt.errors import Conflict, DeviceStoreError, Discarded, NotAllowed, NotConnected, TooLarge
from imqtt.model import Accepted, Hello, Rejected, Send
from imqtt.mosquitto.broker import Mosquitto
from tests.client.conftest import Devices, held
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK
from tests.services import WITHIN, eventually

HUGE = b"x" * 2_000_000  # more than the broker accepts
PICTURE = "image/png"


def contents(little: FakeServer) -> list[str | None]:
    return [it.content.text for it in little.commands(Send)]  # type: ignore[union-attr]


async def told(sending: "asyncio.Task[Accepted] | asyncio.Task[None]") -> BaseException | None:
    """The error that a `send` raises. It must not wait forever."""
    async with asyncio.timeout(WITHIN):
        await asyncio.wait([sending])
    return sending.exception()


# --- what is too large ---------------------------------------------------------------------------------


async def test_what_was_put_before_the_limits_were_known_is_refused_and_not_published(
    little: FakeServer, device: Devices
) -> None:
    little.silent = True
    async with device(wait=0) as alice:
        notices = alice.notices()
        posted = await alice.post(TALK, HUGE, content_type=PICTURE)
        sending = asyncio.create_task(alice.send("d:alice:carol", HUGE, content_type=PICTURE))
        await alice.post(TALK, "small")
        await eventually(lambda: len(alice._parts.sender._outbox) == 3 and little.commands(Hello))
        await little.speak()
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert isinstance(refused, Refused)
        assert (refused.entry.client_msg_id, refused.error.code) == (posted, "too_large")
        error = await told(sending)
        assert isinstance(error, TooLarge)
        assert (error.size, error.limit) == (len(HUGE), 65_536)
        await eventually(lambda: len(alice._parts.sender._outbox) == 0)
        assert contents(little) == ["small"]
        assert [it.refused for it in await alice.outbox()] == ["too_large"]
        assert len({it.nonce for it in little.commands(Hello)}) == 1  # type: ignore[union-attr]


async def test_what_an_earlier_process_left_is_refused_too(little: FakeServer, device: Devices) -> None:
    async with device(stored=True, brokers="127.0.0.1:1") as alice:
        await alice.post(TALK, HUGE, content_type=PICTURE)
    async with device(stored=True) as alice:

        async def is_refused() -> bool:
            return [it.refused for it in await alice.outbox()] == ["too_large"]

        await eventually(is_refused)


async def test_a_command_may_be_too_large_though_its_content_is_not(
    little: FakeServer, device: Devices
) -> None:
    async with device(format=Format.JSON) as alice:
        with pytest.raises(TooLarge, match="command") as caught:
            await asyncio.wait_for(alice.send(TALK, "\x01" * 60_000), WITHIN)  # six bytes each in JSON
        assert caught.value.limit == 262_144
        assert await alice.outbox() == []


# --- who waits -----------------------------------------------------------------------------------------


async def test_who_waits_for_a_message_is_told_that_it_was_discarded(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        little.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: little.commands(Send))
        assert await alice.discard(TALK, "m1")
        assert isinstance(await told(sending), Discarded)
        assert await alice.outbox() == []
        assert len(alice._parts.sender._outbox) == 0


async def test_a_message_is_discarded_while_it_is_on_its_way_into_the_outbox(
    little: FakeServer, device: Devices
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
        assert isinstance(await told(sending), Discarded)
        assert await told(again) is None
        assert contents(little) == ["hello"]
        assert len(alice._parts.sender._outbox) == 0


async def test_a_discard_is_whole_though_nobody_waits_for_it(little: FakeServer, device: Devices) -> None:
    async with device() as alice:
        little.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: little.commands(Send))
        with held(alice):
            discarding = asyncio.create_task(alice.discard(TALK, "m1"))
            await asyncio.sleep(0)
            discarding.cancel()
            await asyncio.wait([discarding])
        assert isinstance(await told(sending), Discarded)
        assert len(alice._parts.sender._outbox) == 0


async def test_a_discard_that_fails_changes_nothing(
    little: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device() as alice:
        little.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi", client_msg_id="m1"))
        await eventually(lambda: little.commands(Send))
        monkeypatch.setattr(alice._parts.store, "discard", failing)
        with pytest.raises(DeviceStoreError):
            await alice.discard(TALK, "m1")
        await little.speak()
        assert await told(sending) is None


async def test_a_send_after_the_end_is_told_of_it_and_waits_in_the_outbox(
    little: FakeServer, device: Devices
) -> None:
    async def send_at_the_end(alice: Client) -> None:
        async for _ in alice.states():
            pass
        await alice.send(TALK, "late")

    async with device(stored=True) as alice:
        little.silent = True
        sending = asyncio.create_task(alice.send(TALK, "early"))
        late = asyncio.create_task(send_at_the_end(alice))
        await eventually(lambda: little.commands(Send))
        close = alice._parts.store.close

        async def close_behind_it() -> None:
            await told(late)
            await close()

        alice._parts.store.close = close_behind_it  # type: ignore[method-assign]
        closing = asyncio.create_task(alice.close())
        for waiting in (sending, late):
            assert isinstance(await told(waiting), NotConnected)
        await closing
    little.silent = False
    async with device(stored=True):
        await eventually(lambda: len(little.logs[TALK]) == 2)
    assert [it.content.text for it in little.logs[TALK]] == ["early", "late"]


async def test_who_waits_is_told_of_a_refusal_though_the_store_fails(
    little: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    little.refuse = refuse
    async with device() as alice:
        monkeypatch.setattr(alice._parts.store, "discard", failing)
        sending = asyncio.create_task(alice.send(TALK, "hi"))
        assert isinstance(await told(sending), NotAllowed)
        await eventually(lambda: alice.state.phase is Phase.CLOSED)
        assert "disk full" in alice.state.reason


async def test_a_refusal_is_told_though_the_connection_ends_in_its_midst(
    little: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    little.silent = True
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
        await eventually(lambda: little.commands(Hello))
        with contextlib.ExitStack() as stack:
            await little.speak()
            await asyncio.wait_for(refusing.wait(), WITHIN)
            await broker.kill()
            await eventually(lambda: alice.state.phase is not Phase.ESTABLISHED)
        refused = await asyncio.wait_for(anext(notices), WITHIN)
        assert isinstance(refused, Refused)
        assert refused.entry.client_msg_id == posted
        assert [it.refused for it in await alice.outbox()] == ["too_large"]


async def test_a_refusal_that_nobody_waits_for_any_more_is_a_notice(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        notices = alice.notices()
        little.refuse = refuse
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


# --- one name, two messages ----------------------------------------------------------------------------


async def test_a_content_that_was_discarded_while_it_was_read_is_not_published(
    little: FakeServer, device: Devices
) -> None:
    little.silent = True
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
        await eventually(lambda: little.commands(Hello))
        with contextlib.ExitStack() as stack:
            await little.speak()
            await asyncio.wait_for(reading.wait(), WITHIN)
            discarding = asyncio.create_task(alice.discard(TALK, "m1"))
            await asyncio.sleep(0)
            sending = asyncio.create_task(alice.send(TALK, "new", client_msg_id="m1"))
            await asyncio.sleep(0)
        assert await discarding
        assert await told(sending) is None
        assert contents(little) == ["new"]


async def test_a_name_that_went_out_stands_for_its_content_until_it_is_answered(
    little: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        little.silent = True
        await alice.post(TALK, "old", client_msg_id="m1")
        await eventually(lambda: little.commands(Send))
        await alice.discard(TALK, "m1")
        with pytest.raises(Conflict):  # otherwise the answer to the old content would count for this one
            await alice.post(TALK, "new", client_msg_id="m1")
        little.silent = False
        await alice.send(TALK, "old", client_msg_id="m1")
        assert [it.content.text for it in little.logs[TALK]] == ["old"]


def failing(_: OutboxKey) -> "asyncio.Future[bool]":
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_exception(DeviceStoreError("disk full"))
    return future


def refuse(command: object) -> Rejected | None:
    if not isinstance(command, Send):
        return None
    return Rejected("not_allowed", "not yours", False, "send", command.conversation, command.client_msg_id)
