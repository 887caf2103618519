"""A writer that is killed in mid-stream loses no acknowledged append and leaves no hole."""

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from imqtt.stores.base import AppendConflict, Store
from tests.contract.conftest import Place
from tests.contract.stores import STORES, log
from tests.services import WITHIN

DURABLE = sorted(name for name, kind in STORES.items() if not kind.of_one_process)


@pytest.mark.parametrize("place", DURABLE, indirect=True)
@pytest.mark.parametrize("appends", [1, 40, 400])
async def test_acknowledged_appends_survive_kill_9(place: Place, appends: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.contract.writing", place.kind, place.location, stdout=PIPE
    )
    assert process.stdout is not None
    acknowledged: dict[str, int] = {}

    def note(line: bytes) -> None:
        conversation, seq = line.decode().split()
        acknowledged[conversation] = int(seq)

    for _ in range(appends):
        note(await asyncio.wait_for(process.stdout.readline(), WITHIN))
    process.kill()
    *whole, _ = (await process.stdout.read()).split(b"\n")  # the last line may have been cut off
    for line in whole:
        note(line)
    await process.wait()

    store = await place.open()
    for conversation, last in acknowledged.items():
        try:
            await continue_log(store, conversation, last)
        except AppendConflict:  # a server may carry out the last append of the killed process only now
            await continue_log(store, conversation, last)
    await store.close()


async def continue_log(store: Store, conversation: str, acknowledged: int) -> None:
    events = await store.events_after(conversation, 0, 1_000_000)
    assert len(events) >= acknowledged
    assert events == [record.event for record in log(conversation, 1, len(events))]
    await store.append(log(conversation, len(events) + 1, len(events) + 1))
