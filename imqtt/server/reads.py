"""`Hello`, `Sync` and `History`, served by a bounded pool beside the batches and never before them."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from imqtt.errors import Busy, ImqttError, Unavailable
from imqtt.model import AnyFrame, Hello, History, Limits, Registration, Sync, Welcome
from imqtt.protocol import CommandInfo, Format
from imqtt.server.counters import Counters
from imqtt.server.fanout import Fanout, packet_room
from imqtt.server.intake import rejected
from imqtt.server.pages import Pages, Room
from imqtt.server.presence import Presences
from imqtt.server.publisher import Publish

log = logging.getLogger(__name__)

EXCUSES = 500  # `Busy` answers on their way at most: whoever gets none asks again as well

Job = tuple[Registration, Hello | Sync | History]


class Reads:
    """A queue of at most `waiting` reads and `at_once` that work on it.

    Reads were PUBACKed on receipt, so one that is lost with the process is asked for again by its device.
    """

    def __init__(
        self,
        pages: Pages,
        presences: Presences,
        publish: Publish,
        counters: Counters,
        *,
        partitions: int,
        limits: Limits,
        max_packet: int,
        at_once: int,
        waiting: int,
        clock: Callable[[], int],
    ) -> None:
        self._pages = pages
        self._presences = presences
        self._publish = publish
        self._counters = counters
        self._partitions = partitions
        self._limits = limits
        self._max_packet = max_packet
        self._at_once = at_once
        self._queue: asyncio.Queue[Job] = asyncio.Queue(waiting)
        self._clock = clock
        self._excuses = 0  # `Busy` on their way

    def submit(self, registration: Registration, command: Hello | Sync | History) -> None:
        """Takes a read on, or rejects it as busy."""
        try:
            self._queue.put_nowait((registration, command))
        except asyncio.QueueFull:
            error = Busy("too many reads are waiting; ask again later", retry_after=5_000)
            self._counters.reject(error.code)
            if self._excuses < EXCUSES:
                self._excuses += 1
                sent = self._send(registration, [rejected(error, _info(command))])
                sent.add_done_callback(self._excused)
            else:
                self._counters.unanswered += 1

    def _excused(self, _: object) -> None:
        self._excuses -= 1

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._at_once):
                tasks.create_task(self._serve(), name=f"read-{number}")

    async def _serve(self) -> None:
        while True:
            registration, command = await self._queue.get()
            try:
                frames = await self._answer(registration, command)
            except ImqttError as error:
                self._counters.reject(error.code)
                frames = [rejected(error, _info(command))]
            except Exception:
                # A fault of this server's own, in one read: told to its device, and no end to the others.
                log.exception("a %s of %s failed", command.name, registration.device)
                self._counters.failures += 1
                frames = [rejected(Unavailable("the read failed; ask again"), _info(command))]
            self._counters.reads += 1
            await self._send(registration, frames)

    async def _answer(self, registration: Registration, command: Hello | Sync | History) -> list[AnyFrame]:
        user, device = registration.device
        room = Room(Format.of(registration.format), packet_room(registration, self._max_packet))
        page = await self._pages.answer(user, command, room)
        if not isinstance(command, Hello):
            return [page]
        welcome = Welcome(
            nonce=command.nonce,
            user=user,
            device=device,
            time=self._clock(),
            partitions=self._partitions,
            limits=self._limits,
            ref=command.ref,
        )
        told = await self._presences.for_newcomer(registration.device, page.heads, more=page.more_heads != 0)
        return [welcome, page, *told]

    def _send(self, registration: Registration, frames: Sequence[AnyFrame]) -> asyncio.Future[list[int]]:
        fanout = Fanout(self._max_packet, self._counters)
        for frame in frames:
            fanout.add(frame, (registration,))
        return self._publish(fanout.messages())


def _info(command: Hello | Sync | History) -> CommandInfo:
    return CommandInfo(command.name, getattr(command, "conversation", ""), "", command.ref)
