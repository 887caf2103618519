"""The server: makes every part once, connects the parts, and starts and ends them in order."""

import asyncio
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from imqtt.addresses import host_port
from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link, LinkSettings, connect
from imqtt.broker.values import Will
from imqtt.config import ServerConfig
from imqtt.core.snowflake import Snowflake
from imqtt.distribution import installed_version
from imqtt.errors import SetupError
from imqtt.model import Limits
from imqtt.protocol import Bounds
from imqtt.server import open_files, store_probe
from imqtt.server.access import AccessTest
from imqtt.server.assignment import Assignment
from imqtt.server.committer import Committer
from imqtt.server.connections import Connections, ReconnectingLink, first_of
from imqtt.server.control import Control
from imqtt.server.counters import Counters
from imqtt.server.delivery import Delivery
from imqtt.server.devices import Devices
from imqtt.server.head_cache import HeadCache
from imqtt.server.health import Health, HealthPage
from imqtt.server.liveness import Liveness
from imqtt.server.pages import PAGE_EVENTS, Pages
from imqtt.server.partition import Partition
from imqtt.server.peer_discovery import Peer, PeerDiscovery
from imqtt.server.pipeline import Pipeline
from imqtt.server.presence import Presences
from imqtt.server.problems import Problems
from imqtt.server.pruning import Pruning
from imqtt.server.publisher import Publish, Publisher
from imqtt.server.reads import Reads
from imqtt.server.router import Router
from imqtt.server.signals import Signals
from imqtt.state.base import State, Worker
from imqtt.stores.base import Store
from imqtt.tls_files import TlsFileError, TlsFiles

SESSION_EXPIRY = 7 * 86_400  # seconds: how long the broker queues for a server that is away
KEEP_ALIVE = 30  # seconds
ACK_DELAY = 0.05  # seconds


