"""The server: every part made once, given what it needs, started and ended in order."""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from imqtt.broker.link import Settings, connect
from imqtt.config import ServerConfig
from imqtt.core.snowflake import Snowflake
from imqtt.errors import SetupError
from imqtt.model import Limits
from imqtt.protocol import Bounds
from imqtt.server.batcher import Batcher
from imqtt.server.committer import Committer
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.egress import Lane
from imqtt.server.heads import Heads
from imqtt.server.intake import Intake
from imqtt.server.owner import Owner
from imqtt.server.pages import PAGE_EVENTS, Pages
from imqtt.server.partition import Partition
from imqtt.server.presence import Presences
from imqtt.server.reads import Reads
from imqtt.state.base import State
from imqtt.stores.base import Store

log = logging.getLogger(__name__)

SESSION_EXPIRY = 7 * 86_400  # seconds: how long the broker queues for a server that is away
KEEP_ALIVE = 30  # seconds
DRAIN_SECONDS = 10.0
ACK_DELAY = 0.005  # seconds


def wall_clock() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Server:
    """All partitions of one deployment, in one process.

    `async with Server(config, store, state)` returns when every partition receives; leaving it finishes what
    was begun. Store and state are the caller's, to open and to close. Raises `SetupError` where the operator
    has to change something.
    """

    def __init__(
        self, config: ServerConfig, store: Store, state: State, clock: Callable[[], int] = wall_clock
    ) -> None:
        self.config = config
        self.counters = Counters()
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._partitions: list[Partition] = []
        self._serving: list[asyncio.Task[None]] = []
        self._store = store
        self._state = state

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for partition in self._partitions:
            partition.stop()
        if self._serving:
            await asyncio.wait(self._serving, timeout=DRAIN_SECONDS)
        await self._end()

    async def wait(self) -> None:
        """Runs until cancelled; raises what ended the server, if something did."""
        await _first_failure([*self._serving, *self._tasks])

    @property
    def partitions(self) -> int:
        """How many partitions the store was created with."""
        return self._store.partitions

    async def _start(self) -> None:
        config, counters, store, state = self.config, self.counters, self._store, self._state
        if store.partitions != config.partitions:
            log.info("the store was created with %d partitions, which holds", store.partitions)
        tls = _tls(config)
        process = secrets.token_hex(4)  # no two processes share a connection to publish over
        # Reads have one of their own: a large page holds up nobody's message.
        lanes = {
            name: Lane(
                partial(connect, self._settings(f"imqtt-server-{name}-{process}", tls, clean=True)), counters
            )
            for name in ("events", "reads")
        }
        publish = lanes["reads"].publish
        devices = Devices(store, state)
        presences = Presences(
            store=store,
            state=state,
            devices=devices,
            publish=publish,
            counters=counters,
            max_packet=config.max_packet,
            ttl=config.presence_ttl,
            clock=self._clock,
        )
        bounds = Bounds(config.max_content, config.max_command)
        reads = Reads(
            Pages(store),
            presences,
            publish,
            counters,
            partitions=store.partitions,
            limits=Limits(
                content=bounds.content,
                command=bounds.command,
                page=PAGE_EVENTS,
                cursors=bounds.cursors,
                rate=config.device_rate,
                presence=config.presence_ttl,
            ),
            max_packet=config.max_packet,
            at_once=config.reads_at_once,
            waiting=config.reads_waiting,
            clock=self._clock,
        )
        ready: list[asyncio.Event] = []
        for name, lane in lanes.items():
            ready.append(asyncio.Event())
            self._spawn(self._tasks, lane.run(ready[-1]), f"lane-{name}")
        self._spawn(self._tasks, reads.run(), "reads")
        self._spawn(self._tasks, presences.run(), "presences")
        committer = Committer(
            store=store,
            state=state,
            snowflakes=[Snowflake(it, config.clock_tolerance * 1_000) for it in range(store.partitions)],
            heads=Heads(config.conversations_cached),
            counters=counters,
            clock=self._clock,
        )
        owner = Owner(
            intake=Intake(store.partitions, bounds),
            committer=committer,
            store=store,
            devices=devices,
            presences=presences,
            reads=reads,
            publish=lanes["events"].publish,
            counters=counters,
            max_packet=config.max_packet,
        )
        batcher = Batcher(owner, counters, config.max_batch)
        self._spawn(self._tasks, batcher.run(), "batcher")
        for number in range(store.partitions):
            settings = self._settings(f"imqtt-server-{number}", tls, clean=False)
            partition = Partition(number, batcher, partial(connect, settings), config.max_batch)
            self._partitions.append(partition)
            ready.append(asyncio.Event())
            self._spawn(self._serving, partition.run(ready[-1]), f"partition-{number}")
        await self._all_ready(ready)

    async def _all_ready(self, ready: Sequence[asyncio.Event]) -> None:
        """Waits for every event; raises if a task ends before."""
        waiting = asyncio.create_task(_all_set(ready), name="ready")
        failing = asyncio.create_task(self.wait(), name="failing")
        try:
            await asyncio.wait((waiting, failing), return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        finally:
            waiting.cancel()
            failing.cancel()

    async def _end(self) -> None:
        for task in (*self._serving, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._serving, *self._tasks, return_exceptions=True)

    def _settings(self, client_id: str, tls: ssl.SSLContext | None, *, clean: bool) -> Settings:
        config = self.config
        return Settings(
            host=config.broker_host,
            port=config.broker_port,
            client_id=client_id,
            username=config.broker_username,
            password=config.broker_password,
            clean_start=clean,
            session_expiry=0 if clean else SESSION_EXPIRY,
            keep_alive=KEEP_ALIVE,
            receive_max=4 * config.max_batch,
            ack_delay=ACK_DELAY,
            tls=tls,
        )

    @staticmethod
    def _spawn(tasks: list[asyncio.Task[None]], work: Awaitable[None], name: str) -> None:
        tasks.append(asyncio.ensure_future(work))
        tasks[-1].set_name(name)


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _first_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if not config.broker_ca:
        return None
    try:
        context = ssl.create_default_context(cafile=config.broker_ca)
        if config.broker_certificate:
            context.load_cert_chain(config.broker_certificate, config.broker_key or None)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"TLS to the broker: {error}") from error
    return context
