"""Control messages of the operator's commands: carried out as far as possible, without blocking anything."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from imqtt.broker.link import Packet, Received
from imqtt.core.partitions import home_of, partition_of
from imqtt.errors import StoreFull, StoreUnreachable
from imqtt.model import Device, Hello
from imqtt.protocol.topics import up
from imqtt.server import control
from imqtt.server.app import Server
from imqtt.server.batch import Inbound
from imqtt.server.control import Ask, Control, DeviceReport, PresenceReport, Revoke
from imqtt.state.base import DevicePresence, StateAway
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.server.test_pruning import NOW, WorkerParts, published
from tests.services import eventually

PHONE = Device("alice", "phone")


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[WorkerParts]:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    parts = WorkerParts(store)
    await parts.put("alice@phone", "alice@tablet")
    await parts.presences.note([(PHONE, Hello("n"))])
    yield parts
    await store.close()


class Answers:
    def __init__(self, parts: WorkerParts) -> None:
        self.messages: list[Packet] = []
        self.control = Control(parts.devices, parts.presences, self._publish, parts.counters, partitions=4)

    def _publish(self, messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        self.messages += messages
        return published(messages)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"type":"dance"}', b'{"type":"revoke"}', b"\xff"])
def test_a_control_message_of_another_version_is_ignored(payload: bytes) -> None:
    assert control.parse(payload) is None


async def test_a_revoked_device_is_offline_and_not_registered(parts: WorkerParts) -> None:
    orders = [Revoke(("alice@phone", "nobody", "alice@phone")), Revoke(("bob@tv",))]
    for _ in range(2):  # it may arrive twice
        await Answers(parts).control.carry_out(orders)
        assert await parts.names() == ["alice@tablet"]
        assert [presence.state for presence in await parts.presences.of_devices("alice")] == ["offline"]


async def test_with_a_full_store_a_revoked_device_is_offline_and_the_log_names_its_remaining_records(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreFull("no room")

    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(parts.store, "remove_device", full)
    await Answers(parts).control.carry_out([Revoke(("alice@phone",))])
    assert [presence.state for presence in await parts.presences.of_devices("alice")] == ["offline"]
    assert "the records of alice@phone stay, revoke them again: no room" in caplog.text


async def test_an_unreachable_store_raises_so_that_the_revocation_is_retried(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnreachable("not now")

    monkeypatch.setattr(parts.store, "remove_device", away)
    with pytest.raises(StoreUnreachable):
        await Answers(parts).control.carry_out([Revoke(("alice@phone",))])


async def test_a_request_is_answered_with_the_states_of_a_users_devices(parts: WorkerParts) -> None:
    answers = Answers(parts)
    await answers.control.carry_out([Ask("alice", "r1"), Ask("nobody", "r2")])
    assert [(message.topic, control.parse_answer(message.payload)) for message in answers.messages] == [
        ("imqtt/$control/down/r1", PresenceReport((DeviceReport("alice@phone", "online", NOW),))),
        ("imqtt/$control/down/r2", PresenceReport(())),
    ]


async def test_while_the_state_is_unavailable_the_answer_says_so(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise StateAway("not now")

    monkeypatch.setattr(parts.state, "presence", away)
    answers = Answers(parts)
    await answers.control.carry_out([Ask("alice", "r1")])
    assert control.parse_answer(answers.messages[0].payload) == PresenceReport((), known=False)


async def test_a_hello_in_the_batch_of_its_devices_revocation_makes_no_device_present(
    running: Server,
) -> None:
    """Both are in one batch, as after a stall, and the device had no last will."""
    home = partition_of(home_of("alice"), running.partitions)
    hello = json.dumps({"type": "hello", "nonce": "n"}).encode()
    pipeline = running._assignment.partitions[0].pipeline  # type: ignore[union-attr]
    revoke = control.encode(Revoke(("alice@phone",)))

    def inbound(partition: int, topic: str, payload: bytes) -> Inbound:
        received = Received(topic, payload, packet_id=1, dup=False, properties=(), qos=1, receipt=-1)
        return Inbound(partition, received, link=None, again=False)  # type: ignore[arg-type]  # not acked

    greeting = inbound(home, up(PHONE, home), hello)
    for batch, state in (([greeting], "online"), ([greeting, inbound(0, control.TOPIC, revoke)], "offline")):
        await (await pipeline._stages(batch))
        assert [presence.state for presence in (await running._state.presence(["alice"]))["alice"]] == [state]
    assert await running._store.devices(["alice"]) == {"alice": ()}


async def test_a_hello_of_an_earlier_batch_makes_no_revoked_device_present(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    presences, arrive = parts.presences, parts.state.arrive
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(presence: DevicePresence) -> None:
        if presence.state == "online":
            begun.set()
            await go.wait()
        await arrive(presence)

    monkeypatch.setattr(parts.state, "arrive", slow)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(presences._listen())
        presences.hear([PHONE], [(PHONE, Hello("n1"))])
        await begun.wait()
        heard = presences.hear([PHONE], [(PHONE, Hello("n2"))])
        assert heard is not None
        revoked = tasks.create_task(Answers(parts).control.carry_out([Revoke(("alice@phone",))]))
        await eventually(lambda: _names(parts))
        go.set()
        await asyncio.gather(revoked, heard)
        listening.cancel()
    assert [presence.state for presence in await presences.of_devices("alice")] == ["offline"]


async def _names(parts: WorkerParts) -> bool:
    return await parts.names() == ["alice@tablet"]


async def test_a_cancelled_batch_does_not_stop_the_recording_of_presence(parts: WorkerParts) -> None:
    presences = parts.presences
    for nonce in ("n1", "n2"):
        heard = presences.hear([PHONE], [(PHONE, Hello(nonce))])
        assert heard is not None
        if nonce == "n1":
            listening = asyncio.create_task(presences._listen())
            await asyncio.sleep(0)
            heard.cancel()
        else:
            await heard
    assert not listening.done()
    listening.cancel()
