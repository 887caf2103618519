"""A server with a wrong clock: dates may be wrong for a while, but nothing waits."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.model import Accepted, Rejected
from imqtt.mosquitto.broker import Mosquitto
from imqtt.server.app import Server, wall_clock
from imqtt.serving import serving
from tests.device import RawDevice
from tests.server.conftest import config_for

DAY = 86_400_000


class Clock:
    """A server's clock, `ahead` by this many milliseconds."""

    def __init__(self) -> None:
        self.ahead = 0

    def now(self) -> int:
        return wall_clock() + self.ahead


async def accepted(device: RawDevice, conversation: str, name: str) -> Accepted:
    answer = await device.send(conversation, name)
    assert isinstance(answer, Accepted)
    return answer


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_was_a_day_ahead_delays_nothing(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Callable[..., object], restarted: bool
) -> None:
    clock, config = Clock(), config_for(broker, tmp_path)
    server: Server = await stack.enter_async_context(serving(config, clock.now))
    alice: RawDevice = await device("alice@phone")
    await accepted(alice, "u:alice", "1")
    clock.ahead = DAY
    tomorrow = await accepted(alice, "d:alice:bob", "1")
    clock.ahead = 0
    if restarted:
        await stack.aclose()
        server = await stack.enter_async_context(serving(config, clock.now))
        alice = await stack.enter_async_context(RawDevice(broker, "alice@laptop"))
    assert server.worker.trouble == ""

    now = wall_clock()
    quiet = await accepted(alice, "u:alice", "2")
    new = await accepted(alice, "d:alice:carol", "1")
    assert max(abs(quiet.time - now), abs(new.time - now)) < 60_000
    assert server.worker.trouble == ""

    written = await accepted(alice, "d:alice:bob", "2")
    assert written.seq == 2
    assert written.id > tomorrow.id
    assert tomorrow.time <= written.time <= tomorrow.time + 1
    assert "s behind the last events of some conversations" in server.worker.trouble
    health = server.health()
    assert (health.status, health.clock) == ("degraded", server.worker.trouble)


async def test_a_clock_before_2025_rejects_messages_until_it_is_set(
    broker: Mosquitto, tmp_path: Path, stack: AsyncExitStack, device: Callable[..., object]
) -> None:
    clock = Clock()
    clock.ahead = -wall_clock()
    server = await stack.enter_async_context(serving(config_for(broker, tmp_path), clock.now))
    alice: RawDevice = await device("alice@phone")
    refused = await alice.send("u:alice", "1")
    assert isinstance(refused, Rejected)
    assert (refused.code, refused.retryable) == ("unavailable", True)
    assert "before 2025" in refused.reason
    assert "before 2025" in server.health().clock
    clock.ahead = 0
    assert (await accepted(alice, "u:alice", "1")).seq == 1
