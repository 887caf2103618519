"""Every suite here runs once for each store or for each state."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from imqtt.state.base import State
from imqtt.stores.base import Store
from tests.contract.states import BURST, RATE, STATES
from tests.contract.stores import PARTITIONS, STORES


class Place:
    """The location of one store. `kind` is its name in `STORES`."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.location = STORES[kind].locate(directory)

    async def open(self, partitions: int = PARTITIONS) -> Store:
        return await STORES[self.kind].open(self.location, partitions)


@pytest.fixture(params=sorted(STORES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    store = await place.open()
    yield store
    await store.close()


@pytest.fixture(params=sorted(STATES))
def open_state(request: pytest.FixtureRequest) -> Callable[[int, int], Awaitable[State]]:
    """Opens an empty state with this rate and burst."""
    return STATES[request.param]


@pytest.fixture
async def state(open_state: Callable[[int, int], Awaitable[State]]) -> AsyncIterator[State]:
    state = await open_state(RATE, BURST)
    yield state
    await state.close()
