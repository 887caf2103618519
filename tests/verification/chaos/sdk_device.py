"""A device on the SDK, as a process that writes down what it did and what it was told.

`python -m tests.verification.chaos.sdk_device`, with a `Plan` on stdin. It may be killed at any time, and
started again with the same plan: what it had given to the SDK is in the SDK's outbox, and what it had said in
its history.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from imqtt.client import Client, Format, Notice, Refused, Restarted, Timing
from imqtt.client.catchup import CatchUp
from imqtt.client.feed import Broadcast, Events, Queue
from imqtt.core.outbox import OutboxKey
from imqtt.errors import ClientError, ImqttError
from imqtt.model import Accepted, Event, Marks, Page, Sync
from tests.verification.chaos.console import Console, Plan, Started, until_one_ends
from tests.verification.chaos.journal import Journal, Message
from tests.verification.checker.history import Row, now

TICK = 0.1  # seconds between looks at what is due

# A device that finds out quickly what is wrong, so that a run has time for many faults.
QUICK = {
    "connect": 3.0, "keep_alive": 5, "answer": 2.0, "patience": 10.0,
    "retry": 0.3, "retry_most": 3.0, "sync": 4.0,
}  # fmt: skip


def client_of(plan: Plan) -> Client:
    """The SDK's client that the plan describes, holding everything from the first event on."""
    timing = QUICK | plan.timing
    timing["keep_alive"] = int(timing["keep_alive"])
    return Client(
        user=plan.user,
        device=plan.device,
        password=plan.password,
        brokers=plan.brokers,
        store=Path(plan.store) if plan.store else None,
        format=Format(plan.format),
        start="beginning",
        wait=0.0,
        timing=Timing(**timing),  # type: ignore[arg-type]  # names are Timing's own
    )


def row_of(event: Event) -> Row:
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, event.content.text or "")


async def held_by(client: Client) -> dict[str, tuple[int, tuple[Row, ...]]]:
    """What it has stored of each conversation that it knows: its base, and all events that are there.

    Past the public ways, which would ask the server for what is missing, or hide it.
    """
    held: dict[str, tuple[int, tuple[Row, ...]]] = {}
    for conversation, log in sorted(client._parts.replica.logs.items()):
        events = await client._parts.store.events(conversation, 0, 1 << 53)
        held[conversation] = (log.base, tuple(map(row_of, events)))
    return held


class Hearing(Queue[Notice]):
    """Hears a notice at the moment when it is told, and not some time later."""

    def __init__(self, broadcast: Broadcast[Notice], hear: Callable[[Notice], None]) -> None:
        super().__init__(broadcast, 1)
        self._hear = hear
        broadcast._queues.add(self)

    def put(self, item: Notice) -> None:
        self._hear(item)


class Walks:
    """Knows up to which moment a device has asked for what there is, and got it."""

    def __init__(self, catchup: CatchUp) -> None:
        self.whole_to = 0.0  # on the clock of histories
        self._asked_at = 0.0
        ask, walk = catchup._ask, catchup._walk

        async def asking(sync: Sync) -> Page:
            at = now()
            page = await ask(sync)
            if sync.heads and not sync.heads_before:
                self._asked_at = at
            return page

        async def walking(page: Page) -> None:
            asked_at = self._asked_at
            await walk(page)
            self.whole_to = asked_at

        catchup._ask, catchup._walk = asking, walking  # type: ignore[method-assign]


