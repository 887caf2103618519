"""Devices that send until every message is accepted, and an independent audit of the stored log."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

from imqtt.broker.errors import LinkError
from imqtt.model import Accepted, Content, Cursor, Event, Page, Position, Rejected, Send, Sync
from tests.device import RawDevice
from tests.services import WITHIN

CONVERSATION = "d:alice:bob"
MOST_PATIENT = 20.0


class Sender:
    """Sends numbered messages and resends unaccepted ones, as every client must.

    `patience`: seconds until unanswered messages are resent, doubled after each period without any answer:
    resends at a fixed rate overload a slow server. `pause`: seconds between messages.
    """

    def __init__(
        self,
        device: RawDevice,
        count: int,
        conversation: str = CONVERSATION,
        *,
        patience: float = 1.0,
        pause: float = 0.0,
    ) -> None:
        self.device = device
        self.conversation = conversation
        self.wanted = [f"{device.device.user}-{number}" for number in range(count)]
        self.accepted: dict[str, Accepted] = {}
        self.answers: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self._patience = patience
        self._pause = pause
        self._seen = 0

    def look(self) -> None:
        for frame in self.device.frames[self._seen :]:
            self._seen += 1
            if isinstance(frame, Accepted):
                before = self.accepted.setdefault(frame.client_msg_id, frame)
                self.answers[frame.client_msg_id] += 1
                # Only the first answer to a message has `previous`.
                same = (before.seq, before.id, before.time) == (frame.seq, frame.id, frame.time)
                assert same, "an answer changed between resends"
            elif isinstance(frame, Rejected):
                self.rejected.append(frame)

    async def run(self) -> None:
        patience = self._patience
        while True:
            self.look()
            before = len(self.accepted)
            missing = [name for name in self.wanted if name not in self.accepted]
            if not missing:
                return
            for name in missing[:50]:
                command = Send(self.conversation, name, Content(text=name))
                try:
                    await asyncio.wait_for(self.device.command(command), WITHIN)
                except (LinkError, OSError, TimeoutError):
                    await self._reconnect()
                await asyncio.sleep(self._pause)
            deadline = asyncio.get_running_loop().time() + patience
            while asyncio.get_running_loop().time() < deadline:
                self.look()
                if all(name in self.accepted for name in missing[:50]):
                    break
                await asyncio.sleep(0.005)
            stalled = len(self.accepted) == before
            longer = max(patience, min(2 * patience, MOST_PATIENT))
            patience = longer if stalled else self._patience

    async def _reconnect(self) -> None:
        await self.device.disconnect()
        while True:
            try:
                await self.device.connect()
            except (LinkError, OSError):
                await asyncio.sleep(0.1)
            else:
                return


def conversation_of(pair: int) -> str:
    return f"d:anna{pair}:ben{pair}"


async def pairs(
    device: Callable[..., Awaitable[RawDevice]], which: int | Iterable[int], count: int, **options: float
) -> list[Sender]:
    """Pairs of users: this many, or those with these numbers. Each user sends `count` messages."""

    async def connected(name: str, conversation: str) -> Sender:
        sender = Sender(await device(f"{name}@phone"), count, conversation, **options)
        await sender.device.hello()
        return sender

    numbers = range(which) if isinstance(which, int) else which
    return await asyncio.gather(
        *(
            connected(f"{user}{number}", conversation_of(number))
            for number in numbers
            for user in ("anna", "ben")
        )
    )


async def all_sent(senders: Sequence[Sender], within: float = 5 * WITHIN) -> None:
    """Runs all senders; fails after `within` seconds with the names of those that still wait."""
    try:
        async with asyncio.timeout(within), asyncio.TaskGroup() as tasks:
            for sender in senders:
                tasks.create_task(sender.run())
    except TimeoutError:
        waiting = {str(sender.device.device): len(sender.wanted) - len(sender.accepted) for sender in senders}
        raise AssertionError(f"not accepted within {within} s: {waiting}") from None


async def log_of(device: RawDevice, conversation: str = CONVERSATION) -> list[Event]:
    """The whole conversation, read from the server."""
    events: list[Event] = []
    cursor = Cursor(conversation)
    while True:
        ref = f"after-{cursor.seq}"  # a command may be answered twice and late
        await device.command(Sync((cursor,), ref=ref))
        page = await device.until(lambda frame, ref=ref: isinstance(frame, Page) and frame.ref == ref)
        assert isinstance(page, Page)
        events += [event for part in page.slices for event in part.events]
        if not page.more:
            return events
        cursor = Cursor(conversation, events[-1].seq, events[-1].id)


async def audit(
    senders: Sequence[Sender], reader: RawDevice, conversation: str = CONVERSATION
) -> list[Event]:
    """Every accepted message is in the log once, at its accepted position, and the log has no hole."""
    events = await log_of(reader, conversation)
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), "a hole"
    names = [event.client_msg_id for event in events]
    assert len(names) == len(set(names)), "stored twice"
    by_name = {event.client_msg_id: event for event in events}
    for sender in senders:
        sender.look()
        for name, accepted in sender.accepted.items():
            assert name in by_name, f"{name} was accepted and is lost"
            assert by_name[name].position == Position(accepted.seq, accepted.id)
    return events


async def audit_pairs(
    device: Callable[..., Awaitable[RawDevice]], senders: Sequence[Sender], *, live: bool = True
) -> None:
    """`audit` for every pair; with `live`, each device was also sent every event of the other, in order."""
    for one, two in zip(senders[::2], senders[1::2], strict=True):
        reader = await device(f"{one.device.device.user}@auditor")
        events = await audit([one, two], reader, one.conversation)
        assert len(events) == len(one.wanted) + len(two.wanted)
        for sender in (one, two):
            others = [event.seq for event in events if event.sender != sender.device.device.user]
            received = dict.fromkeys(event.seq for event in sender.device.events(one.conversation))
            if live:
                assert [seq for seq in received if seq in set(others)] == others, (
                    "a device missed an event, or received it out of order"
                )
