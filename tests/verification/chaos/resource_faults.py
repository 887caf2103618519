"""Faults that exhaust the disk, the broker's queues or the server's reads, and replays of old commands."""

import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

from imqtt.broker.link import Packet
from imqtt.model import Device, Rejected, Sync
from imqtt.protocol import Format, encode_command
from imqtt.protocol.topics import up
from tests.device import RawDevice
from tests.verification.chaos.devices import DeviceEnded
from tests.verification.chaos.disk import Disk
from tests.verification.chaos.faults import (
    DEVICES,
    WORKER_CONNECTIONS,
    WORKERS,
    Fault,
    NotFired,
    Shape,
    gather,
    unpaused,
    wait_for_effect,
)
from tests.verification.chaos.stack import READS_WAITING

SMALL_QUEUES = {"max_inflight_messages": "2", "max_queued_messages": "3"}
DROPPED = "Outgoing messages are being dropped for client imqtt-server-"
FULL = b"disk is full"
BURSTS = 3  # of reads, each with more than may wait
REPLAYED = 30  # publishes of each plain device


class FullDisk(Fault):
    """The store's disk is full, and a server has logged it. Repaired by freeing space."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("store",) if shape.disks and shape.stack == "sqlite" else ()

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"disk"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {WORKERS, WORKER_CONNECTIONS, "broker", "clock"}

    async def fire(self) -> str:
        assert self.stack.disk is not None
        return await filled(self.stack.disk, {worker.log: None for worker in self.stack.workers.values()})

    async def repair(self) -> str:
        assert self.stack.disk is not None
        self.stack.disk.free()
        return ""


class FullDeviceDisk(Fault):
    """An SDK device is killed and restarted on a full disk.

    It fails to open its store, fails to send, or ends. Repaired by freeing space and restarting it. A running
    device would notice the full disk only after minutes, because SQLite reuses its existing WAL.
    """

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return shape.devices[:1] if shape.disks else ()

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {f"{target}>", "broker"}

    async def fire(self) -> str:
        disk, device = self.stack.device_disk, self.stack.devices[self.target]
        await device.kill()
        with closing(sqlite3.connect(device.plan.store)) as store:
            store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        disk.fill()
        since = device.log.stat().st_size
        with suppress(DeviceEnded):
            await device.start()
        return await filled(disk, {device.log: since, Path(device.plan.history): None})

    async def repair(self) -> str:
        self.stack.device_disk.free()
        device = self.stack.devices[self.target]
        ended = device.pid is None
        await device.kill()
        await device.start()
        return "the process had ended" if ended else "the process was still running"


async def filled(disk: Disk, files: Mapping[Path, int | None]) -> str:
    """Fills the disk until one of the files reports it.

    `files`: the offset from which each file is searched; None: from its present end.
    """
    since = {file: file.stat().st_size if start is None else start for file, start in files.items()}

    def is_full() -> bool:
        disk.fill()  # also space that was freed meanwhile
        return any(FULL in file.read_bytes()[start:] for file, start in since.items())

    try:
        await wait_for_effect(is_full, "a report of the full disk")
    except AssertionError:
        disk.free()
        raise
    return f"{disk.ballast} bytes of ballast"


class FullQueues(Fault):
    """The broker restarts with tiny queues while all workers are paused, so it drops messages.

    Repaired by restarting it with its own limits and resuming the workers.
    """

    loses_state: ClassVar[Collection[str]] = ("full queues",)

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("broker",)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"broker", WORKERS}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {DEVICES}

    async def fire(self) -> str:
        stack = self.stack
        workers = [stack.workers[worker] for worker in stack.initial_workers]
        for worker in workers:
            worker.pause()
        await stack.broker.stop()
        stack.broker.options = SMALL_QUEUES
        since = stack.broker.log_size
        await stack.broker.start()
        await gather(
            *(
                device.replay(REPLAYED, 60.0)
                for device in stack.devices.values()
                if device.plan.kind == "plain"
            )
        )
        await wait_for_effect(lambda: stack.broker.has_logged(DROPPED, since), "the broker dropping messages")
        return f"dropped with {SMALL_QUEUES}"

    async def repair(self) -> str:
        stack = self.stack
        await stack.broker.stop()
        stack.broker.options = {}
        await stack.broker.start()
        await gather(*(unpaused(stack.workers[worker]) for worker in stack.initial_workers))
        return ""


class FullReads(Fault):
    """One device sends so many reads that others' are rejected as busy. Repaired by disconnecting it."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("server",)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"reads"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {WORKERS, WORKER_CONNECTIONS, "broker", "store", "redis"}

    async def fire(self) -> str:
        self._device = RawDevice(self.stack.broker, "reader@greedy", Format.PROTOBUF)
        device = self._device
        await device.connect()
        question = Packet(up(Device("reader", "greedy"), 0), encode_command(Sync(heads=True), device.format))

        def refused() -> int:
            return sum(isinstance(frame, Rejected) and frame.code == "busy" for frame in device.frames)

        link = device._link
        assert link is not None
        for _ in range(BURSTS):
            await link.publish([question] * (5 * READS_WAITING))
        await wait_for_effect(refused, "a read rejected as busy")
        return f"{refused()} reads rejected as busy"

    async def repair(self) -> str:
        await self._device.disconnect()
        return ""


class Replay(Fault):
    """A plain device publishes old commands again. Nothing needs repair."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return shape.plain

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return set()

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {target, f"{target}>", "broker"}

    async def fire(self) -> str:
        count = await self.stack.devices[self.target].replay(self.rng.randrange(20, 200))
        if not count:
            raise NotFired("nothing was replayed")
        return f"{count} publishes acked by the broker"

    async def repair(self) -> str:
        return ""
