"""The devices of the simulation: the SDK with a program, and a plain client that speaks JSON.

Each runs as its own process, records its history, and may be killed between any two callbacks. Its disk and
its message plan survive, as on a real device.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from imqtt.broker.errors import SUCCESS, LinkError
from imqtt.broker.link import LinkSettings, Packet
from imqtt.client import Client, Timing
from imqtt.client.feed import Queue
from imqtt.client.transport import Transport
from imqtt.client.values import Notice, Restarted
from imqtt.core.conversations import members_of
from imqtt.core.partitions import home_of, partition_of
from imqtt.errors import DeviceStoreError, ImqttError, NotConnected
from imqtt.model import (
    Accepted,
    AnyCommand,
    Content,
    Device,
    Event,
    Hello,
    History,
    Mark,
    Marks,
    Page,
    Position,
    Recall,
    Rejected,
    Send,
)
from imqtt.protocol import Format, decode_frames, encode_command
from imqtt.protocol.topics import down, up
from tests.verification.checker import history
from tests.verification.checker.history import Line
from tests.verification.events import recall_value, row_of
from tests.verification.simulation.database import Disk, SimDatabase
from tests.verification.simulation.link import SimLink
from tests.verification.simulation.loop import Loop, Process

# The defaults except for the keep-alive, which finds half-open connections sooner.
TIMING = Timing(keep_alive=10, retry_most=8.0, patience=20.0)
PASSWORD = "secret"
RECALLED = 0.1  # share of a user's messages that a device recalls when it sees them
PATIENCE = 3.0  # seconds after which a plain device resends unanswered messages


class MessagePlan:
    """The messages that one device sends: `count` to random conversations at random times."""

    def __init__(self, loop: Loop, conversations: Sequence[str], count: int, within: float) -> None:
        draw = loop.random
        self.times = sorted(draw.random() * within for _ in range(count))
        self.conversations = [draw.choice(conversations) for _ in range(count)]
        self.next = 0  # index of the next message; survives the device's process

    async def take(self, loop: Loop) -> tuple[int, str] | None:
        """The next message's number and conversation, when it is due."""
        if self.next >= len(self.times):
            return None
        await asyncio.sleep(max(0.0, self.times[self.next] - loop.time()))
        number = self.next
        self.next += 1
        return number, self.conversations[number]

    def add(self, conversations: Sequence[str], now: float) -> None:
        """Adds one message to each of these."""
        self.times += [now] * len(conversations)
        self.conversations += conversations


