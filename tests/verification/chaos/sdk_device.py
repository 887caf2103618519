"""A device on the SDK: a process that records what it did and what it was told.

`python -m tests.verification.chaos.sdk_device`, with a `Plan` on stdin. It may be killed at any time and
restarted with the same plan: its messages are in the SDK's outbox, and its records in its history.
"""

import asyncio
from pathlib import Path

from imqtt.client import Client, Format, Notice, Refused, Restarted, Timing
from imqtt.client.catchup import CatchUp
from imqtt.client.feed import Events, Queue
from imqtt.client.store import LocalStore
from imqtt.errors import ClientError, ImqttError
from imqtt.model import Device, Marks, Page, Sync
from tests.verification.chaos.console import Console, Plan, Started, run_device, until_one_ends
from tests.verification.chaos.journal import Journal, Message
from tests.verification.checker.history import Row, now
from tests.verification.events import recall_value, recalled_by, row_of

RECALLED = 0.05  # share of the user's messages that a device recalls when it sees them
TICK = 0.1  # seconds between checks of what is due
RETRY_SECONDS = 1.0  # after a failure of the client itself

# Timeouts that detect failures quickly, so that a run has time for many faults.
QUICK = {
    "connect": 3.0, "keep_alive": 5, "answer": 2.0, "patience": 10.0,
    "retry": 0.3, "retry_most": 3.0, "sync": 4.0,
}  # fmt: skip


def client_of(plan: Plan) -> Client:
    """The client of this plan, which syncs every conversation from its first event on."""
    timing = QUICK | plan.timing
    timing["keep_alive"] = int(timing["keep_alive"])
    return Client(
        user=plan.user,
        device=plan.device,
        password=plan.password,
        brokers=plan.brokers,
        store=Path(plan.store),
        format=Format(plan.format),
        start="beginning",
        wait=0.0,
        timing=Timing(**timing),  # type: ignore[arg-type]  # names are Timing's own
    )


async def held_by(plan: Plan) -> dict[str, tuple[int, tuple[Row, ...]]]:
    """For each conversation in the store of a closed client: its base and all stored events.

    Read directly, because a client would fetch missing events from the server.
    """
    store = await LocalStore.open(Path(plan.store), Device(plan.user, plan.device))
    try:
        held: dict[str, tuple[int, tuple[Row, ...]]] = {}
        for log in (await store.load()).logs:
            events = await store.events(log.conversation, 0, 1 << 53)
            held[log.conversation] = (log.base, tuple(map(row_of, events)))
        return dict(sorted(held.items()))
    finally:
        await store.close()


class SyncMonitor:
    """Knows the time up to which a device has completely synced, which no public call tells."""

    def __init__(self, catchup: CatchUp) -> None:
        self.complete_until = 0.0  # on the clock of histories
        self._asked_at = 0.0
        ask, walk = catchup._ask, catchup._walk

        async def timed_ask(sync: Sync) -> Page:
            at = now()
            page = await ask(sync)
            if sync.heads and not sync.heads_before:
                self._asked_at = at
            return page

        async def timed_walk(page: Page) -> None:
            asked_at = self._asked_at
            await walk(page)
            self.complete_until = asked_at

        catchup._ask, catchup._walk = timed_ask, timed_walk  # type: ignore[method-assign]


