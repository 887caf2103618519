"""The user's own marks on their way to the server: many that rise within a moment are one command."""

import asyncio
from collections.abc import Iterable
from random import random

from imqtt.client.settings import Timing
from imqtt.client.transport import Untaken
from imqtt.client.uplink import Uplink
from imqtt.core.backoff import untaken
from imqtt.core.replica import Replica
from imqtt.model import Mark

AT_ONCE = 50  # commands before the next pause


class Marker:
    """Outlives connections. What does not arrive is seen in the heads of a later sync, and sent again."""

    def __init__(self, replica: Replica, uplink: Uplink, timing: Timing) -> None:
        self._replica = replica
        self._uplink = uplink
        self._timing = timing
        self._waiting: dict[str, None] = {}  # conversations, in order
        self._changed = asyncio.Event()

    def add(self, conversations: Iterable[str]) -> None:
        """These have marks that the server does not know."""
        self._waiting.update(dict.fromkeys(conversations))
        if self._waiting:
            self._changed.set()

    async def run(self) -> None:
        """Sends while there is a connection."""
        refusals = 0
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._timing.marks)
            try:
                await self.flush()
                refusals = 0
            except Untaken:  # what was not sent still waits
                refusals += 1
                await asyncio.sleep(untaken(refusals, random(), most=self._timing.untaken))

    async def flush(self) -> None:
        """Sends what has come together, at most a certain number. Raises `Untaken`."""
        for name in list(self._waiting)[:AT_ONCE]:
            log = self._replica.logs[name]
            if log.marks.is_ahead:
                order, delivered, read = log.order, log.marks.delivered, log.marks.read
                await self._uplink.publish(Mark(name, delivered, read), name)
                if log.order is order:  # or the log has begun anew: those were marks of the old one
                    self._replica.told(name, delivered, read)
            if not log.marks.is_ahead:  # they may have risen since
                self._waiting.pop(name, None)
        if not self._waiting:
            self._changed.clear()
