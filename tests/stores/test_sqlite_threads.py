"""Threads carry out reads for the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from imqtt.stores.sqlite.threads import Threads
from tests.services import eventually

COUNT = 3


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(COUNT, "test")
    yield threads
    await threads.close()


def alive() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("test-"))


async def test_each_caller_gets_its_own_result_or_error(threads: Threads) -> None:
    def fail() -> None:
        raise ValueError("no")

    calls = [threads.call(fail if number % 3 == 0 else lambda number=number: number) for number in range(100)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [n for n in range(100) if n % 3]
    assert all(isinstance(results[number], ValueError) for number in range(0, 100, 3))


async def test_threads_are_started_when_calls_have_to_wait(threads: Threads) -> None:
    for _ in range(10):
        await threads.call(lambda: None)
    assert alive() == ["test-0"]
    release = threading.Event()
    calls = [threads.call(release.wait) for _ in range(COUNT + 2)]
    await eventually(lambda: len(alive()) == COUNT)
    release.set()
    assert await asyncio.gather(*calls) == [True] * (COUNT + 2)
    assert len(alive()) == COUNT


async def test_calls_that_do_not_wait_for_long_wake_one_thread(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imqtt.stores.sqlite.threads.PATIENCE", 60.0)
    await asyncio.gather(*(threads.call(lambda: None) for _ in range(50)))
    assert alive() == ["test-0"]


async def test_a_long_call_delays_no_short_one_for_long(threads: Threads) -> None:
    release = threading.Event()
    long = threads.call(release.wait)
    for _ in range(10):
        async with asyncio.timeout(5):
            await threads.call(lambda: None)
    assert not long.done()
    release.set()
    await long


async def test_no_call_is_forgotten_while_threads_fall_asleep(threads: Threads) -> None:
    """Each call meets a thread that has just found nothing to do."""
    async with asyncio.timeout(30):
        for _ in range(3_000):
            await asyncio.gather(threads.call(lambda: None), threads.call(lambda: None))


async def test_a_cancelled_call_disturbs_no_other(threads: Threads) -> None:
    release = threading.Event()
    calls = [threads.call(release.wait) for _ in range(2 * COUNT)]
    for call in calls[::2]:
        call.cancel()
    release.set()
    assert await asyncio.gather(*calls[1::2]) == [True] * COUNT


async def test_closing_waits_for_calls_and_ends_the_threads() -> None:
    threads = Threads(COUNT, "test")
    release = threading.Event()
    calls = [threads.call(release.wait) for _ in range(2 * COUNT)]
    closing = asyncio.create_task(threads.close())
    await asyncio.sleep(0)
    assert not closing.done()
    release.set()
    await closing
    assert all(call.result() for call in calls)
    assert alive() == []