class SdkDevice:
    """One run of the device's process."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan = console.plan
        self._journal = Journal(self._plan)
        self._client = client_of(self._plan)
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._open: dict[str, Message] = {}  # unanswered messages by name
        self._informed: set[str] = set()
        self._changed_marks: set[str] = set()  # conversations
        self._own_marks: dict[str, tuple[int, int]] = {}  # the user's, as the server reported them
        self._queued: asyncio.Queue[Message] = asyncio.Queue()  # messages whose answers are awaited
        self._notices: Queue[Notice]
        self._events: Events

    async def run(self) -> None:
        """Runs until told to finish, or until stdin is closed."""
        self._journal.start(ordered=True, durable=True)
        self._notices = self._client.notices()
        async with self._client as client:
            self._sync_monitor = SyncMonitor(client._parts.catchup)
            self._events = client.events("history")
            await self._resume_outbox()
            self._console.report(Started())
            await until_one_ends(
                self._await_answers, self._send, self._consume, self._listen, self._tick, self._execute_orders
            )
        if self._console.is_finished:
            held = await held_by(self._plan)
            for conversation, (base, rows) in held.items():
                self._journal.hold(conversation, base, rows)
            self._console.done("finish", len(held))

    async def _execute_orders(self) -> None:
        await self._console.execute_orders(self._may_send, self._settle)

    # --- sending

    async def _send(self) -> None:
        journal, plan = self._journal, self._plan
        if not (plan.rate and plan.conversations):
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(journal.random.uniform(0.5, 1.5) / plan.rate)
            await self._may_send.wait()
            if len(self._open) < plan.max_unanswered:
                await self._post(journal.compose(journal.random.choice(plan.conversations)))

    async def _post(self, message: Message) -> None:
        conversation, name, value, _ = message
        self._journal.invoke(message)
        self._open[name] = message
        try:
            await self._client.post(conversation, value, client_msg_id=name)
        except ImqttError as error:
            self._unanswered(message, error)
        else:
            self._journal.queue(message)
            self._queued.put_nowait(message)

    async def _resume_outbox(self) -> None:
        """Awaits the answers to messages of earlier runs."""
        journal = self._journal
        for entry in await self._client.outbox():
            name = entry.client_msg_id
            if not entry.refused:
                message = self._open[name] = journal.messages[name]
                if name not in journal.queued:
                    journal.queue(message)
                self._queued.put_nowait(message)
            elif name not in journal.failed:
                journal.fail(entry.conversation, name, entry.refused)

    async def _await_answers(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                message = await self._queued.get()
                tasks.create_task(self._await_answer(message), name=f"answer to {message.name}")

    async def _await_answer(self, message: Message) -> None:
        """`send` returns the answer to a queued message; if that was answered, it is sent again."""
        conversation, name, value, _ = message
        if name not in self._journal.messages:
            self._journal.invoke(message)  # a recall is in the outbox before the next await ends
        target = recalled_by(value)
        while name in self._open:
            try:
                if target is None:
                    accepted = await self._client.send(conversation, value, client_msg_id=name)
                else:
                    accepted = await self._client.recall(conversation, target, client_msg_id=name)
            except ClientError as error:  # the device's own failure: the message is still in the outbox
                self._journal.info(message, f"{error.code}: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            except ImqttError as error:
                self._unanswered(message, error)
            else:
                del self._open[name]
                self._journal.ok(accepted.conversation, name, accepted.seq, accepted.id)

    def _unanswered(self, message: Message, error: ImqttError) -> None:
        del self._open[message.name]
        if isinstance(error, ClientError):  # the device's own failure: the message was not rejected
            self._journal.info(message, f"{error.code}: {error}")
        else:
            self._journal.fail(message.conversation, message.name, error.code)

    # --- receiving

    async def _consume(self) -> None:
        async for event in self._events:
            # Asking for the next event finishes this one: after a kill in between, it is seen again.
            self._take_notices()
            self._journal.see(event.conversation, row_of(event))
            is_own = event.kind == "message" and event.sender == self._plan.user
            if is_own and self._may_send.is_set() and self._journal.random.random() < RECALLED:
                message = self._journal.compose(event.conversation)
                message = message._replace(value=recall_value(event.position))
                self._open[message.name] = message
                self._queued.put_nowait(message)

    async def _listen(self) -> None:
        async for notice in self._notices:
            self._take_notice(notice)

    def _take_notices(self) -> None:
        """Takes the notices that were given before an event or a mark which is about to be recorded."""
        while self._notices.waiting:
            self._take_notice(self._notices.waiting.popleft())

    def _take_notice(self, notice: Notice) -> None:
        if isinstance(notice, Restarted):
            self._own_marks.pop(notice.conversation, None)
            self._journal.restart_log(notice.conversation)
            self._changed_marks.add(notice.conversation)
        elif isinstance(notice, Marks):
            self._take_marks(notice)
        elif isinstance(notice, Refused):
            self._journal.fail(notice.entry.conversation, notice.entry.client_msg_id, notice.error.code)

    def _take_marks(self, marks: Marks) -> None:
        conversation = marks.conversation
        if marks.user == self._plan.user:
            written = self._journal.marks.get((conversation, marks.user), (0, 0))
            delivered, read = self._own_marks.get(conversation, written)
            self._own_marks[conversation] = max(delivered, marks.delivered), max(read, marks.read)
        self._changed_marks.add(conversation)

    async def _tick(self) -> None:
        journal = self._journal
        reported = None
        while True:
            await asyncio.sleep(TICK)
            if journal.progress != reported:
                reported = journal.progress
                self._console.report(reported)
            self._report_slow_answers()
            await self._note_marks()
            if journal.seen and journal.random.random() < TICK * self._plan.marks and self._may_send.is_set():
                conversation = journal.random.choice(list(journal.seen))
                await self._client.mark_read(conversation, journal.seen[conversation].seq)

    def _report_slow_answers(self) -> None:
        for message in self._open.values():
            if now() - message.at < self._plan.patience:
                break  # they are ordered by time
            if message.name not in self._informed:
                self._informed.add(message.name)
                self._journal.info(message, "no answer yet")

    async def _note_marks(self) -> None:
        for conversation in list(self._changed_marks):
            self._changed_marks.discard(conversation)
            for user, marks in (await self._client.marks(conversation)).items():
                self._take_notices()
                # The device's own marks do not count before the server has them.
                own = self._own_marks.get(conversation, (0, 0))
                known = own if user == self._plan.user else (marks.delivered, marks.read)
                # Marks that were read before a restart of the log belong to the old log.
                if conversation not in self._changed_marks and any(known):
                    self._journal.mark(conversation, user, *known)

    # --- the end

    async def _settle(self) -> None:
        """Reports when all messages are answered and everything that existed by then is recorded."""
        while self._open:
            await asyncio.sleep(TICK)
        since = now()
        while True:
            await self._client.caught_up()
            is_complete = self._sync_monitor.complete_until >= since
            if is_complete and await self._has_seen_all() and not self._changed_marks:
                self._console.done("settle")
                return
            await asyncio.sleep(TICK)

    async def _has_seen_all(self) -> bool:
        # After a restart of a log, events that were seen before are not given again.
        return all(
            not summary.head.seq or summary.head.id in self._journal.seen_ids
            for summary in await self._client.conversations()
        )


if __name__ == "__main__":
    run_device(SdkDevice)
