"""Common fixtures, and the report about a failure. Each test that needs a broker has its own."""

import os
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from imqtt.mosquitto.broker import Mosquitto
from tests.given_mosquitto import use_given
from tests.logs import tails
from tests.ports import listeners
from tests.services import ServerProcess

DIRECTORY = pytest.StashKey[Path]()

# `make test` tries the same examples each time. `make verify` tries others and more of them: it selects the
# profile "verify", and prints what repeats a failure. No deadlines: a busy machine is slow now and then.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("verify", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("test")


def pytest_configure() -> None:
    try:
        use_given()
    except SystemExit as error:
        pytest.exit(str(error), returncode=2)


def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores, because a test mostly waits for processes to start and to answer."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports the directory of a failed test, and the ends of its processes' logs."""
    report = yield
    directory = item.stash.get(DIRECTORY, None)
    if report.failed and directory is not None:
        report.sections.append((f"kept in {directory}", tails(directory)))
    return report


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Like pytest's own, but kept if the test fails."""
    request.node.stash[DIRECTORY] = tmp_path
    return tmp_path


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A running Mosquitto. `broker.passwords.add("alice@phone")` gives a password that works at once."""
    broker = Mosquitto(tmp_path / "broker", **listeners())
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def server(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A running `imqtt serve` process on `broker`."""
    async with ServerProcess(broker, tmp_path) as server:
        yield server
