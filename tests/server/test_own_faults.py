"""A fault in the server's own code affects one command: its sender is told, and the partition continues."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

import pytest

from imqtt.core import sequencing
from imqtt.errors import SetupError, StoreFull, StoreUnreachable
from imqtt.model import (
    Accepted,
    Content,
    Device,
    Event,
    Hello,
    Mark,
    Marks,
    Position,
    Registration,
    Rejected,
    Send,
)
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server import router
from imqtt.server.app import Server
from imqtt.serving import serving
from imqtt.stores.base import Record, RecordRefused
from imqtt.stores.sqlite.store import SqliteStore
from tests.device import RawDevice
from tests.server.conftest import config_for

Make = Callable[..., Awaitable[RawDevice]]


async def test_a_command_that_fails_is_rejected_and_the_rest_of_the_batch_is_carried_out(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(sender: Device, send: Send, partition: int, *, again: bool) -> sequencing.Incoming:
        if send.content.text == "poison":
            raise ZeroDivisionError
        return sequencing.receive(sender, send, partition, again=again)

    monkeypatch.setattr(router, "receive", receive)
    alice = await device("alice@phone")
    for name, text in (("1", "good"), ("2", "poison"), ("3", "good")):
        await alice.command(Send("u:alice", name, Content(text=text)))
    third = await alice.answer("3")
    assert isinstance(third, Accepted)
    assert third.seq == 2
    second = await alice.answer("2")
    assert isinstance(second, Rejected)
    assert (second.code, second.retryable, second.command) == ("error", True, "send")
    assert running.counters.failures >= 1


async def test_an_event_that_the_store_cannot_hold_is_rejected_and_the_rest_is_stored(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, sizes = SqliteStore.append, []

    async def refusing(store: SqliteStore, records: Sequence[Record]) -> None:
        sizes.append(len(records))
        if any(record.event.client_msg_id == "5" for record in records):
            raise RecordRefused("no")
        await append(store, records)

    alice = await device("alice@phone")
    await alice.hello()
    monkeypatch.setattr(SqliteStore, "append", refusing)
    names = [str(number) for number in range(12)]
    for name in names:
        await alice.command(Send("u:alice", name, Content(text=name)))
    answers = [await alice.answer(name) for name in names]
    assert [type(answer) for answer in answers] == [Rejected if name == "5" else Accepted for name in names]
    assert [answer.seq for answer in answers if isinstance(answer, Accepted)] == list(range(1, 12))
    assert answers[5].code == "invalid"
    assert not answers[5].retryable
    assert running.counters.failures == 0
    assert 1 in sizes  # the culprit was alone at last


async def test_the_number_of_partitions_is_bounded_and_fixed_when_the_store_is_created(
    broker: Mosquitto, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match="1024"):
        async with serving(config_for(broker, tmp_path, partitions=1_025)):
            pass
    async with serving(config_for(broker, tmp_path, partitions=3)) as server:
        assert server.partitions == 3
    async with serving(config_for(broker, tmp_path)) as server:
        assert server.partitions == 3  # fixed at the creation of the store
    with pytest.raises(SetupError, match="5 is not possible: the store has 3"):
        async with serving(config_for(broker, tmp_path, partitions=5)):
            pass


async def test_a_store_that_cannot_be_read_after_the_commit_only_delays_delivery(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    await alice.send("d:alice:bob", "1")
    real, failures = SqliteStore.devices, [StoreUnreachable("no"), StoreUnreachable("still no")]

    async def failing(store: SqliteStore, users: Collection[str]) -> dict[str, tuple[Registration, ...]]:
        if failures:
            raise failures.pop()
        return await real(store, users)

    monkeypatch.setattr(SqliteStore, "devices", failing)
    await running._state.forget_devices(["alice", "bob"])
    answer = await alice.send("d:alice:bob", "2")
    assert isinstance(answer, Accepted)
    assert not failures
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == answer.seq)


async def test_a_mark_waits_for_a_store_that_cannot_be_read(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await alice.hello()
    await bob.hello()
    await alice.send("d:alice:bob", "1")
    real, failures = SqliteStore.heads, [StoreUnreachable("no"), StoreUnreachable("still no")]

    async def failing(store: SqliteStore, conversations: Collection[str]) -> dict[str, Position]:
        if "d:alice:bob" in conversations and failures:
            raise failures.pop()
        return await real(store, conversations)

    monkeypatch.setattr(SqliteStore, "heads", failing)
    await bob.command(Mark("d:alice:bob", read=1))
    assert await alice.frame(Marks) == Marks("d:alice:bob", "bob", 1, 1)
    assert not failures
    assert running.counters.rejected == 0


async def test_marks_that_one_owner_stored_but_did_not_send_are_sent_by_the_next(
    broker: Mosquitto, tmp_path: Path, device: Make
) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    async with serving(config_for(broker, tmp_path)) as server:
        await alice.hello()
        await alice.send("d:alice:bob", "1")
        await server._store.raise_marks([Marks("d:alice:bob", "bob", 1, 1)])
    # The command that caused the fault comes again, to an owner that has just taken over.
    await bob.command(Mark("d:alice:bob", read=1))
    async with serving(config_for(broker, tmp_path)):
        assert await alice.frame(Marks) == Marks("d:alice:bob", "bob", 1, 1)


async def test_devices_of_one_user_that_mark_in_one_batch_receive_each_others_marks(
    broker: Mosquitto, tmp_path: Path, device: Make
) -> None:
    alice, phone, tablet = await device("alice@phone"), await device("bob@phone"), await device("bob@tablet")
    async with serving(config_for(broker, tmp_path)):
        for client in (alice, phone, tablet):
            await client.hello()
        for name in ("1", "2"):
            await alice.send("d:alice:bob", name)
    await tablet.command(Mark("d:alice:bob", read=2))
    await phone.command(Mark("d:alice:bob", delivered=2))
    async with serving(config_for(broker, tmp_path)):
        for client in (alice, phone, tablet):
            assert await client.frame(Marks) == Marks("d:alice:bob", "bob", 2, 2)


async def test_a_store_that_accepts_messages_again_is_healthy_though_a_refused_device_never_returns(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise StoreFull("no room")

    alice = await device("alice@phone")
    await alice.hello()
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "put_devices", full)
        bob = await device("bob@laptop")
        await bob.command(Hello("n"))
        assert (await bob.frame(Rejected)).code == StoreFull("").code
    assert running.health().store.startswith("nothing can be stored since")
    assert isinstance(await alice.send("u:alice", "1"), Accepted)
    assert running.health().store == "ok"
