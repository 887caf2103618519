"""The server, the broker or both are killed mid-stream: messages are delayed, and none is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.model import Accepted, Content, Send
from imqtt.mosquitto.broker import Mosquitto
from tests.device import RawDevice
from tests.faults.senders import Sender, audit
from tests.services import WITHIN, ServerProcess, eventually

Make = Callable[..., Awaitable[RawDevice]]


@pytest.mark.parametrize("victim", ["server", "broker", "both"])
async def test_no_message_is_lost_when_a_process_is_killed_mid_stream(
    broker: Mosquitto, server: ServerProcess, device: Make, stack: AsyncExitStack, victim: str
) -> None:
    senders = [
        Sender(await device("alice@phone"), 1_500),
        Sender(await device("bob@laptop"), 1_500),
    ]

    async def kill() -> None:
        for round_ in (1, 2, 3):
            await eventually(
                lambda round_=round_: sum(len(sender.accepted) for sender in senders) > 500 * round_
            )
            if victim in ("server", "both"):
                await server.kill()
            if victim in ("broker", "both"):
                await broker.kill()
                await broker.start()
            if victim in ("server", "both"):
                await server.start()

    async with asyncio.timeout(5 * WITHIN), asyncio.TaskGroup() as tasks:
        for sender in senders:
            tasks.create_task(sender.run())
        tasks.create_task(kill())
    await audit(senders, await device("bob@auditor"))


async def test_server_and_device_wait_for_a_broker_that_is_not_running_yet(
    broker: Mosquitto, tmp_path: Path, device: Make
) -> None:
    await broker.stop()
    server = ServerProcess(broker, tmp_path, forked=True)
    starting = asyncio.create_task(server.start())
    await eventually(lambda: server.pid is not None)
    await broker.start()
    await starting
    try:
        alice = await device("alice@phone")
        assert isinstance(await alice.send("u:alice", "1"), Accepted)
    finally:
        await server.kill()


async def test_commands_sent_while_the_server_is_down_are_carried_out_after_its_restart(
    broker: Mosquitto, server: ServerProcess, device: Make
) -> None:
    alice = await device("alice@phone")
    assert isinstance(await alice.send("u:alice", "0"), Accepted)
    await server.kill()
    for number in range(1, 200):
        await alice.command(Send("u:alice", str(number), Content(text="hi")))
    await server.start()
    last = await alice.answer("199")
    assert isinstance(last, Accepted)
    assert last.seq == 200
