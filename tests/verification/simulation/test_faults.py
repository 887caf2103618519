"""A fault is repaired even if other faults affect its target meanwhile."""

import asyncio

from tests.verification.simulation.faults import Faults
from tests.verification.simulation.test_found import CONVERSATION, live, phone
from tests.verification.simulation.world import World


def test_a_device_with_a_full_disk_is_restarted_even_if_paused_before_it_ends() -> None:
    """Nobody started it, since it had not ended in time: the world never came to rest."""

    async def story(world: World) -> None:
        alice = phone(world, "alice", 1)
        world.sdk_devices.append(alice)
        alice.start()
        assert await world.until(lambda: alice.settled, 30.0)
        party, file = alice.party, world.disk.file(alice.path)
        assert party is not None

        def pause(statement: str) -> None:
            if statement == "ROLLBACK":
                world.loop.pause(party)

        file.connection.set_trace_callback(pause)
        strike = asyncio.create_task(Faults(world).strike("device disk full", 0.0))
        assert await world.until(lambda: file.failing > 0, 1.0, 0.001)
        file.failing = 1.0
        alice.speak([CONVERSATION])
        await asyncio.sleep(30.0)
        assert party.paused
        assert not alice.disk_failed
        world.loop.resume(party)
        await strike
        assert world.fired == {"device disk full": 1}
        assert await world.until(lambda: alice.party is not party and alice.client is not None, 30.0)

    live(story)
