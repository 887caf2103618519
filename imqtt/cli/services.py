"""Running the server of `imqtt serve`, and the server and broker of `imqtt up`."""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

from imqtt.cli.data import DataDirectory
from imqtt.cli.settings import server_config
from imqtt.cli.signals import beside
from imqtt.config import ServerConfig
from imqtt.errors import SetupError
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.listeners import is_exposed
from imqtt.mosquitto.log_relay import BrokerLog, follow
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.serving import serving

log = logging.getLogger("imqtt")

RESTART_SECONDS = (0.1, 10.0)  # the first and the longest wait before a restart of the broker
STEADY_SECONDS = 60.0  # after this time, the next wait is the first again


async def serve(config: ServerConfig, say_ready: Callable[[int], None]) -> None:
    """Runs the server. Calls `say_ready` with the number of partitions when all of them receive."""
    async with serving(config) as server:
        _tune_collector()
        say_ready(server.partitions)
        await server.wait()


async def up(
    broker: Mosquitto, directory: DataDirectory, flags: dict[str, Any], say_ready: Callable[[int], None]
) -> None:
    async with (
        broker,
        beside(_keep_running(broker), "broker"),
        beside(follow(BrokerLog(broker.log, broker.log_start)), "broker-log"),
    ):
        config = server_config(
            flags,
            broker_host=INTERNAL_HOST,
            broker_port=broker.internal_port,
            broker_username=SERVER_ACCOUNT,
            broker_password=broker.server_password,
            broker_ca="",
            broker_certificate="",
            broker_key="",
            store=directory.store,
            state="memory:",
        )
        async with serving(config) as server:
            # The broker must remember the server's sessions after a crash. Otherwise, in the first minute of
            # a new data directory, commands of devices that reconnect before the server would be lost.
            broker.save()
            await _warn_if_exposed(broker)
            _tune_collector()
            say_ready(server.partitions)
            await server.wait()


async def _warn_if_exposed(broker: Mosquitto) -> None:
    """Tries the port instead of comparing versions, because it depends on the build of Mosquitto."""
    if await asyncio.to_thread(is_exposed, broker.host, broker.websocket_port):
        log.warning(
            "the browsers' port %d is open on every address of this machine, not only on %s: Mosquitto 2.0"
            " ignores the address of a websocket listener. Close the port in the firewall, or install"
            " Mosquitto 2.1",
            broker.websocket_port, broker.host,
        )  # fmt: skip


def _tune_collector() -> None:
    """Makes the garbage collector skip permanent objects and run less often.

    With its defaults it takes a tenth of the server's time and finds nothing, because messages create no
    cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _keep_running(broker: Mosquitto) -> None:
    first, longest = RESTART_SECONDS
    pause = first
    while True:
        since = time.monotonic()
        status = await broker.wait()
        if time.monotonic() - since > STEADY_SECONDS:
            pause = first
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        log.error("Mosquitto ended %s; restarting it in %.1f s", how, pause)
        logged = ""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            try:
                await broker.start()
            except SetupError as error:
                if error.reason != logged:  # one line per cause
                    logged = error.reason
                    log.error("%s; trying again until it starts, at most %.0f s apart", logged, longest)
            else:
                log.warning("Mosquitto runs again as process %s", broker.pid)
                break
