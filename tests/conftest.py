"""Fixtures for all tests, and reports of failures. Each test that needs a broker has its own."""

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

# `make test` tries the same examples each time. `make verify` uses the profile "verify", which tries new and
# more examples and prints how to repeat a failure. No deadlines, because a busy machine is slow at times.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("verify", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("test")


def pytest_configure() -> None:
    try:
        use_given()
    except SystemExit as error:
        pytest.exit(str(error), returncode=2)


def pytest_xdist_auto_num_workers() -> int:
    """More than the number of cores: tests mostly wait for processes."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports where a failed test's files are kept, and the ends of its logs."""
    report = yield
    directory = item.stash.get(DIRECTORY, None)
    if report.failed and directory is not None:
        report.sections.append((f"kept in {directory}", tails(directory)))
    return report


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """pytest's own `tmp_path`, which is kept if the test fails."""
    request.node.stash[DIRECTORY] = tmp_path
    return tmp_path


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A running Mosquitto. `broker.passwords.add("alice@phone")` returns a password that works at once."""
    broker = Mosquitto(tmp_path / "broker", **listeners())
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def server(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A running `imqtt serve` on `broker`, in its own process."""
    async with ServerProcess(broker, tmp_path, forked=True) as server:
        yield server
