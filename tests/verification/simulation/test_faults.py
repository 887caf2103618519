"""A fault is repaired even if other faults affect its target meanwhile."""

import asyncio

from tests.verification.simulation.faults import Faults
from tests.verification.simulation.test_regressions import CONVERSATION, phone, run_world
from tests.verification.simulation.world import World


def test_a_device_with_a_full_disk_is_restarted_even_if_paused_before_it_ends() -> None:
    """The device had not ended in time, so it was never restarted and the world never settled."""

    async def scenario(world: World) -> None:
        alice = phone(world, "alice", 1)
        world.sdk_devices.append(alice)
        alice.start()
        assert await world.until(lambda: alice.settled, 30.0)
        process, file = alice.process, world.disk.file(alice.path)
        assert process is not None

        def pause(statement: str) -> None:
            if statement == "ROLLBACK":
                world.loop.pause(process)

        file.connection.set_trace_callback(pause)
        inject = asyncio.create_task(Faults(world).inject("device disk full", 0.0))
        assert await world.until(lambda: file.failing > 0, 1.0, 0.001)
        file.failing = 1.0
        alice.send_more([CONVERSATION])
        await asyncio.sleep(30.0)
        assert process.paused
        assert not alice.disk_failed
        world.loop.resume(process)
        await inject
        assert world.fired == {"device disk full": 1}
        assert await world.until(lambda: alice.process is not process and alice.client is not None, 30.0)

    run_world(scenario)
