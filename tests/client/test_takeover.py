"""Two processes with one credential end each other's connections: both report it and slow down."""

import asyncio
import logging
import time

import pytest

from imqtt.client import Client, ConnectionState, Phase
from imqtt.core.connection import UNCONTESTED
from imqtt.errors import TakenOver
from imqtt.mosquitto.broker import Mosquitto
from tests.cli.commands import imqtt
from tests.client.conftest import Devices
from tests.client.fake_server import FakeServer
from tests.client.test_connection import cut
from tests.client.test_messages import TALK
from tests.services import WITHIN, eventually
from tests.verification.chaos.proxy import Proxy


def reports_takeover(client: Client) -> bool:
    return isinstance(client.state.error, TakenOver)


async def test_two_processes_with_one_credential_report_it_and_slow_down(
    fake: FakeServer, device: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with device() as first, device(wait=0) as second:
        seen: list[ConnectionState] = []

        async def watch(client: Client) -> None:
            async for state in client.states():
                if isinstance(state.error, TakenOver) and state.retry_in > 2.4:
                    seen.append(state)  # noqa: PERF401 - read while it grows

        watching = [asyncio.create_task(watch(client)) for client in (first, second)]
        await eventually(lambda: reports_takeover(first) and reports_takeover(second))
        await eventually(lambda: seen)  # it waits longer than after a lost connection
        state = seen[0]
        assert state.phase is Phase.IDLE
        assert "connected as alice@phone" in state.reason
        assert "a device of its own" in state.reason
        # The process that has the connection meanwhile works.
        connected = second if first.state.phase is not Phase.ESTABLISHED else first
        await asyncio.wait_for(connected.send(TALK, "hi"), WITHIN)
        for task in watching:
            task.cancel()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_revoked_device_reports_no_takeover(
    broker: Mosquitto, fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        states, reported = alice.states(), []
        revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory)
        assert revoked.status == 0
        while not reported or reported[-1].phase is not Phase.CLOSED:
            reported.append(await asyncio.wait_for(anext(states), WITHIN))
        assert "no broker accepts the password" in reported[-1].reason
        assert not [
            error for error in reported if isinstance(error.error, TakenOver) or "taken over" in error.reason
        ]


async def test_a_takeover_that_the_broker_reports_is_believed_once_it_accepts_the_device_again(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        states, reported = alice.states(), []
        alice._parts.connector._suspicion = error = TakenOver("another process")
        cut(alice)
        while not reported or reported[-1][0] is not Phase.CONNECTING or reported[-1][1] is not error:
            state = await asyncio.wait_for(anext(states), WITHIN)
            reported.append((state.phase, state.error))
        assert (Phase.IDLE, error) not in reported
        await eventually(lambda: alice.state.error is None)


@pytest.mark.parametrize("behind_a_proxy", [False, True])
async def test_a_broker_that_is_killed_again_and_again_is_no_takeover(
    broker: Mosquitto, device: Devices, behind_a_proxy: bool
) -> None:
    async with Proxy(broker.port) as proxy:
        address = f"127.0.0.1:{proxy.port if behind_a_proxy else broker.port}"
        async with device(brokers=address, wait=0) as alice:
            for _ in range(4):
                await eventually(lambda: alice._parts.uplink.mqtt)
                await broker.kill()
                await eventually(lambda: alice.state.tries > 1)  # it has tried and found no broker
                assert not reports_takeover(alice), alice.state
                await broker.start()


async def test_a_network_that_fails_is_no_takeover(broker: Mosquitto, device: Devices) -> None:
    async with Proxy(broker.port) as proxy, device(brokers=f"127.0.0.1:{proxy.port}", wait=0) as alice:
        for number in (1, 2, 3, 4):
            await eventually(lambda: alice._parts.uplink.mqtt)
            proxy.drop()
            await eventually(lambda number=number: alice.state.tries >= number)
            assert not reports_takeover(alice), alice.state


async def test_a_connection_that_lasts_ends_the_contest(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert UNCONTESTED > 60.0  # the other process may wait that long
    monkeypatch.setattr("imqtt.client.connector.UNCONTESTED", 0.3)
    async with device() as alice:
        states, reported = alice.states(), []
        await anext(states)  # the present one
        for _ in range(3):
            alice._parts.connector._machine.taken_over(time.monotonic())
        cut(alice)
        while not reported or reported[-1] != (Phase.ESTABLISHED, None):
            state = await asyncio.wait_for(anext(states), WITHIN)
            reported.append((state.phase, state.error))
            if state.phase is Phase.IDLE:
                alice._parts.connector._error = error = TakenOver("another process")
        assert (Phase.ESTABLISHED, error) in reported  # reported while it is connected too