class SdkDevice:
    """One life of the device."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan = console.plan
        self._journal = Journal(self._plan)
        self._client = client_of(self._plan)
        self._going = asyncio.Event()
        self._going.set()
        self._open: dict[str, Message] = {}  # by name
        self._informed: set[str] = set()
        self._remarked: set[str] = set()  # conversations whose marks have changed
        self._own_marks: dict[str, tuple[int, int]] = {}  # the user's, as the server has told them
        self._hearing = Hearing(self._client._notices, self._hear)
        self._events: Events | None = None

    async def run(self) -> None:
        """Until it is told to finish, or nobody is there any more."""
        self._journal.start(ordered=True, keeps=True)
        async with self._client as client:
            self._walks = Walks(client._parts.catchup)
            await self._find_outbox()
            self._events = client.events("history")
            self._console.say(Started())
            await until_one_ends(self._send, self._consume, self._tick, self._obey)

    async def _obey(self) -> None:
        await self._console.obey(self._going, self._settle, self._finish)

    async def _find_outbox(self) -> None:
        """Goes on waiting for what its last life has left there."""
        journal = self._journal
        for entry in await self._client.outbox():
            name = entry.client_msg_id
            if entry.refused:
                if name not in journal.failed:
                    journal.fail(entry.conversation, name, entry.refused)
                continue
            message = journal.messages[name]
            # The answer may have come since the outbox was read.
            if entry.key in self._client._parts.sender._outbox:
                self._await_answer(message)
                if name not in journal.taken:
                    journal.take(message)

    # --- sending

    async def _send(self) -> None:
        journal, plan = self._journal, self._plan
        if not (plan.rate and plan.conversations):
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(journal.random.uniform(0.5, 1.5) / plan.rate)
            await self._going.wait()
            if len(self._open) < plan.most_open:
                await self._post(journal.compose(journal.random.choice(plan.conversations)))

    async def _post(self, message: Message) -> None:
        """What `Client.send` does, with a look at the moment when the message is in the outbox."""
        conversation, name, value, _ = message
        self._journal.invoke(message)
        answer = self._await_answer(message)
        try:
            await self._client.post(conversation, value, client_msg_id=name)
        except ImqttError as error:
            answer.cancel()
            self._client._parts.sender.forget(OutboxKey(conversation, name), answer)
            self._unanswered(message, error)
        else:
            self._journal.take(message)

    def _await_answer(self, message: Message) -> "asyncio.Future[Accepted]":
        self._open[message.name] = message
        answer = self._client._parts.sender.wait(OutboxKey(message.conversation, message.name))
        answer.add_done_callback(lambda done: self._answered(message, done))
        return answer

    def _answered(self, message: Message, answer: "asyncio.Future[Accepted]") -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, ImqttError):
            self._unanswered(message, error)
        else:
            self._open.pop(message.name, None)
            accepted = answer.result()
            self._journal.ok(accepted.conversation, accepted.client_msg_id, accepted.seq, accepted.id)

    def _unanswered(self, message: Message, error: ImqttError) -> None:
        self._open.pop(message.name, None)
        if isinstance(error, ClientError):  # this device's own trouble: nobody has refused the message
            self._journal.info(message, f"{error.code}: {error}")
        else:
            self._journal.fail(message.conversation, message.name, error.code)

    # --- what comes

    async def _consume(self) -> None:
        assert self._events is not None
        async for event in self._events:
            # Asking for the next one finishes it: after a kill in between, it is the first to be seen again.
            self._journal.see(event.conversation, row_of(event))

    def _hear(self, notice: Notice) -> None:
        if isinstance(notice, Restarted):
            self._own_marks.pop(notice.conversation, None)
            self._journal.begin(notice.conversation)
            self._remarked.add(notice.conversation)
        elif isinstance(notice, Marks):
            self._hear_marks(notice)
        elif isinstance(notice, Refused):
            self._journal.fail(notice.entry.conversation, notice.entry.client_msg_id, notice.error.code)

    def _hear_marks(self, marks: Marks) -> None:
        conversation = marks.conversation
        if marks.user == self._plan.user:
            written = self._journal.marks.get((conversation, marks.user), (0, 0))
            delivered, read = self._own_marks.get(conversation, written)
            self._own_marks[conversation] = max(delivered, marks.delivered), max(read, marks.read)
        self._remarked.add(conversation)

    async def _tick(self) -> None:
        journal = self._journal
        told = None
        while True:
            await asyncio.sleep(TICK)
            if journal.progress != told:
                told = journal.progress
                self._console.say(told)
            self._lose_patience()
            await self._note_marks()
            if journal.seen and journal.random.random() < TICK * self._plan.marks and self._going.is_set():
                conversation = journal.random.choice(list(journal.seen))
                await self._client.mark_read(conversation, journal.seen[conversation].seq)

    def _lose_patience(self) -> None:
        for message in self._open.values():
            if now() - message.at < self._plan.patience:
                break  # they are in the order in which they were invoked
            if message.name not in self._informed:
                self._informed.add(message.name)
                self._journal.info(message, "no answer yet")

    async def _note_marks(self) -> None:
        for conversation in list(self._remarked):
            self._remarked.discard(conversation)
            for user, marks in (await self._client.marks(conversation)).items():
                # The device's own rise before the server has heard of it: nobody has promised to keep them.
                own = self._own_marks.get(conversation, (0, 0))
                told = own if user == self._plan.user else (marks.delivered, marks.read)
                # Those of the old log are read before the new one is told of, or not at all.
                if conversation not in self._remarked and any(told):
                    self._journal.mark(conversation, user, *told)

    # --- the end

    async def _settle(self) -> None:
        """Says so when everything is answered, and all that there was by then has come and is written."""
        sender, catchup = self._client._parts.sender, self._client._parts.catchup
        while self._open or len(sender):
            await asyncio.sleep(TICK)
        since = now()
        feed, events = self._client._parts.feed, self._events
        assert events is not None
        while True:
            await self._client.caught_up()
            behind = len(catchup._wanted) or any(
                log.is_behind for log in self._client._parts.replica.logs.values()
            )
            unseen = events._read_to < feed.ordinal or events._ahead or events._unfinished
            if self._walks.whole_to >= since and not (behind or unseen or self._remarked):
                self._console.done("settle")
                return
            await asyncio.sleep(TICK)

    async def _finish(self) -> int:
        self._going.clear()
        held = await held_by(self._client)
        for conversation, (base, rows) in held.items():
            self._journal.hold(conversation, base, rows)
        return len(held)


async def main() -> None:
    console = await Console.open()
    await SdkDevice(console).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