class SdkDevice:
    """One device with the SDK. `pending`: messages that were sent and are not answered."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        plan: MessagePlan,
        write: Callable[[Line], None],
        format: Format,
        disk: Disk,
        transport: Transport,
    ) -> None:
        self.name = name
        self.user, self.device = name.split("@")
        self.pending: set[str] = set()
        self.seen: dict[str, int] = {}  # the id of the newest event shown, by conversation
        self.failure: BaseException | None = None
        self.disk_failed = False  # its process ended because of that and was not restarted
        self.process: Process | None = None
        self.client: Client | None = None
        self.recalls = RECALLED
        self._loop = loop
        self._plan = plan
        self._write = write
        self._format = format
        self._disk = disk
        self._transport = transport
        self._outbox_is_read = False  # messages of an earlier process are awaited again
        self._more: asyncio.Event
        self._tasks: asyncio.TaskGroup
        self._notices: Queue[Notice]
        self._shown: set[int] = set()  # the ids of all events shown, including those of earlier logs
        self._restarted: dict[str, None] = {}  # conversations whose restart is not recorded yet

    def start(self) -> None:
        """Starts a process on the disk of the previous one."""
        self.process = self._loop.new_process(self.name)
        self.disk_failed = False
        self.pending.clear()
        self._outbox_is_read = False
        self._more = asyncio.Event()
        self.client = None
        self._write(history.Start(self.name, self._loop.time(), ordered=True, durable=True))
        self.process.spawn(self._run(), self.name)

    @property
    def path(self) -> Path:
        """Its store on its disk."""
        return Path(self.name)

    @property
    def settled(self) -> bool:
        """Whether every message was sent and answered."""
        return self._outbox_is_read and self._plan.next >= len(self._plan.times) and not self.pending

    def has(self, conversation: str, head: Position) -> bool:
        """Whether it holds a log up to its end and has shown all of it to its program.

        When a log is restarted, the program is shown only events that it has not seen before.
        """
        log = self.client._parts.replica.logs.get(conversation) if self.client is not None else None
        is_shown = self.seen.get(conversation, head.id) == head.id and head.id in self._shown
        return log is not None and log.cursor.id == head.id and is_shown

    def own_marks(self) -> list[tuple[str, int, int]]:
        """The user's marks as this device has them."""
        logs = self.client._parts.replica.logs.values() if self.client is not None else ()
        return [(log.conversation, log.marks.delivered, log.marks.read) for log in logs]

    def send_more(self, conversations: Sequence[str]) -> None:
        """Sends one more message to each of these."""
        self._plan.add(conversations, self._loop.time())
        if self.process is not None and self.process.alive:
            self.process.call_soon(self._more.set)

    async def _run(self) -> None:
        try:
            async with self._connected() as client:
                self.client = client
                self._notices = client.notices()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._consume(client))
                    tasks.create_task(self._hear(client))
                    tasks.create_task(self._send(client, tasks))
        except* DeviceStoreError:
            self.disk_failed = True
        except* BaseException as error:
            self.failure = error
            raise

    def _connected(self, *, fresh: bool = False) -> Client:
        return Client(
            user=self.user,
            device=self.device,
            password=PASSWORD,
            brokers="broker:1883",
            store=SimDatabase(self._disk, None if fresh else self.path),
            format=self._format,
            start="beginning",
            timing=TIMING,
            transport=self._transport,
        )

    async def _send(self, client: Client, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        for entry in await client.outbox():  # of an earlier process
            self._await(client, tasks, entry.command)
        self._outbox_is_read = True
        while True:
            message = await self._plan.take(self._loop)
            if message is None:
                self._more.clear()
                await self._more.wait()
                continue
            number, conversation = message
            name, value = f"{self.device}-{number}", f"{self.name}:{number}"
            self.pending.add(name)
            self._write(history.Invoke(self.name, self._loop.time(), conversation, name, value))
            await client.post(conversation, value, client_msg_id=name)
            self._write(history.Queued(self.name, self._loop.time(), conversation, name))
            self._await(client, tasks, Send(conversation, name, Content(text=value)))

    def _recall(self, client: Client, event: Event) -> None:
        """Recalls a message of the user, as another device of the user may do at the same time."""
        recall = Recall(event.conversation, f"recall-{self.device}-{event.id}", event.position)
        self.pending.add(recall.client_msg_id)

        async def send() -> None:
            # With no await before the outbox: messages that are invoked later follow it.
            value = recall_value(recall.target)
            self._write(
                history.Invoke(self.name, self._loop.time(), recall.conversation, recall.client_msg_id, value)
            )
            await self._answer(client, recall)

        self._tasks.create_task(send())

    def _await(self, client: Client, tasks: asyncio.TaskGroup, command: Send | Recall) -> None:
        self.pending.add(command.client_msg_id)
        tasks.create_task(self._answer(client, command))

    async def _answer(self, client: Client, command: Send | Recall) -> None:
        conversation, name = command.conversation, command.client_msg_id
        try:
            while True:
                try:
                    if isinstance(command, Send):
                        answer = await client.send(conversation, command.content, client_msg_id=name)
                    else:
                        answer = await client.recall(conversation, command.target, client_msg_id=name)
                    break
                except (DeviceStoreError, NotConnected) as error:  # the message may be in the outbox
                    self._write(history.Info(self.name, self._loop.time(), conversation, name, error.code))
                    await asyncio.sleep(1.0)
        except ImqttError as error:
            self._write(history.Fail(self.name, self._loop.time(), conversation, name, error.code))
        else:
            self._write(
                history.Ok(self.name, self._loop.time(), conversation, name, answer.seq, int(answer.id))
            )
        self.pending.discard(name)

    async def _consume(self, client: Client) -> None:
        async for event in client.events("history"):
            self._note_restart(event.conversation)
            self._write(history.Seen(self.name, self._loop.time(), event.conversation, row_of(event)))
            self.seen[event.conversation] = int(event.id)
            self._shown.add(event.id)
            is_own = event.kind == "message" and event.sender == self.user
            if is_own and self._loop.random.random() < self.recalls:
                self._recall(client, event)
            if self._loop.random.random() < 0.1:
                await client.mark_read(event.conversation, event.seq)

    async def _hear(self, client: Client) -> None:
        async for notice in self._notices:
            # The user's own marks may be ahead of the store's.
            if isinstance(notice, Marks) and notice.user != self.user:
                found = (await client.marks(notice.conversation)).get(notice.user)
                if found is not None:
                    self._write(
                        history.Marked(
                            self.name, self._loop.time(), notice.conversation, notice.user, found.delivered,
                            found.read,
                        )
                    )  # fmt: skip
            elif isinstance(notice, Restarted):
                self._restarted[notice.conversation] = None
                self._note_restart(notice.conversation)

    def _note_restart(self, conversation: str) -> None:
        """Notices and events are two iterators: the notice may be read after the new log's first event."""
        waiting = self._notices.waiting
        for notice in [
            notice
            for notice in waiting
            if isinstance(notice, Restarted) and notice.conversation == conversation
        ]:
            waiting.remove(notice)
            self._restarted[conversation] = None
        if conversation in self._restarted:
            del self._restarted[conversation]
            self._write(history.LogRestarted(self.name, self._loop.time(), conversation))
            self.seen.pop(conversation, None)

    async def record_held(self, conversations: Sequence[str]) -> None:
        """Records what the device holds of its conversations."""
        assert self.client is not None, "the device was never started"
        await self._hold(self.client, conversations, fresh=False)

    async def sync_fresh_device(self, conversations: Sequence[str]) -> None:
        """As `record_held`, for a device with an empty store that has caught up."""
        async with self._connected(fresh=True) as client:
            await client.caught_up()
            await self._hold(client, conversations, fresh=True)

    async def _hold(self, client: Client, conversations: Sequence[str], *, fresh: bool) -> None:
        for conversation in conversations:
            log = client._parts.replica.logs.get(conversation)
            base = log.base if log is not None else 0
            events = await client._parts.store.events(conversation, base + 1, 1 << 53)
            rows = tuple(row_of(event) for event in events)
            self._write(history.Held(self.name, self._loop.time(), conversation, base, rows, fresh))


class PlainDevice:
    """A client without the SDK: it speaks JSON and resends unanswered messages, or never does."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        plan: MessagePlan,
        write: Callable[[Line], None],
        connect: Callable[[LinkSettings], object],
        *,
        partitions: int,
        resends: bool,
    ) -> None:
        self.name = name
        self.user = name.partition("@")[0]
        self.process: Process | None = None
        self.failure: BaseException | None = None
        self.seen: dict[str, int] = {}
        self.pending: dict[str, Send | Recall] = {}
        self.publishing = 0  # commands without a PUBACK
        self._device = Device(*name.split("@"))
        self._loop = loop
        self._plan = plan
        self._write = write
        self._connect = connect
        self._partitions = partitions
        self._resends = resends
        self._link: SimLink | None = None
        self._sent: list[Send | Recall] = []
        self._recalled: dict[str, list[tuple[int, int]]] = {}  # known recalls, by conversation
        self._asked: dict[str, tuple[tuple[int, int], ...]] = {}  # known when a page was requested, by ref

    def start(self) -> None:
        self.process = self._loop.new_process(self.name)
        self._link = None
        self.publishing = 0
        self._write(history.Start(self.name, self._loop.time()))
        for send in self.pending.values():
            self._write(
                history.Info(
                    self.name, self._loop.time(), send.conversation, send.client_msg_id, "its process ended"
                )
            )
        if not self._resends:
            self.pending.clear()
        self.process.spawn(self._run(), self.name)

    @property
    def settled(self) -> bool:
        unsent = self._plan.next < len(self._plan.times) or self.publishing
        return not unsent and not (self._resends and self.pending)

    def replay(self, count: int) -> int:
        """Publishes old commands again; returns how many."""
        if self._link is None or self._link.closed is not None or self.process is None:
            return 0
        again = [self._loop.random.choice(self._sent) for _ in range(count)] if self._sent else []
        for send in again:
            self.process.spawn(self._publish(send, send.conversation))
        return len(again)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._send())
                if self._resends:
                    tasks.create_task(self._resend())
        except BaseException as error:
            self.failure = error
            raise

    async def _stay_connected(self) -> None:
        settings = LinkSettings(
            "broker", 1883, self.name, username=self.name, password=PASSWORD, clean_start=True, keep_alive=10
        )
        while True:
            try:
                link = await self._connect(settings)  # type: ignore[misc]  # a coroutine function
                await link.subscribe(down(self._device))
                self._link = link
                await self._publish(Hello(f"n{self._loop.time()}"), home_of(self.user))
                while True:
                    for received in await link.receive(100):
                        for frame in decode_frames(received.payload):
                            self._hear(frame)
                        link.ack(received)
            except (OSError, LinkError):
                self._link = None
                await asyncio.sleep(0.1 + self._loop.random.random())

    def _hear(self, frame: object) -> None:
        now = self._loop.time()
        if isinstance(frame, Accepted):
            self.pending.pop(frame.client_msg_id, None)
            self._write(
                history.Ok(self.name, now, frame.conversation, frame.client_msg_id, frame.seq, int(frame.id))
            )
        elif isinstance(frame, Rejected) and frame.client_msg_id and frame.retryable:
            self._write(
                history.Info(
                    self.name, now, frame.conversation, frame.client_msg_id, frame.code, answered=True
                )
            )
        elif isinstance(frame, Rejected) and frame.client_msg_id:
            self.pending.pop(frame.client_msg_id, None)
            self._write(history.Fail(self.name, now, frame.conversation, frame.client_msg_id, frame.code))
        elif isinstance(frame, Event):
            self._hear_event(frame)
        elif isinstance(frame, Page) and frame.ref in self._asked:
            for part in frame.slices:
                self._write(
                    history.Paged(
                        self.name, now, part.conversation, tuple(map(row_of, part.events)),
                        tuple(map(row_of, part.registers)), self._asked[frame.ref],
                    )
                )  # fmt: skip

    def _hear_event(self, event: Event) -> None:
        assert self.process is not None
        draw = self._loop.random.random
        if draw() < 0.05:
            mark = Mark(event.conversation, event.seq, event.seq)
            self.process.spawn(self._publish(mark, event.conversation))
        if event.recall is not None:
            target = event.recall.target
            known = self._recalled.setdefault(event.conversation, [])
            known.append((target.seq, int(target.id)))
            ref = f"history-{event.id}"
            self._asked[ref] = tuple(known)
            page = History(event.conversation, target.seq + 1 + int(draw() * 3), 1 + int(draw() * 4), ref)
            self.process.spawn(self._publish(page, event.conversation))
        elif event.kind == "message" and event.sender == self.user and draw() < RECALLED:
            recall = Recall(event.conversation, f"recall-{self._device.device}-{event.id}", event.position)
            self.pending[recall.client_msg_id] = recall
            self._sent.append(recall)
            self._write(
                history.Invoke(
                    self.name, self._loop.time(), recall.conversation, recall.client_msg_id,
                    recall_value(recall.target),
                )
            )  # fmt: skip
            self.process.spawn(self._publish_command(recall))

    async def _send(self) -> None:
        while (message := await self._plan.take(self._loop)) is not None:
            number, conversation = message
            name = f"{self._device.device}-{number}"
            send = Send(conversation, name, Content(text=f"{self.name}:{number}"))
            self.pending[name] = send
            self._sent.append(send)
            self._write(history.Invoke(self.name, self._loop.time(), conversation, name, send.content.text))
            await self._publish_command(send)

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE)
            for send in list(self.pending.values()):
                await self._publish_command(send)

    async def _publish_command(self, command: Send | Recall) -> None:
        if await self._publish(command, command.conversation):
            self._write(
                history.Queued(self.name, self._loop.time(), command.conversation, command.client_msg_id)
            )

    async def _publish(self, command: AnyCommand, place: str) -> bool:
        """Whether the broker acked it."""
        link = self._link
        if link is None:
            return False
        # Sometimes to partition 0, like a device that cannot compute its conversation's.
        number = partition_of(place, self._partitions) if self._loop.random.random() < 0.8 else 0
        message = Packet(up(self._device, number), encode_command(command, Format.JSON))
        self.publishing += 1
        with contextlib.suppress(LinkError, OSError):
            (code,) = await link.publish([message])
            self.publishing -= 1
            return code == SUCCESS  # 0x10 means that no server was subscribed
        self.publishing -= 1
        return False


def conversations_of(user: str, conversations: Sequence[str]) -> list[str]:
    """The conversations of which the user is a member."""
    return [conversation for conversation in conversations if user in members_of(conversation)]
