"""Two workers register one device: neither loses the other's information.

The store is SQLite's own; a test injects the other worker's actions between a read and the write.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from imqtt.model import Device, DeviceFormat, Hello, Registration
from imqtt.protocol import Format
from imqtt.server.devices import Devices
from imqtt.server.problems import Problems
from imqtt.state.memory import MemoryState
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.server.registering import register

PHONE = Device("alice", "phone")
NOW = 1_790_000_000_000
HELLO = Hello("n1", "android", 4_096)
WHOLE = Registration(PHONE, "json", "android", 4_096, NOW)


class InterleavedStore(SqliteStore):
    """Calls `meanwhile` before the next registration is written."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def put_devices(self, registrations: Sequence[Registration | DeviceFormat]) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        await super().put_devices(registrations)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[InterleavedStore]:
    store = await InterleavedStore.open(tmp_path / "imqtt.db", Identity.draw(16))
    assert isinstance(store, InterleavedStore)
    yield store
    await store.close()


@pytest.fixture
def workers(store: InterleavedStore) -> tuple[Devices, Devices]:
    """Two workers on one store and one state."""
    state = MemoryState(rate=10_000, burst=10_000)
    return Devices(store, state, Problems(), lambda: NOW), Devices(store, state, Problems(), lambda: NOW)


@pytest.mark.parametrize(
    "before", [[], [Registration(PHONE, "protobuf", "old", 65_536)]], ids=["new", "known"]
)
async def test_a_hello_that_another_worker_has_received_is_kept(
    store: InterleavedStore, workers: tuple[Devices, Devices], before: list[Registration]
) -> None:
    first, second = workers
    await store.put_devices(before)
    store.meanwhile = lambda: register(first, {PHONE: (Format.JSON, HELLO)})
    registered = await register(second, {PHONE: (Format.JSON, None)})
    assert await store.devices(["alice"]) == {"alice": (WHOLE,)}
    assert registered.current == {PHONE: WHOLE}  # so this batch's events are in its format, too
    assert await first.of(["alice"]) == {"alice": (WHOLE,)}


async def test_a_device_is_answered_in_the_format_that_it_used_here(
    store: InterleavedStore, workers: tuple[Devices, Devices]
) -> None:
    first, second = workers
    await store.put_devices([Registration(PHONE, "protobuf")])

    async def register_twice_elsewhere() -> None:
        await register(first, {PHONE: (Format.JSON, HELLO)})
        await register(first, {PHONE: (Format.PROTOBUF, None)})

    store.meanwhile = register_twice_elsewhere
    registered = await register(second, {PHONE: (Format.JSON, None)})
    assert registered.current == {PHONE: WHOLE}


async def test_the_worker_that_receives_a_hello_writes_all_of_its_fields(
    store: InterleavedStore, workers: tuple[Devices, Devices]
) -> None:
    first, second = workers
    store.meanwhile = lambda: register(second, {PHONE: (Format.PROTOBUF, None)})
    registered = await register(first, {PHONE: (Format.JSON, HELLO)})
    assert registered.current == {PHONE: WHOLE}
    assert await store.devices(["alice"]) == {"alice": (WHOLE,)}


async def test_a_hello_that_differs_only_in_format_is_written_with_all_of_its_fields(
    store: InterleavedStore, workers: tuple[Devices, Devices]
) -> None:
    await store.put_devices([Registration(PHONE, "protobuf", "android", 4_096)])
    store.meanwhile = lambda: store.remove_device(PHONE)
    await register(workers[0], {PHONE: (Format.JSON, HELLO)})
    assert await store.devices(["alice"]) == {"alice": (WHOLE,)}
