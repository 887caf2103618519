"""Sends the user's own marks to the server. Marks that rise within a moment become one command."""

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
    """Outlives connections. The heads of a later sync show marks that were lost; they are sent again."""

    def __init__(self, replica: Replica, uplink: Uplink, timing: Timing) -> None:
        self._replica = replica
        self._uplink = uplink
        self._timing = timing
        self._waiting: dict[str, None] = {}  # conversations, in order
        self._changed = asyncio.Event()

    def add(self, conversations: Iterable[str]) -> None:
        """These conversations have marks that the server lacks."""
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
            except Untaken:  # the marks still wait
                refusals += 1
                await asyncio.sleep(untaken(refusals, random(), most=self._timing.untaken))

    async def flush(self) -> None:
        """Sends the waiting marks of at most `AT_ONCE` conversations. Raises `Untaken`."""
        for name in list(self._waiting)[:AT_ONCE]:
            log = self._replica.logs[name]
            if log.marks.is_ahead:
                order, delivered, read = log.order, log.marks.delivered, log.marks.read
                await self._uplink.publish(Mark(name, delivered, read))
                if log.order is order:  # otherwise the log was restarted, and the marks were of the old one
                    self._replica.server_has(name, delivered, read)
            if not log.marks.is_ahead:  # they may have risen since
                self._waiting.pop(name, None)
        if not self._waiting:
            self._changed.clear()
