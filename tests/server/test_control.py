"""Orders of the operator's commands: executed as far as possible, without blocking anything."""

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
from imqtt.server.control import Ask, Control, Revoke, Seen, Told
from imqtt.state.base import DevicePresence, StateAway
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.server.test_pruning import NOW, Place, published
from tests.services import eventually

PHONE = Device("alice", "phone")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    place = Place(store)
    await place.put("alice@phone", "alice@tablet")
    await place.presences.note([(PHONE, Hello("n"))])
    yield place
    await store.close()


class Answers:
    def __init__(self, place: Place) -> None:
        self.messages: list[Packet] = []
        self.control = Control(place.devices, place.presences, self._publish, place.counters, partitions=4)

    def _publish(self, messages: Sequence[Packet]) -> asyncio.Future[list[int]]:
        self.messages += messages
        return published(messages)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"type":"dance"}', b'{"type":"revoke"}', b"\xff"])
def test_what_another_version_asks_is_passed_over(payload: bytes) -> None:
    assert control.parse(payload) is None


async def test_a_revoked_device_is_offline_and_not_registered(place: Place) -> None:
    orders = [Revoke(("alice@phone", "nobody", "alice@phone")), Revoke(("bob@tv",))]
    for _ in range(2):  # it may arrive twice
        await Answers(place).control.carry_out(orders)
        assert await place.names() == ["alice@tablet"]
        assert [it.state for it in await place.presences.of_devices("alice")] == ["offline"]


async def test_while_the_store_is_full_a_revoked_device_is_offline_and_the_log_says_what_is_left(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreFull("no room")

    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(place.store, "remove_device", full)
    await Answers(place).control.carry_out([Revoke(("alice@phone",))])
    assert [it.state for it in await place.presences.of_devices("alice")] == ["offline"]
    assert "the records of alice@phone stay, revoke them again: no room" in caplog.text


async def test_a_store_that_is_away_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnreachable("not now")

    monkeypatch.setattr(place.store, "remove_device", away)
    with pytest.raises(StoreUnreachable):
        await Answers(place).control.carry_out([Revoke(("alice@phone",))])


async def test_whoever_asks_is_told_of_a_users_devices(place: Place) -> None:
    answers = Answers(place)
    await answers.control.carry_out([Ask("alice", "r1"), Ask("nobody", "r2")])
    assert [(it.topic, control.parse_answer(it.payload)) for it in answers.messages] == [
        ("imqtt/$control/down/r1", Told((Seen("alice@phone", "online", NOW),))),
        ("imqtt/$control/down/r2", Told(())),
    ]


async def test_while_the_state_is_away_that_is_the_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise StateAway("not now")

    monkeypatch.setattr(place.state, "presence", away)
    answers = Answers(place)
    await answers.control.carry_out([Ask("alice", "r1")])
    assert control.parse_answer(answers.messages[0].payload) == Told((), known=False)


async def test_a_hello_that_waited_with_its_revocation_makes_nobody_present(running: Server) -> None:
    """Both are in one batch, as after a stall, and the device had no last will."""
    home = partition_of(home_of("alice"), running.partitions)
    hello = json.dumps({"type": "hello", "nonce": "n"}).encode()
    pipeline = running._assignment.partitions[0].pipeline  # type: ignore[union-attr]
    revoke = control.encode(Revoke(("alice@phone",)))

    def inbound(partition: int, topic: str, payload: bytes) -> Inbound:
        received = Received(topic, payload, packet_id=1, dup=False, properties=(), qos=1, receipt=-1)
        return Inbound(partition, received, link=None, again=False)  # type: ignore[arg-type]  # not acked

    said = inbound(home, up(PHONE, home), hello)
    for batch, state in (([said], "online"), ([said, inbound(0, control.TOPIC, revoke)], "offline")):
        await (await pipeline._stages(batch))
        assert [it.state for it in (await running._state.presence(["alice"]))["alice"]] == [state]
    assert await running._store.devices(["alice"]) == {"alice": ()}


async def test_a_hello_of_an_earlier_batch_makes_no_revoked_device_present(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    presences, arrive = place.presences, place.state.arrive
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(presence: DevicePresence) -> None:
        if presence.state == "online":
            begun.set()
            await go.wait()
        await arrive(presence)

    monkeypatch.setattr(place.state, "arrive", slow)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(presences._listen())
        presences.hear([PHONE], [(PHONE, Hello("n1"))])
        await begun.wait()
        heard = presences.hear([PHONE], [(PHONE, Hello("n2"))])
        assert heard is not None
        revoked = tasks.create_task(Answers(place).control.carry_out([Revoke(("alice@phone",))]))
        await eventually(lambda: _names(place))
        go.set()
        await asyncio.gather(revoked, heard)
        listening.cancel()
    assert [it.state for it in await presences.of_devices("alice")] == ["offline"]


async def _names(place: Place) -> bool:
    return await place.names() == ["alice@tablet"]


async def test_a_cancelled_batch_does_not_end_the_noting_of_presence(place: Place) -> None:
    presences = place.presences
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
