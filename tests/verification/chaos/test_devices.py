"""Real devices on a real broker and server: their histories are complete and correct."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from imqtt.mosquitto.broker import Mosquitto
from tests.server.conftest import stack as stack
from tests.services import WITHIN, ServerProcess, eventually
from tests.verification.chaos.devices import (
    DeviceEnded,
    DeviceProcess,
    Plan,
    fresh_device_history,
    settle,
    sync_fresh_device,
)
from tests.verification.chaos.store_reader import read_store
from tests.verification.checker import history
from tests.verification.checker.check import check
from tests.verification.checker.history import Line, Row, merge, now, read

TALK = "d:alice:bob"
Make = Callable[..., DeviceProcess]


@pytest.fixture
async def device(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Make]:
    """`device("alice@phone")`: a device that is not started. Its process ends with the test."""
    made: list[DeviceProcess] = []

    def make(name: str, **fields: object) -> DeviceProcess:
        user, device = name.split("@")
        given = {
            "user": user, "device": device, "password": broker.passwords.add(name),
            "brokers": (f"{broker.host}:{broker.port}",), "history": str(tmp_path / f"{user}-{device}.jsonl"),
            "conversations": (TALK, f"u:{user}"), "rate": 20.0, "seed": 1,
            "store": str(tmp_path / f"{user}-{device}.db"), "timing": {"sync": 1.0}, "marks": 5.0, **fields,
        }  # fmt: skip
        made.append(DeviceProcess(Plan(**given)))  # type: ignore[arg-type]  # names are Plan's own
        return made[-1]

    yield make
    for device in made:
        await device.kill()


def lines_of(device: DeviceProcess) -> list[Line]:
    return list(read(Path(device.plan.history)))


def of_type(lines: list[Line], kind: type[Any]) -> list[Any]:
    return [line for line in lines if isinstance(line, kind)]


async def all_accepted(device: DeviceProcess, more: int) -> None:
    wanted = device.progress.accepted + more
    await eventually(lambda: device.progress.accepted >= wanted, what=f"answers to {device}")


async def test_the_histories_of_devices_match_the_store(
    server: ServerProcess, broker: Mosquitto, device: Make, tmp_path: Path
) -> None:
    phone, laptop = device("alice@phone"), device("alice@laptop", format="json")
    other = device("bob@phone", kind="plain")
    devices = [phone, laptop, other]
    await asyncio.gather(*(device.start() for device in devices))
    await asyncio.gather(*(all_accepted(device, 20) for device in devices))
    await phone.kill()
    assert phone.pid is None
    await all_accepted(laptop, 20)
    before = phone.progress.accepted
    await phone.start()
    await all_accepted(phone, 20)
    assert phone.progress.accepted >= before + 20  # the count continues after the restart
    assert await other.replay(10) == 10
    lines = await ended(devices, broker, server)
    verdict = check(lines)
    assert verdict.findings == []
    assert not verdict.unseen
    # The last message before a kill may never have left the device, and of two recalls one is refused.
    refused = {(line.process, line.name) for line in of_type(lines, history.Fail)}
    assert verdict.sent - len(refused) - 1 <= verdict.stored <= verdict.sent - len(refused)
    assert verdict.accepted > verdict.stored - 5
    assert verdict.stored >= 100
    # The histories contain something to check.
    assert {line.conversation for line in of_type(lines, history.Stored)} == {TALK, "u:alice", "u:bob"}
    assert len(of_type(lines_of(phone), history.Start)) == 2
    assert {line.process for line in of_type(lines, history.Seen)} == {"alice@phone", "alice@laptop"}
    marked = {(line.conversation, line.user) for line in of_type(lines, history.Marked) if line.read}
    assert marked >= {(TALK, "alice"), (TALK, "bob"), ("u:alice", "alice")}
    assert len([line for line in of_type(lines, history.Held) if line.fresh]) == 6


async def ended(
    devices: list[DeviceProcess], broker: Mosquitto, server: ServerProcess, epoch: int = 0
) -> list[Line]:
    """All lines of the devices, and of the store at the end."""
    for device in devices:
        await device.command("pause", WITHIN)
    await settle(devices, WITHIN)
    assert all([(await device.finish(WITHIN)).count == 2 for device in devices])
    for device in devices:
        await device.kill()
        assert await sync_fresh_device(device.plan, broker=f"{broker.host}:{broker.port}") == 2
    histories = [
        path for device in devices for path in (Path(device.plan.history), fresh_device_history(device.plan))
    ]
    return [*merge(histories), *await read_store(f"sqlite:///{server.store}", epoch)]


def seen_again_without_a_restart(lines: list[Line]) -> list[Row]:
    """Events seen more than once, except for the one that a kill left unfinished."""
    seen: list[tuple[int, int, str, str]] = []
    repeated: list[Row] = []
    begins = False
    for line in lines:
        begins = begins or isinstance(line, history.Start)
        if isinstance(line, history.Seen):
            place = line.row[:4]  # a recalled message has another value
            if place in seen and not (begins and place == seen[-1]):
                repeated.append(line.row)
            seen.append(place)
            begins = False
    return repeated


async def test_messages_in_the_outbox_at_a_kill_are_accepted_after_the_restart(
    server: ServerProcess, device: Make
) -> None:
    phone = device("alice@phone", rate=50.0)
    await phone.start()
    await all_accepted(phone, 5)
    await server.kill()
    invoked = len(phone_lines := lines_of(phone))
    await eventually(lambda: len(lines_of(phone)) > invoked + 40)
    await phone.kill()
    taken = {line.name for line in of_type(lines_of(phone), history.Queued)}
    assert len(taken) > len(of_type(phone_lines, history.Ok))
    await server.start()
    await phone.start()
    await phone.command("pause", WITHIN)
    await phone.settle(WITHIN)
    await phone.finish(WITHIN)
    oks = [line.name for line in of_type(lines_of(phone), history.Ok)]
    seen = [line.row.name for line in of_type(lines_of(phone), history.Seen)]
    # A message that was answered just before the kill has no `Ok`, only its place in the log.
    assert taken <= set(seen)
    assert len(taken - set(oks)) <= 2
    assert seen_again_without_a_restart(lines_of(phone)) == []


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.verify)])
async def test_a_device_that_is_killed_repeatedly_sees_each_event_once(
    server: ServerProcess, device: Make, kills: int
) -> None:
    phone, laptop = device("alice@phone", rate=50.0), device("alice@laptop", rate=50.0)
    await asyncio.gather(phone.start(), laptop.start())
    for number in range(kills):
        await all_accepted(laptop, 20 + number)
        await phone.kill()
        await phone.start()
    for device in (phone, laptop):
        await device.command("pause", WITHIN)
    await settle([phone, laptop], WITHIN)
    for device in (phone, laptop):
        await device.finish(WITHIN)
    seen = {
        device.name: [line.row[:4] for line in of_type(lines_of(device), history.Seen)]
        for device in (phone, laptop)
    }
    assert seen_again_without_a_restart(lines_of(phone)) == []
    assert set(seen["alice@phone"]) == set(seen["alice@laptop"])
    names = [line.name for line in of_type(lines_of(phone), history.Invoke)]
    assert len(names) == len(set(names))


async def test_a_paused_device_continues_where_it_was(server: ServerProcess, device: Make) -> None:
    phone = device("alice@phone")
    await phone.start()
    await all_accepted(phone, 5)
    phone.pause()
    before = now()
    with pytest.raises(TimeoutError):
        await phone.command("go", 0.3)
    assert phone.progress.newest < before
    phone.resume()
    await eventually(lambda: phone.progress.newest > before)
    phone.pause()
    await phone.kill()
    assert phone.ended == -9
    with pytest.raises(DeviceEnded):
        await phone.command("go", WITHIN)


async def test_a_device_that_fails_reports_the_reason(
    server: ServerProcess, device: Make, tmp_path: Path
) -> None:
    phone = device("alice@phone", store=str(tmp_path / "nowhere" / "phone.db"))
    with pytest.raises(DeviceEnded, match="cannot be created"):
        await phone.start()


async def test_a_plain_device_that_never_resends_gives_up_unanswered_messages(
    server: ServerProcess, broker: Mosquitto, device: Make
) -> None:
    once = device("alice@plain", kind="plain", resend=0.0, patience=0.5)
    await once.start()
    await all_accepted(once, 5)
    await server.kill()
    await eventually(lambda: any(isinstance(line, history.Info) for line in lines_of(once)))
    await once.kill()
    lines = lines_of(once)
    given_up = {line.name for line in of_type(lines, history.Info)}
    assert given_up & {line.name for line in of_type(lines, history.Queued)}  # the broker had acked it
    assert not given_up & {line.name for line in of_type(lines, history.Ok)}


@pytest.mark.verify
async def test_devices_record_that_they_restarted_a_log_after_a_restore(
    server: ServerProcess, broker: Mosquitto, device: Make, tmp_path: Path
) -> None:
    phone, laptop = device("alice@phone"), device("alice@laptop")
    other = device("bob@phone", kind="plain")
    devices = [phone, laptop, other]
    url = f"sqlite:///{server.store}"
    backup = tmp_path / "backup.db"
    await asyncio.gather(*(device.start() for device in devices))
    await asyncio.gather(*(all_accepted(device, 20) for device in devices))
    await server.stop()
    shutil.copy(server.store, backup)
    await server.start()
    await asyncio.gather(*(all_accepted(device, 20) for device in devices))
    await server.stop()
    await laptop.kill()
    between: list[Line] = [*await read_store(url, 0)]
    shutil.copy(backup, server.store)
    heads = {log.conversation: len(log.rows) for log in await read_store(url, 1)}
    between.append(history.Restored("harness", now(), 0, heads))
    await server.start()
    await laptop.start()
    await asyncio.gather(*(all_accepted(device, 20) for device in devices))
    assert await other.replay(50) == 50
    await all_accepted(phone, 20)
    lines = sorted([*await ended(devices, broker, server, 1), *between], key=lambda line: line.at)
    verdict = check(lines)
    assert verdict.findings == []
    begun = {(line.process, line.conversation) for line in of_type(lines, history.LogRestarted)}
    assert begun == {
        (device, talk) for device in ("alice@phone", "alice@laptop") for talk in (TALK, "u:alice")
    }
