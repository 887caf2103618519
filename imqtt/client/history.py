"""Reads a conversation from the device's log, and from the server if the log is incomplete."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from imqtt.client.requests import Requests
from imqtt.client.store import LocalStore
from imqtt.core.conversation_view import ConversationView, view_of
from imqtt.core.overlays import overlaid, registers_by_name
from imqtt.core.replica import Replica
from imqtt.errors import NotConnected
from imqtt.model import Event, History, Slice


@dataclass(eq=False)
class Reader:
    """Adds the server's answers to the device's log if they meet it."""

    replica: Replica
    store: LocalStore
    requests: Requests
    commit: Callable[[], Awaitable[None]]

    async def history(self, conversation: str, before: int | None, limit: int) -> list[Event]:
        """At most `limit` events before seq `before`, in order of seq."""
        log = self.replica.logs.get(conversation)
        if log is None or not log.begun:
            return await self._ask(conversation, before or 0, limit)
        end = log.cursor.seq + 1 if before is None else before
        if end > log.cursor.seq + 1 and log.is_behind:
            with contextlib.suppress(NotConnected):
                return await self._ask(conversation, end, limit)
        end = min(end, log.cursor.seq + 1)
        own = await self.store.events(conversation, max(log.base + 1, end - limit), end - 1)
        wanted = limit - len(own)
        if wanted <= 0 or log.base == 0 or log.missing or end <= 1:
            return own
        try:
            older = await self._ask(conversation, own[0].seq if own else end, wanted)
        except NotConnected as error:
            if own:
                return own
            raise NotConnected(f"this device lacks {conversation} before seq {end}: {error}") from None
        return older + own

    async def view(self, conversation: str, limit: int) -> ConversationView:
        """The newest `limit` events that the device holds, folded."""
        log = self.replica.logs.get(conversation)
        first, last, head, ahead = 1, 0, 0, list[Event]()
        if log is not None and log.begun:
            first, last = max(log.base, log.cursor.seq - limit) + 1, log.cursor.seq
            head = max(log.head.seq, last)
            ahead = [] if log.order.in_doubt else log.order.buffered
        # Submitted at once, so that no change of the store comes between them.
        events, registers, marks, outbox = await asyncio.gather(
            self.store.events(conversation, first, last),
            self.store.registers(conversation, first),
            self.store.marks(conversation),
            self.store.entries(),
        )
        return view_of(
            conversation,
            events + ahead,
            registers=registers,
            marks=marks.values(),
            outbox=outbox.values(),
            first=events[0].seq if events else first,
            head=head,
        )

    async def after(self, conversation: str, seq: int, head: int) -> list[Event]:
        """All events after `seq` up to `head`. Raises `NotConnected` if some cannot be read."""
        events = await self.history(conversation, head + 1, head - seq)
        log = self.replica.logs.get(conversation)
        is_whole = bool(events) and (events[0].seq, events[-1].seq) == (seq + 1, head)
        if not is_whole and (log is None or not log.missing):
            raise NotConnected(f"this device lacks events of {conversation} after seq {seq}")
        return events

    async def _ask(self, conversation: str, before: int, limit: int) -> list[Event]:
        """Requests the events from the server, page by page."""
        events: list[Event] = []
        while len(events) < limit:
            page = await self.requests.ask(History(conversation, before, limit - len(events)))
            part = next((part for part in page.slices if part.history), Slice(conversation))
            self.replica.extend(conversation, part)
            await self.commit()
            events[:0] = await self._as_known(conversation, part.events)
            if not part.events or not part.more:
                break
            before = part.events[0].seq
        return events

    async def _as_known(self, conversation: str, events: Sequence[Event]) -> list[Event]:
        """The events of a page as they are now: a recall may have overtaken the page."""
        first = events[0].seq if events else 0
        registers = registers_by_name(await self.store.registers(conversation, first))
        return [overlaid(event, registers)[0] for event in events]
