"""Devices that are no longer used are removed, and used ones are not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from imqtt.broker.link import Packet
from imqtt.errors import StoreFull
from imqtt.model import Device, Hello, Registration, Status
from imqtt.protocol import Format
from imqtt.server import pruning
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.presence import Presences
from imqtt.server.problems import Problems
from imqtt.server.pruning import DAY, Pruning
from imqtt.state.base import StateAway
from imqtt.state.memory import MemoryState
from imqtt.stores.base import Identity, OutcomeUnknown, RecordRefused
from imqtt.stores.sqlite.store import SqliteStore
from tests.server.registering import register
from tests.services import eventually

NOW = 1_790_000_000_000


def published(_: Sequence[Packet]) -> asyncio.Future[list[int]]:
    done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    done.set_result([])
    return done


class WorkerParts:
    """A worker's devices, presences and pruning on a real store: 90 days, three devices per user."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.state = MemoryState(rate=10, burst=10)
        self.now = NOW
        self.ahead = 0  # error of the clock
        self.counters = Counters()
        self.devices = Devices(store, self.state, Problems(), lambda: self.now)
        self.presences = Presences(
            store=store, state=self.state, devices=self.devices, publish=published,
            counters=self.counters, max_packet=1 << 20, ttl=300_000, clock=lambda: self.now,
        )  # fmt: skip
        self.pruning = Pruning(
            store=store, devices=self.devices, presences=self.presences, counters=self.counters, max_age=90,
            per_user=3, patience=0.0, sweeps=lambda: True, clock=lambda: self.now + self.ahead,
            timer=lambda: self.now / 1_000,
        )  # fmt: skip

    async def put(self, *names: str, days: float = 0.0, seen: int | None = None) -> None:
        """Devices that were last seen this many days ago."""
        seen = self.now - int(days * DAY) if seen is None else seen
        await self.store.put_devices([Registration(device(name), "json", seen=seen) for name in names])

    async def names(self) -> list[str]:
        return [
            str(registration.device)
            for registration in await self.store.registrations(Device("", ""), 10_000)
        ]

    async def prune(self) -> None:
        """Runs one sweep and removes what it found."""
        await self.pruning.sweep()
        task = asyncio.create_task(self.pruning._crowded.run())
        await eventually(lambda: self.pruning._crowded.idle)
        task.cancel()

    async def hear(self, name: str, hello: Hello | None = None) -> None:
        await register(self.devices, {device(name): (Format.JSON, hello)})
        await self.presences.refresh([device(name)])


def device(name: str) -> Device:
    return Device(*name.split("@"))


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[WorkerParts]:
    store = await SqliteStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    parts = WorkerParts(store)
    await parts.pruning.sweep()  # the first sweep removes nothing
    yield parts
    await store.close()


async def test_devices_that_were_not_seen_for_long_are_removed_and_that_is_reported(
    parts: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "imqtt.server.pruning")
    await parts.put("alice@old", "bob@old", days=90.1)
    await parts.put("alice@phone", days=89.9)
    assert len((await parts.devices.of(["alice"]))["alice"]) == 2
    await parts.prune()
    assert await parts.names() == ["alice@phone"]
    assert [registration.device.device for registration in (await parts.devices.of(["alice"]))["alice"]] == [
        "phone"
    ]
    assert parts.counters.devices_removed == 2
    assert [record.getMessage() for record in caplog.records] == [
        "2 devices removed (not seen for 90 days): alice@old, bob@old"
    ]


async def test_of_a_user_with_too_many_those_not_seen_for_longest_are_removed(parts: WorkerParts) -> None:
    for number in range(5):
        await parts.put(f"alice@tab{number}", days=5 - number)
    await parts.put("bob@a", "bob@b", "bob@c", days=80)
    await parts.prune()
    assert await parts.names() == ["alice@tab2", "alice@tab3", "alice@tab4", "bob@a", "bob@b", "bob@c"]
    assert parts.counters.devices_removed == 2


async def test_a_present_device_is_never_removed(parts: WorkerParts) -> None:
    for number in range(5):
        await parts.put(f"alice@tab{number}", days=200 - number)
    for number in range(4):
        await parts.presences.note([(Device("alice", f"tab{number}"), Hello("n"))])
    await parts.prune()
    assert await parts.names() == ["alice@tab0", "alice@tab1", "alice@tab2", "alice@tab3"]


async def test_a_device_counts_as_seen_when_it_went_offline_if_that_is_known(parts: WorkerParts) -> None:
    await parts.put("alice@a", days=0.9)
    await parts.put("alice@b", "alice@c", "alice@d", days=0.5)
    for command in (Hello("n"), Status("offline", "n")):
        await parts.presences.note([(device("alice@a"), command)])
    await parts.prune()
    assert await parts.names() == ["alice@a", "alice@c", "alice@d"]


