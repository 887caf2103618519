"""Faults that the simulation found, each in the smallest world that reproduces it."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from imqtt.broker.link import LinkSettings, Packet
from imqtt.client import Format, Restarted
from imqtt.core.partitions import partition_of
from imqtt.core.view import EMPTY
from imqtt.model import AnyFrame, Content, Device, Position, Rejected, Send
from imqtt.protocol import decode_frames, encode_command
from imqtt.protocol.topics import down, up
from tests.verification.simulation.devices import PASSWORD, MessagePlan, SdkDevice
from tests.verification.simulation.loop import simulated
from tests.verification.simulation.world import WORKER_TTL, Worker, World

CONVERSATION = "d:alice:bob"
PARTITIONS = 16


def run_world(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Runs `scenario` in a world with one worker, which owns all partitions."""
    with simulated(7) as loop:
        world = World(loop, partitions=PARTITIONS, prefix=True, max_batch=500)

        async def start() -> None:
            world.workers = [Worker(world, 0)]
            world.workers[0].start()
            assert await world.until(lambda: world.workers[0].server is not None, 30.0)
            await scenario(world)

        with world.patched():
            loop.run_until_complete(start())


def phone(world: World, user: str, messages: int = 0) -> SdkDevice:
    plan = MessagePlan(world.loop, [CONVERSATION], messages, 0.1)
    device = world.sdk_device(f"{user}@phone", plan, Format.JSON)
    device.recalls = 0.0  # tests count events
    return device


def test_a_command_forwarded_to_a_partition_without_a_worker_is_answered() -> None:
    """The broker had no subscriber, and the PUBACK's reason code for that was ignored."""
    number = partition_of(CONVERSATION, PARTITIONS)
    assert number != 0
    frames: list[AnyFrame] = []

    async def scenario(world: World) -> None:
        session = f"imqtt-server-{number}"
        rival = await world.connect(
            LinkSettings("broker", 1884, session, password=PASSWORD, clean_start=True)
        )
        world.broker.refusals[session] = 0x88  # the partition's owner cannot reconnect at once
        device = await world.connect(LinkSettings("broker", 1883, "alice@plain", clean_start=True))
        await device.subscribe(down(Device("alice", "plain")))
        await rival.close()  # and its session ends
        send = Send(CONVERSATION, "m1", Content(text="hello"))
        await device.publish([Packet(up(Device("alice", "plain"), 0), encode_command(send, Format.JSON))])
        frames.extend(decode_frames((await device.receive(1))[0].payload))

    run_world(scenario)
    (answer,) = frames
    assert isinstance(answer, Rejected)
    assert (answer.client_msg_id, answer.code, answer.retryable) == ("m1", "unavailable", True)


@pytest.mark.parametrize("full", [True, False])
def test_a_device_that_sends_hello_while_the_disk_is_full_receives_later_events(full: bool) -> None:
    """It was welcomed without being registered: nothing was published to it until its next command."""

    async def scenario(world: World) -> None:
        world.tables.full = full
        bob = phone(world, "bob")
        bob.start()
        await asyncio.sleep(3.0)
        assert (bob.client is None) == full, "a device that cannot be registered is not welcomed"
        world.tables.full = False
        assert await world.until(lambda: bob.client is not None, 30.0)
        alice = phone(world, "alice", 1)
        alice.start()
        assert await world.until(lambda: CONVERSATION in bob.seen, 10.0), "bob was not told"

    run_world(scenario)


def test_events_prefetched_from_a_log_that_was_restored_away_are_not_delivered() -> None:
    """After `Restarted`, an iterator continued with up to a hundred events of the old log."""
    given: list[str] = []

    async def scenario(world: World) -> None:
        alice, bob = phone(world, "alice", 6), phone(world, "bob")
        alice.start()
        assert await world.until(lambda: len(world.tables.events_after(CONVERSATION, 0, 9)) == 1, 30.0, 0.001)
        backup = world.tables.copy()
        assert await world.until(lambda: alice.settled, 30.0)

        async def read() -> None:
            async with bob._connected() as client:
                notices, events = client.notices(), client.events("program")
                given.append((await anext(events)).content.text)
                world.workers[0].kill()
                world.restore(backup)
                world.workers[0].start()
                other = world.sdk_device(
                    "alice@tablet", MessagePlan(world.loop, [CONVERSATION], 3, 0.1), Format.JSON
                )
                other.recalls = 0.0
                other.start()
                async for notice in notices:
                    if isinstance(notice, Restarted):
                        break
                given.extend([(await anext(events)).content.text for _ in range(3)])

        await world.loop.new_process("bob@phone").spawn(read())

    run_world(scenario)
    assert given == ["alice@phone:0", "alice@tablet:0", "alice@tablet:1", "alice@tablet:2"]


