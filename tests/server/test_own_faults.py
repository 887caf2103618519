"""A fault of the server's own code in one command: told to its sender, and no end to the partition."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from imqtt.core import sequencing
from imqtt.errors import SetupError
from imqtt.model import Accepted, Content, Device, Rejected, Send
from imqtt.server import intake
from imqtt.server.app import Server
from imqtt.serving import serving
from tests.device import RawDevice
from tests.server.conftest import config_for

Make = Callable[..., Awaitable[RawDevice]]


async def test_the_rest_of_the_batch_is_carried_out(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(sender: Device, send: Send, partition: int) -> sequencing.Message:
        if send.content.text == "poison":
            raise ZeroDivisionError
        return sequencing.receive(sender, send, partition)

    monkeypatch.setattr(intake, "receive", receive)
    alice = await device("alice/phone")
    for name, text in (("1", "good"), ("2", "poison"), ("3", "good")):
        await alice.command(Send("u:alice", name, Content(text=text)))
    third = await alice.answer("3")
    assert isinstance(third, Accepted)
    assert third.seq == 2
    second = await alice.answer("2")
    assert isinstance(second, Rejected)
    assert (second.code, second.retryable, second.command) == ("error", True, "send")
    assert running.counters.failures >= 1


async def test_more_partitions_than_ids_have_room_for(broker: Mosquitto, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="1024"):
        async with serving(config_for(broker, tmp_path, partitions=1_025)):
            pass
    async with serving(config_for(broker, tmp_path, partitions=3)) as server:
        assert server.partitions == 3
    async with serving(config_for(broker, tmp_path, partitions=5)) as server:
        assert server.partitions == 3  # fixed when the store was created