async def test_no_device_is_removed_while_presence_is_unknown(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise StateAway("not now")

    await parts.put("alice@old", days=200)
    monkeypatch.setattr(parts.state, "presence", away)
    with pytest.raises(StateAway):
        await parts.pruning.sweep()
    assert await parts.names() == ["alice@old"]


async def test_devices_of_an_older_store_count_from_now_on(parts: WorkerParts) -> None:
    await parts.put("alice@phone", seen=0)
    await parts.prune()
    assert [registration.seen for registration in (await parts.store.devices(["alice"]))["alice"]] == [NOW]
    parts.now += 91 * DAY
    await parts.prune()
    assert await parts.names() == []


async def test_a_thousand_abandoned_browsers_are_removed_in_one_sweep(parts: WorkerParts) -> None:
    await parts.put(*(f"alice@tab{number:04}" for number in range(1_200)), days=1)
    await parts.put(*(f"bob@tab{number:04}" for number in range(700)), days=100)
    await parts.prune()
    assert await parts.names() == [f"alice@tab{number:04}" for number in range(1_197, 1_200)]


async def test_the_last_seen_time_of_a_device_is_stored_once_a_day(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.hear("alice@phone", Hello("n", "android"))
    parts.now += DAY // 2
    await parts.hear("alice@phone")
    assert parts.devices.seen == {}
    parts.now += DAY // 2 + 1
    await parts.hear("alice@phone")
    assert parts.devices.seen == {device("alice@phone"): parts.now}
    monkeypatch.setattr(pruning, "WRITE_SECONDS", 0.01)
    task = asyncio.create_task(parts.pruning.run())

    async def written() -> bool:
        return (await parts.store.devices(["alice"]))["alice"][0].seen == parts.now

    await eventually(written)
    task.cancel()
    await asyncio.wait([task])
    await parts.hear("alice@phone")
    assert parts.devices.seen == {}


async def test_a_write_of_last_seen_times_that_fails_is_retried_and_ends_no_task(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OutcomeUnknown("locked"), StoreFull("no room"), RecordRefused("not now")]
    see = parts.store.see_devices

    async def fails_at_first(seen: Mapping[Device, int]) -> None:
        if failures:
            raise failures.pop(0)
        await see(seen)

    monkeypatch.setattr(parts.store, "see_devices", fails_at_first)
    monkeypatch.setattr(parts.pruning, "sweeps", lambda: False)
    monkeypatch.setattr(pruning, "WRITE_SECONDS", 0.01)
    await parts.put("alice@phone", days=2)
    await parts.hear("alice@phone")
    task = asyncio.create_task(parts.pruning.run())

    async def written() -> bool:
        assert not task.done()
        return (await parts.store.devices(["alice"]))["alice"][0].seen == parts.now

    await eventually(written)
    assert not failures
    task.cancel()
    await asyncio.wait([task])


async def test_a_user_who_adds_a_device_beyond_the_limit_soon_loses_the_oldest(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.put("alice@a", "alice@b", "alice@c", days=1)
    monkeypatch.setattr(pruning, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(parts.pruning, "sweeps", lambda: False)
    task = asyncio.create_task(parts.pruning.run())
    parts.now += 1
    await parts.hear("alice@new")
    await eventually(lambda: parts.counters.devices_removed)
    task.cancel()
    await asyncio.wait([task])
    assert await parts.names() == ["alice@b", "alice@c", "alice@new"]


async def test_a_removed_device_is_registered_again_by_its_next_command(parts: WorkerParts) -> None:
    await parts.put("alice@old", days=200)
    await parts.prune()
    await parts.hear("alice@old")
    assert await parts.store.devices(["alice"]) == {
        "alice": (Registration(device("alice@old"), "json", seen=NOW),)
    }


async def test_a_clock_that_jumps_ahead_removes_no_device_however_long_it_is_wrong(
    parts: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    await parts.put("alice@phone", days=1)
    await parts.put("alice@old", days=100)
    parts.ahead = 400 * DAY
    await parts.prune()
    parts.now += DAY
    await parts.prune()
    assert await parts.names() == ["alice@phone"]  # but the elapsed time counts
    message = "the clock has jumped ahead, and no device is removed by its time: it is 400 days further than"
    assert [record.getMessage().startswith(message) for record in caplog.records] == [True]
    parts.ahead = 0
    await parts.prune()
    await eventually(lambda: caplog.messages[-1].startswith("the clock is back, after"))


async def test_a_process_that_starts_with_a_wrong_clock_removes_nothing_at_first(parts: WorkerParts) -> None:
    await parts.put("alice@phone", days=1)
    parts.pruning._first = None
    parts.ahead = 400 * DAY
    await parts.prune()
    parts.ahead = 0
    parts.now += 6 * 3_600_000
    await parts.prune()
    assert await parts.names() == ["alice@phone"]


async def test_a_first_sweep_that_fails_does_not_count(
    parts: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise StateAway("not now")

    await parts.put("alice@phone", days=100)
    parts.pruning._first = None
    with monkeypatch.context() as patch:
        patch.setattr(parts.state, "presence", away)
        with pytest.raises(StateAway):
            await parts.pruning.sweep()
    await parts.prune()
    assert await parts.names() == ["alice@phone"]
    await parts.prune()
    assert await parts.names() == []