@pytest.mark.parametrize("kept", [0, 2])
def test_a_new_log_with_lower_ids_than_the_old_one_is_noticed(kept: int) -> None:
    """A clock was ahead before. The new log's events were taken for duplicates, or for history."""

    async def scenario(world: World) -> None:
        (worker,) = world.workers
        alice, bob = phone(world, "alice", 3), phone(world, "bob")
        for device in (alice, bob):
            device.start()

        def head() -> Position:
            return world.tables.heads([CONVERSATION]).get(CONVERSATION, EMPTY)

        def both_have(seq: int) -> bool:
            return head().seq == seq and all(device.has(CONVERSATION, head()) for device in (alice, bob))

        worker.clock_offset = 30_000
        assert await world.until(lambda: head().seq == kept, 5.0, 0.001)
        backup = world.tables.copy()
        assert await world.until(lambda: both_have(3), 10.0)
        worker.kill()
        worker.clock_offset = 0
        world.restore(backup)
        worker.start()
        for seq, sender in enumerate((alice, bob), kept + 1):
            sender.send_more([CONVERSATION])
            assert await world.until(partial(both_have, seq), 30.0), "long before the next sync"

    run_world(scenario)


@pytest.mark.parametrize("survivor", [True, False])
def test_a_device_registered_while_the_state_is_away_stays_known_after_its_worker_dies(
    survivor: bool,
) -> None:
    """The failed invalidation was never repeated, so the outdated device list was used."""

    async def scenario(world: World) -> None:
        if survivor:
            world.workers.append(Worker(world, 1))
            world.workers[1].start()
            assert await world.until(lambda: world.workers[1].server is not None, 30.0)
        bob, alice = phone(world, "bob"), phone(world, "alice", 1)
        bob.start()
        alice.start()
        assert await world.until(lambda: CONVERSATION in bob.seen, 30.0), "bob's device was not in the list"
        world.state.away = True
        await asyncio.sleep(3.0)
        tablet = world.sdk_device("bob@tablet", MessagePlan(world.loop, [], 0, 0), Format.JSON)
        tablet.start()
        assert await world.until(lambda: tablet.client is not None, 30.0)
        world.workers[0].kill()
        await asyncio.sleep(3.0 * WORKER_TTL)
        world.state.away = False
        world.workers[0].start()
        assert await world.until(lambda: world.workers[0].server is not None, 60.0)
        await asyncio.sleep(10.0)
        before = tablet.seen.get(CONVERSATION)
        plan = MessagePlan(world.loop, [CONVERSATION], 1, 0.1)
        laptop = world.sdk_device("alice@laptop", plan, Format.JSON)
        laptop.start()
        assert await world.until(lambda: laptop.settled, 30.0)
        assert await world.until(lambda: tablet.seen.get(CONVERSATION) != before, 5.0), "it was not published"

    run_world(scenario)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_peer_that_disconnects_after_the_state_was_lost_is_shown_as_offline(speaks: bool) -> None:
    """Its will had the nonce of a connection that the state had lost, and was ignored."""

    async def scenario(world: World) -> None:
        alice, bob = phone(world, "alice", 1), phone(world, "bob")
        alice.start()
        bob.start()

        def is_told(state: str) -> bool:
            presence = bob.client.presence_of("alice") if bob.client is not None else None
            return presence is not None and presence.state == state

        assert await world.until(lambda: is_told("online"), 10.0), "alice is not shown as online"
        world.state.flush()
        if speaks:
            assert alice.process is not None
            assert alice.client is not None
            alice.process.spawn(alice.client.typing(CONVERSATION))
            await asyncio.sleep(1.0)
            known = await world.state.memory.presence(["alice"])
            assert [presence.state for presence in known["alice"]] == ["online"]
        assert alice.process is not None
        world.kill(alice.process)
        # If neither has sent anything since, bob's device is told when it next sends something, within half
        # of `presence_ttl`.
        assert await world.until(lambda: is_told("offline"), 160.0), "bob sees an offline user as online"

    run_world(scenario)
