"""The server: every part made once, given what it needs, started and ended in order."""

import asyncio
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from imqtt.addresses import host_port
from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link, LinkSettings, connect
from imqtt.broker.tls import TlsFileError, TlsFiles
from imqtt.config import ServerConfig
from imqtt.core.snowflake import Snowflake
from imqtt.distribution import installed_version
from imqtt.errors import SetupError
from imqtt.model import Limits
from imqtt.protocol import Bounds
from imqtt.server import open_files, peer_discovery, store_probe
from imqtt.server.access import Access
from imqtt.server.assignment import Assignment
from imqtt.server.batcher import Batcher
from imqtt.server.committer import Committer
from imqtt.server.connections import Connections, Line
from imqtt.server.control import Control
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices
from imqtt.server.head_cache import HeadCache
from imqtt.server.health import Health, HealthPage
from imqtt.server.intake import Intake
from imqtt.server.owner import Owner
from imqtt.server.pages import PAGE_EVENTS, Pages
from imqtt.server.partition import Partition
from imqtt.server.peer_discovery import Peer, PeerDiscovery
from imqtt.server.presence import Presences
from imqtt.server.problems import Problems
from imqtt.server.pruning import Pruning
from imqtt.server.publisher import Publish, Publisher
from imqtt.server.reads import Reads
from imqtt.state.base import State, Worker
from imqtt.stores.base import Store

SESSION_EXPIRY = 7 * 86_400  # seconds: how long the broker queues for a server that is away
KEEP_ALIVE = 30  # seconds
ACK_DELAY = 0.005  # seconds