def wall_clock() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Server:
    """One worker. Entering it returns when its partitions receive; leaving it finishes the work begun.

    The caller opens and closes store and state. Raises `SetupError` if the operator has to change something.
    """

    def __init__(
        self, config: ServerConfig, store: Store, state: State, clock: Callable[[], int] = wall_clock
    ) -> None:
        self.config = config
        self.counters = Counters()
        self._clock = clock
        self._store = store
        self._state = state
        self._tls: TlsFiles | None = None
        self._problems = Problems(host_port(config.broker_host, config.broker_port))
        self._connections = Connections(self._problems.broker)
        self._process = secrets.token_hex(4)  # of its id, and of its connections beside the partitions'
        self._status = "starting"
        self._publishers: Sequence[Publisher] = ()
        self._assignment: Assignment | None = None

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self._running: asyncio.Task[None] = asyncio.create_task(self._run(ready), name="server")
        try:
            await first_of(ready.wait(), self.wait())
        except BaseException:
            await self._end()
            raise
        self._status = "ok"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._status = "leaving"
        try:
            assert self._assignment is not None  # noqa: S101 - made on entering
            await self._assignment.leave()
            await self._discovery.say_goodbye()
        finally:
            await self._end()

    async def wait(self) -> None:
        """Runs until cancelled; raises the error that ended the server, if one did."""
        await asyncio.shield(self._running)

    async def _end(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    @property
    def worker(self) -> Worker:
        assert self._assignment is not None  # noqa: S101 - made on entering
        return self._assignment.worker

    def health(self) -> Health:
        """This worker's status. A connected worker serves even while its store or state is away."""
        worker = self.worker if self._assignment is not None else None
        holdings = worker.holdings if worker is not None else ()
        connected = all(publisher.connected for publisher in self._publishers)
        status = self._status
        if status == "ok" and not connected:
            status = "cut off"
        elif status == "ok" and worker is not None and worker.trouble:
            status = "degraded"
        problems = self._problems
        link = (problems.broker, problems.access, problems.cluster, problems.stranger, problems.contested)
        trouble = next((problem.text for problem in link if problem.text), "")
        return Health(
            status=status,
            worker=worker.id if worker is not None else "",
            store=problems.store.text or problems.storing.text or "ok",
            state=self._state.trouble or "ok",
            broker=trouble or ("ok" if connected else "not connected"),
            clock=problems.clock.text or "ok",
            process=problems.files.text or "ok",
            partitions=tuple(holding.partition for holding in holdings),
            unfinished=sum(holding.unfinished for holding in holdings),
        )

    @property
    def partitions(self) -> int:
        return self._store.identity.partitions

    async def _run(self, ready: asyncio.Event) -> None:
        """Everything that the server does, until cancelled. Raises the first error that ended it."""
        config = self.config
        page = HealthPage(config.health, self.health) if config.health else None
        try:
            if page is not None:
                await page.start()
            if config.broker_ca:
                self._tls = TlsFiles(config.broker_ca, config.broker_certificate, config.broker_key)
                self._tls.context()
            async with asyncio.TaskGroup() as tasks:
                await self._start(tasks)
                ready.set()
        except TlsFileError as error:
            raise SetupError(f"TLS to the broker: {error}") from error
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        finally:
            if page is not None:
                page.stop()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        """Makes every part and starts it. Returns when this worker's partitions receive."""
        # Reads have a connection of their own: a large page holds up nobody's message.
        events, reads = self._publisher("events", looks=True), self._publisher("reads")
        self._publishers = (events, reads)
        liveness = Liveness()
        worker = Worker(self._process, socket.gethostname(), os.getpid(), self._clock(), installed_version())
        self._discovery = self._peer_discovery(worker, liveness)
        pipeline = self._pipeline(tasks, events.publish, reads.publish)
        tasks.create_task(open_files.watch(self._problems.files), name="files")
        tasks.create_task(store_probe.watch(self._store, self.counters, self._problems), name="store-probe")
        found, *connected = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for name, publisher, connection in zip(("events", "reads"), self._publishers, connected, strict=True):
            tasks.create_task(publisher.run(connection), name=f"publisher-{name}")
        tasks.create_task(self._discovery.run(found), name="peer-discovery")
        for event in (found, *connected):
            await event.wait()
        partitions = [
            Partition(
                number,
                pipeline,
                self._reconnecting(f"partition {number}", self._settings(str(number))),
                broker_steady=events.steady,
                taken=self._problems.contested,
            )
            for number in range(self.partitions)
        ]
        self._assignment = Assignment(
            worker,
            state=self._state,
            pipeline=pipeline,
            partitions=partitions,
            discovery=self._discovery,
            liveness=liveness,
            problems=self._problems,
            ttl=self.config.worker_ttl,
            clock=self._clock,
        )
        held = asyncio.Event()
        tasks.create_task(self._assignment.run(held), name="assignment")
        await held.wait()

    def _pipeline(self, tasks: asyncio.TaskGroup, publish: Publish, publish_reads: Publish) -> Pipeline:
        """Everything that commands go through, from a partition's session to the devices."""
        config, counters, problems, clock = self.config, self.counters, self._problems, self._clock
        store, state, partitions = self._store, self._state, self.partitions
        tolerance, ttl, packet = config.clock_tolerance * 1_000, config.presence_ttl, config.max_packet
        bounds = Bounds(config.max_content, config.max_command)
        devices = Devices(store, state, problems, clock)
        presences = Presences(
            store, state, devices, publish_reads, counters, max_packet=packet, ttl=ttl * 1_000, clock=clock
        )
        limits = Limits(
            content=bounds.content,
            command=bounds.command,
            page=PAGE_EVENTS,
            cursors=bounds.cursors,
            rate=config.device_rate,
            presence=ttl,
        )
        reads = Reads(
            Pages(store),
            presences,
            publish_reads,
            counters,
            partitions=partitions,
            limits=limits,
            max_packet=packet,
            at_once=config.reads_at_once,
            waiting=config.reads_waiting,
            clock=clock,
        )
        snowflakes = [Snowflake(partition, tolerance) for partition in range(partitions)]
        heads = HeadCache(config.conversations_cached)
        delivery = Delivery(store, state, devices, presences, reads, publish, counters, packet, tasks)
        pipeline = Pipeline(
            Router(partitions, bounds),
            state,
            devices,
            Committer(store, snowflakes, heads, counters, problems=problems, clock=clock),
            Signals(store, problems),
            Control(devices, presences, publish_reads, counters, partitions),
            delivery=delivery,
            counters=counters,
            problems=problems,
            max_batch=config.max_batch,
            clock=clock,
        )
        pruning = Pruning(
            store,
            devices,
            presences,
            counters,
            max_age=config.device_days,
            per_user=config.devices_per_user,
            patience=ttl,
            sweeps=lambda: 0 in self.health().partitions,
            clock=clock,
        )
        for part in (reads, presences, pruning, pipeline):
            tasks.create_task(part.run(), name=type(part).__name__.lower())
        return pipeline

    def _peer_discovery(self, worker: Worker, liveness: Liveness) -> PeerDiscovery:
        cluster, exclusive = self._store.identity.cluster, not self._store.shared
        return PeerDiscovery(
            Peer(cluster, worker.id, worker.host, worker.pid, worker.started, exclusive=exclusive),
            partial(self._connect, self._settings("present", own=True)),
            self._connections,
            AccessTest(worker.id, self.config.broker_username, self._problems.access),
            liveness=liveness,
            foreign=self._problems.cluster,
        )

    def _publisher(self, name: str, *, looks: bool = False) -> Publisher:
        connection = self._reconnecting(name, self._settings(name, own=True), looks=looks)
        return Publisher(connection, self.counters, self._problems.refused_packets)

    def _settings(self, name: str, *, own: bool = False) -> LinkSettings:
        """`own`: no other process has this connection, and it leaves nothing behind."""
        config = self.config
        return LinkSettings(
            host=config.broker_host,
            port=config.broker_port,
            client_id=f"imqtt-server-{name}-{self._process}" if own else f"imqtt-server-{name}",
            username=config.broker_username,
            password=config.broker_password,
            clean_start=own,
            session_expiry=0 if own else SESSION_EXPIRY,
            keep_alive=KEEP_ALIVE,
            receive_max=4 * config.max_batch,
            ack_delay=ACK_DELAY,
        )

    def _reconnecting(self, name: str, settings: LinkSettings, *, looks: bool = False) -> ReconnectingLink:
        return ReconnectingLink(self._connections, name, partial(self._connect, settings), looks=looks)

    async def _connect(self, settings: LinkSettings, will: Will | None = None) -> Link:
        settings = replace(settings, will=will)
        if self._tls is None:
            return await connect(settings)
        try:
            return await connect(replace(settings, tls=self._tls.context()))
        except ssl.SSLCertVerificationError as error:
            self._tls.distrust()
            raise ssl.SSLError(  # with one argument alone, its text would be that of a tuple
                ssl.SSL_ERROR_SSL,
                f"the broker's certificate is not trusted: {error.verify_message} "
                f"(the authorities are those in {self._tls.authorities})",
            ) from error
        except (OSError, LinkError):
            self._tls.distrust()
            raise
