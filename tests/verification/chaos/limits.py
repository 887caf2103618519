"""Room that runs out: on the disk, in the broker's queues, in the server's; and too much of the old."""

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
    WORKERS,
    WORKERS_WAYS,
    Fault,
    NotFired,
    Shape,
    gather,
    shows,
    unpaused,
)
from tests.verification.chaos.parts import READS_WAITING

SMALL_QUEUES = {"max_inflight_messages": "2", "max_queued_messages": "3"}
DROPPED = "Outgoing messages are being dropped for client imqtt-server-"
FULL = b"disk is full"  # in the log of who has found out
BURSTS = 3  # of reads, each of more than may wait
REPLAYED = 30  # publishes, by each plain device


class FullDisk(Fault):
    """The disk on which the store is has no room, and the server has said so. Healed by making room."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("store",) if shape.disks and shape.stack == "sqlite" else ()

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"disk"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {WORKERS, WORKERS_WAYS, "broker", "clock"}

    async def fire(self) -> str:
        assert self.stack.disk is not None
        return await filled(self.stack.disk, {worker.log: None for worker in self.stack.workers.values()})

    async def heal(self) -> str:
        assert self.stack.disk is not None
        self.stack.disk.free()
        return ""


class FullDeviceDisk(Fault):
    """A device on the SDK is killed, and there is no room on its disk when it is started again.

    Its program cannot open its store, or cannot send, or ends. Healed by making room, and by starting it
    once more. While it runs it would take minutes to miss the room: SQLite writes into the log it has.
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

    async def heal(self) -> str:
        self.stack.device_disk.free()
        device = self.stack.devices[self.target]
        ended = device.pid is None
        await device.kill()
        await device.start()
        return "it had ended" if ended else "it ran on"


async def filled(disk: Disk, files: Mapping[Path, int | None]) -> str:
    """Takes all the room that there is, until one of the files tells that it is missed.

    `files`: from which byte on each is looked at; None: from where it ends now.
    """
    since = {file: file.stat().st_size if start is None else start for file, start in files.items()}

    def is_full() -> bool:
        disk.fill()  # also what was freed meanwhile
        return any(FULL in file.read_bytes()[start:] for file, start in since.items())

    try:
        await shows(is_full, "somebody saying that the disk is full")
    except AssertionError:
        disk.free()
        raise
    return f"{disk.ballast} bytes of ballast"


class FullQueues(Fault):
    """The broker is started with queues of next to nothing, while no worker reads: it drops what comes.

    Healed by starting it with its own limits, and by the workers' waking.
    """

    forgets: ClassVar[Collection[str]] = ("full queues",)

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
        workers = [stack.workers[worker] for worker in stack.regulars]
        for worker in workers:
            worker.pause()
        await stack.broker.stop()
        stack.broker.options = SMALL_QUEUES
        since = stack.broker.said
        await stack.broker.start()
        await gather(
            *(
                device.replay(REPLAYED, 60.0)
                for device in stack.devices.values()
                if device.plan.kind == "plain"
            )
        )
        await shows(lambda: stack.broker.says(DROPPED, since), "the broker dropping what does not fit")
        return f"dropped with {SMALL_QUEUES}"

    async def heal(self) -> str:
        stack = self.stack
        await stack.broker.stop()
        stack.broker.options = {}
        await stack.broker.start()
        await gather(*(unpaused(stack.workers[worker]) for worker in stack.regulars))
        return ""


class FullReads(Fault):
    """One device asks for so much that others' reads are refused as busy. Healed by its going away."""

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return ("server",)

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {"reads"}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {WORKERS, WORKERS_WAYS, "broker", "store", "redis"}

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
        await shows(refused, "a read being refused as busy")
        return f"{refused()} reads refused as busy"

    async def heal(self) -> str:
        await self._device.disconnect()
        return ""


class Replay(Fault):
    """A plain device publishes again what it published long ago. There is nothing to heal."""

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
        count = await self.stack.devices[self.target].replay(self.chance.randrange(20, 200))
        if not count:
            raise NotFired("nothing was replayed")
        return f"{count} publishes taken by the broker"

    async def heal(self) -> str:
        return ""