def wall_clock() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Server:
    """One worker: those partitions of a deployment that are its own, among the workers that share its state.

    `async with Server(config, store, state)` returns when all that is its own receives; leaving it finishes
    what was begun. Store and state are the caller's, to open and to close. Raises `SetupError` where the
    operator has to change something.
    """

    def __init__(
        self, config: ServerConfig, store: Store, state: State, clock: Callable[[], int] = wall_clock
    ) -> None:
        self.config = config
        self.counters = Counters()
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._assignment: Assignment | None = None
        self._problems = Problems(host_port(config.broker_host, config.broker_port))
        self._connections = Connections(self._problems.broker)
        self._page: HealthPage | None = None
        self._publishers: dict[str, Publisher] = {}
        self._tls: TlsFiles | None = None
        self._process = secrets.token_hex(4)  # of its id, and of its connections beside the partitions'
        self._status = "starting"
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
        self._status = "leaving"
        try:
            if self._assignment is not None:
                await self._assignment.leave()
                await self._discovery.say_goodbye()
        finally:
            await self._end()

    async def wait(self) -> None:
        """Runs until cancelled; raises what ended the server, if something did."""
        await _first_failure(self._tasks)

    @property
    def worker(self) -> Worker:
        """This process, as it shows itself to the other workers."""
        assert self._assignment is not None  # noqa: S101 - made on entering
        return self._assignment.worker

    def health(self) -> Health:
        """How this worker is. It serves while it is connected, though the store or the state be away."""
        worker = self.worker if self._assignment is not None else None
        holdings = worker.holdings if worker is not None else ()
        connected = all(publisher.connected for publisher in self._publishers.values())
        status = self._status
        if status == "ok" and not connected:
            status = "cut off"
        elif status == "ok" and worker is not None and worker.trouble:
            status = "degraded"
        problems = self._problems
        return Health(
            status=status,
            worker=worker.id if worker is not None else "",
            store=problems.store.text or problems.storing.text or "ok",
            state=self._state.trouble or "ok",
            broker=problems.broker.text
            or problems.access.text
            or problems.cluster.text
            or problems.stranger.text
            or problems.contested.text
            or ("ok" if connected else "not connected"),
            clock=problems.clock.text or "ok",
            process=problems.files.text or "ok",
            partitions=tuple(it.partition for it in holdings),
            unfinished=sum(it.unfinished for it in holdings),
        )

    @property
    def partitions(self) -> int:
        """How many partitions the store was created with."""
        return self._store.identity.partitions

    async def _start(self) -> None:
        config = self.config
        if config.health:
            self._page = HealthPage(config.health, self.health)
            await self._page.start()
        self._tls = _tls(config)
        # Reads have one of their own: a large page holds up nobody's message.
        self._publishers = {
            name: Publisher(
                self._line(name, self._own(name), looks=name == "events"),
                self.counters,
                self._problems.refused_packets,
            )
            for name in ("events", "reads")
        }
        batcher = self._carrying_out(self._publishers["events"].publish, self._publishers["reads"].publish)
        assignment = self._sharing(batcher)
        ready = [
            self._begin(publisher.run, f"publisher-{name}") for name, publisher in self._publishers.items()
        ]
        await self._all_ready([*ready, self._begin(self._discovery.run, "peer-discovery")])
        self._assignment = assignment
        await self._all_ready([self._begin(assignment.run, "assignment")])
        self._status = "ok"

    def _carrying_out(self, publish: Publish, publish_reads: Publish) -> Batcher:
        """Everything that commands go through, from a partition's session to the devices."""
        config, counters, store, state = self.config, self.counters, self._store, self._state
        partitions = store.identity.partitions
        bounds = Bounds(config.max_content, config.max_command)
        devices = Devices(store, state, self._problems, self._clock)
        presences = Presences(
            store=store,
            state=state,
            devices=devices,
            publish=publish_reads,
            counters=counters,
            max_packet=config.max_packet,
            ttl=config.presence_ttl,
            clock=self._clock,
        )
        reads = Reads(
            Pages(store),
            presences,
            publish_reads,
            counters,
            partitions=partitions,
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
        committer = Committer(
            store=store,
            state=state,
            snowflakes=[Snowflake(it, config.clock_tolerance * 1_000) for it in range(partitions)],
            heads=HeadCache(config.conversations_cached),
            counters=counters,
            problems=self._problems,
            clock=self._clock,
        )
        owner = Owner(
            intake=Intake(partitions, bounds),
            committer=committer,
            store=store,
            devices=devices,
            presences=presences,
            reads=reads,
            control=Control(devices, presences, publish_reads, counters),
            publish=publish,
            counters=counters,
            problems=self._problems,
            max_packet=config.max_packet,
        )
        batcher = Batcher(owner, counters, self._problems, config.max_batch)
        pruning = Pruning(
            store=store,
            devices=devices,
            presences=presences,
            counters=counters,
            max_age=config.device_days,
            per_user=config.devices_per_user,
            patience=config.presence_ttl,
            sweeps=lambda: 0 in self.health().partitions,
            clock=self._clock,
        )
        for work, name in (
            (reads, "reads"),
            (presences, "presences"),
            (pruning, "pruning"),
            (batcher, "batcher"),
        ):
            self._spawn(work.run(), name)
        self._spawn(open_files.watch(self._problems.files), "files")
        self._spawn(store_probe.watch(store, counters, self._problems), "store-watch")
        return batcher

    def _sharing(self, batcher: Batcher) -> Assignment:
        """Which partitions this worker holds, among those that share its state and its broker."""
        config, identity = self.config, self._store.identity
        worker = Worker(self._process, socket.gethostname(), os.getpid(), self._clock(), installed_version())

        def partitions(assignment: Assignment) -> list[Partition]:
            return [
                Partition(
                    number,
                    batcher,
                    self._line(f"partition {number}", self._settings(str(number))),
                    config.max_batch,
                    broker_steady=self._publishers["events"].steady,
                    confirmed=assignment.confirmed,
                    outranked=assignment.outranked,
                    taken=self._problems.contested,
                )
                for number in range(identity.partitions)
            ]

        assignment = Assignment(
            worker,
            self._state,
            batcher,
            partitions,
            problems=self._problems,
            stranger=self._stranger,
            ttl=config.worker_ttl,
            clock=self._clock,
        )
        present = self._own("present")
        alone = not self._store.shared
        me = Peer(identity.cluster, worker.id, worker.host, worker.pid, worker.started, exclusive=alone)
        self._discovery = PeerDiscovery(
            me,
            lambda will: self._connect(replace(present, will=will)),
            self._connections,
            Access(worker.id, peer_discovery.TOPIC, config.broker_username, self._problems.access),
            away=lambda: assignment.away,
            warn=self._warn,
            heard=assignment.trust,
            gone=assignment.suspect,
        )
        return assignment

    async def _stranger(self, known: Collection[str]) -> str:
        other = await self._discovery.outranked(known)
        if other is None:
            return ""
        return (
            f"worker {other.worker} ({other.host}, pid {other.pid}) serves the same store and is not in "
            "this worker's Redis: is it the same one? What both want is left to it"
        )

    def _warn(self, trouble: str) -> None:
        if trouble:
            self._problems.cluster.start(trouble)
        else:
            self._problems.cluster.end()

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
        if self._page is not None:
            self._page.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _own(self, name: str) -> LinkSettings:
        """Of a connection that no other process has, and that leaves nothing behind."""
        return self._settings(f"{name}-{self._process}", clean=True)

    def _settings(self, name: str, *, clean: bool = False) -> LinkSettings:
        config = self.config
        return LinkSettings(
            host=config.broker_host,
            port=config.broker_port,
            client_id=f"imqtt-server-{name}",
            username=config.broker_username,
            password=config.broker_password,
            clean_start=clean,
            session_expiry=0 if clean else SESSION_EXPIRY,
            keep_alive=KEEP_ALIVE,
            receive_max=4 * config.max_batch,
            ack_delay=ACK_DELAY,
        )

    def _line(self, name: str, settings: LinkSettings, *, looks: bool = False) -> Line:
        return self._connections.line(name, partial(self._connect, settings), looks=looks)

    async def _connect(self, settings: LinkSettings) -> Link:
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

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def _begin(self, run: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str) -> asyncio.Event:
        """Spawns what says by an event when it is ready; returns the event."""
        ready = asyncio.Event()
        self._spawn(run(ready), name)
        return ready


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _first_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def _tls(config: ServerConfig) -> TlsFiles | None:
    if not config.broker_ca:
        return None
    tls = TlsFiles(config.broker_ca, config.broker_certificate, config.broker_key)
    try:
        tls.context()
    except TlsFileError as error:
        raise SetupError(f"TLS to the broker: {error}") from error
    return tls
