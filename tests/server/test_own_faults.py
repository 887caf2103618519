"""A fault of the server's own code in one command: told to its sender, and no end to the partition."""

from collections.abc import Awaitable, Callable

import pytest

from imqtt.core import sequencing
from imqtt.model import Accepted, Content, Device, Rejected, Send
from imqtt.server import intake
from imqtt.server.app import Server
from tests.device import RawDevice

Make = Callable[..., Awaitable[RawDevice]]


async def test_the_rest_of_the_batch_is_carried_out(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(sender: Device, send: Send) -> sequencing.Message:
        if send.content.text == "poison":
            raise ZeroDivisionError
        return sequencing.receive(sender, send)

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
