"""`Hello`, `Sync` and `History`, served by a bounded pool beside the batches and never before them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imqtt.errors import ImqttError, Unavailable
from imqtt.model import AnyFrame, Device, Hello, History, Limits, ReadCommand, Registration, Sync, Welcome
from imqtt.protocol import Format
from imqtt.server.counters import Counters
from imqtt.server.fanout import Fanout, packet_room
from imqtt.server.pages import Pages, Room
from imqtt.server.presence import Presences
from imqtt.server.publisher import Publish
from imqtt.server.rejections import info_of, rejected

log = logging.getLogger(__name__)

Job = tuple[Registration, ReadCommand]
Answer = Callable[[Device, Any, Room], Awaitable[list[AnyFrame]]]


@dataclass(eq=False, repr=False)
class Reads:
    """A queue for about `waiting` reads, of which `at_once` are served at a time.

    Reads are PUBACKed before they are served; a device repeats a read that is lost with the process.
    """

    pages: Pages
    presences: Presences
    publish: Publish
    counters: Counters
    partitions: int
    limits: Limits
    max_packet: int
    at_once: int
    waiting: int
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._answers: Mapping[type[ReadCommand], Answer] = {
            Hello: self._hello,
            Sync: self._sync,
            History: self._history,
        }

    @property
    def room(self) -> int:
        """How many more reads may wait. `submit` does not check it."""
        return self.waiting - self._queue.qsize()

    def submit(self, registration: Registration, command: ReadCommand) -> None:
        self._queue.put_nowait((registration, command))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.at_once):
                tasks.create_task(self._serve(), name=f"read-{number}")

    async def _serve(self) -> None:
        while True:
            registration, command = await self._queue.get()
            try:
                room = Room(Format.of(registration.format), packet_room(registration, self.max_packet))
                frames = await self._answers[type(command)](registration.device, command, room)
            except ImqttError as error:
                self.counters.reject(error.code)
                frames = [rejected(error, info_of(command))]
            except Exception:
                # A fault in one read is reported to its device, and does not end the others.
                log.exception("a %s of %s failed", command.name, registration.device)
                self.counters.failures += 1
                frames = [rejected(Unavailable("the read failed; ask again"), info_of(command))]
            self.counters.reads += 1
            fanout = Fanout(self.max_packet, self.counters)
            for frame in frames:
                fanout.add(frame, (registration,))
            await self.publish(fanout.packets())

    async def _hello(self, device: Device, command: Hello, room: Room) -> list[AnyFrame]:
        welcome = Welcome(
            nonce=command.nonce,
            user=device.user,
            device=device.device,
            time=self.clock(),
            partitions=self.partitions,
            limits=self.limits,
            ref=command.ref,
        )
        page = await self.pages.hello(device.user, command, room)
        presences = await self.presences.for_newcomer(device, page.heads, more=page.more_heads != 0)
        return [welcome, page, *presences]

    async def _sync(self, device: Device, command: Sync, room: Room) -> list[AnyFrame]:
        return [await self.pages.sync(device.user, command, room)]

    async def _history(self, device: Device, command: History, room: Room) -> list[AnyFrame]:
        return [await self.pages.history(command, room)]
