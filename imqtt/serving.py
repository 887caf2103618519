"""A server with the store and the state that its settings name."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from imqtt.config import ServerConfig
from imqtt.errors import SetupError
from imqtt.server.app import Server, wall_clock
from imqtt.state import open_state
from imqtt.stores import open_store
from imqtt.stores.base import Identity

MQTTS_PORT = 8883  # registered for MQTT over TLS
PARTITIONS = 16  # of a new store, by default


@asynccontextmanager
async def serving(config: ServerConfig, clock: Callable[[], int] = wall_clock) -> AsyncIterator[Server]:
    """`async with serving(config) as server`: all partitions receive inside the block, and none after it.

    `clock` returns milliseconds since the Unix epoch. Raises `SetupError`.
    """
    check_tls(config)
    async with AsyncExitStack() as opened:
        store = await open_store(
            config.store,
            Identity.draw(config.partitions or PARTITIONS),
            shared=config.state != "memory:",
            password=config.store_password,
            driver=config.mongo_driver,
        )
        opened.push_async_callback(store.close)
        asked, created = config.partitions, store.identity.partitions
        if asked and asked != created:
            raise SetupError(
                f"partitions: {asked} is not possible: the store has {created}, which never changes"
            )
        state = await open_state(
            config.state,
            cluster=store.identity.cluster,
            rate=config.device_rate,
            burst=config.device_burst,
            password=config.state_password,
        )
        opened.push_async_callback(state.close)
        yield await opened.enter_async_context(Server(config, store, state, clock))


def check_tls(config: ServerConfig) -> None:
    """Raises `SetupError` if settings ask for TLS to the broker but do not enable it."""
    if config.broker_key and not config.broker_certificate:
        raise SetupError("broker_key is a key without a certificate; set broker_certificate as well")
    asks = "broker_certificate" if config.broker_certificate else ""
    if config.broker_port == MQTTS_PORT:
        asks = asks or f"broker_port {MQTTS_PORT}"
    if asks and not config.broker_ca:
        raise SetupError(
            f"{asks} asks for TLS, but the password would be sent unencrypted: set broker_ca to the"
            " authorities that sign the broker's certificate (for public ones, the system's file)"
        )
