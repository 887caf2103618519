"""What is killed in mid-stream: the server, the broker, both; each costs time and never a message."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.broker.errors import LinkError
from imqtt.cli.mosquitto import Mosquitto
from imqtt.model import Accepted, Content, Cursor, Event, Page, Position, Send, Sync
from tests.device import RawDevice
from tests.services import ServerProcess, eventually

Make = Callable[..., Awaitable[RawDevice]]
CONVERSATION = "d:alice:bob"


class Sender:
    """Sends numbered messages, and sends again whatever is not accepted: what any client must do."""

    def __init__(self, device: RawDevice, count: int) -> None:
        self.device = device
        self.wanted = [f"{device.device.user}-{number}" for number in range(count)]
        self.accepted: dict[str, Accepted] = {}
        self._seen = 0

    def look(self) -> None:
        for frame in self.device.frames[self._seen :]:
            self._seen += 1
            if isinstance(frame, Accepted):
                before = self.accepted.setdefault(frame.client_msg_id, frame)
                assert before == frame, "an answer changed between resends"

    async def run(self) -> None:
        while True:
            self.look()
            missing = [name for name in self.wanted if name not in self.accepted]
            if not missing:
                return
            for name in missing[:50]:
                try:
                    await asyncio.wait_for(
                        self.device.command(Send(CONVERSATION, name, Content(text=name))), 2
                    )
                except (LinkError, OSError, TimeoutError):
                    await self._reconnect()
            deadline = asyncio.get_running_loop().time() + 1.0
            while asyncio.get_running_loop().time() < deadline:
                self.look()
                if all(name in self.accepted for name in missing[:50]):
                    break
                await asyncio.sleep(0.005)

    async def _reconnect(self) -> None:
        await self.device.disconnect()
        while True:
            try:
                await self.device.connect()
            except (LinkError, OSError):
                await asyncio.sleep(0.1)
            else:
                return


async def log_of(device: RawDevice) -> list[Event]:
    """The whole conversation, read anew from the server."""
    events: list[Event] = []
    cursor = Cursor(CONVERSATION)
    while True:
        start = len(device.frames)
        await device.command(Sync((cursor,)))
        page = await device.frame(Page, since=start)
        events += [event for part in page.slices for event in part.events]
        if not page.more:
            return events
        cursor = Cursor(CONVERSATION, events[-1].seq, events[-1].id)


async def audit(senders: list[Sender], reader: RawDevice) -> None:
    events = await log_of(reader)
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "a hole"
    names = [event.client_msg_id for event in events]
    assert len(names) == len(set(names)), "stored twice"
    by_name = {event.client_msg_id: event for event in events}
    for sender in senders:
        sender.look()
        for name, accepted in sender.accepted.items():
            assert name in by_name, f"{name} was accepted and is lost"
            assert by_name[name].position == Position(accepted.seq, accepted.id)


@pytest.mark.parametrize("victim", ["server", "broker", "both"])
async def test_killed_in_mid_stream(
    broker: Mosquitto, server: ServerProcess, device: Make, stack: AsyncExitStack, victim: str
) -> None:
    senders = [
        Sender(await device("alice/phone"), 1_500),
        Sender(await device("bob/laptop"), 1_500),
    ]

    async def kill() -> None:
        for round_ in (1, 2, 3):
            await eventually(
                lambda round_=round_: sum(len(it.accepted) for it in senders) > 500 * round_, within=30
            )
            if victim in ("server", "both"):
                await server.kill()
            if victim in ("broker", "both"):
                await broker.kill()
                await broker.start()
            if victim in ("server", "both"):
                await server.start()

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for sender in senders:
            tasks.create_task(sender.run())
        tasks.create_task(kill())
    await audit(senders, await device("bob/auditor"))


async def test_a_broker_that_is_not_there_yet(broker: Mosquitto, tmp_path: Path, device: Make) -> None:
    await broker.stop()
    server = ServerProcess(broker, tmp_path)
    starting = asyncio.create_task(server.start())
    await eventually(lambda: server.pid is not None)
    await broker.start()
    await starting
    try:
        alice = await device("alice/phone")
        assert isinstance(await alice.send("u:alice", "1"), Accepted)
    finally:
        await server.kill()


async def test_commands_sent_while_the_server_is_away_are_carried_out_when_it_is_back(
    broker: Mosquitto, server: ServerProcess, device: Make
) -> None:
    alice = await device("alice/phone")
    assert isinstance(await alice.send("u:alice", "0"), Accepted)
    await server.kill()
    for number in range(1, 200):
        await alice.command(Send("u:alice", str(number), Content(text="hi")))
    await server.start()
    last = await alice.answer("199")
    assert isinstance(last, Accepted)
    assert last.seq == 200
