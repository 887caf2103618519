"""The devices of the simulation: the SDK with a program on it, and a plain client that speaks JSON.

Each runs as a party of its own, writes its history as it goes, and may be killed between any two callbacks.
What outlives it is what a real device keeps: its disk, and how far its program had counted.
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
    Mark,
    Marks,
    Page,
    Position,
    Rejected,
    Send,
)
from imqtt.protocol import Format, decode_frames, encode_command
from imqtt.protocol.topics import down, up
from tests.verification.checker.history import (
    Begun,
    Fail,
    Held,
    Info,
    Invoke,
    Line,
    Marked,
    Ok,
    Row,
    Seen,
    Start,
    Taken,
)
from tests.verification.simulation.database import Disk, SimDatabase
from tests.verification.simulation.link import SimLink
from tests.verification.simulation.loop import Loop, Party

# Real ones but for the keep-alive, which finds half-open connections sooner.
TIMING = Timing(keep_alive=10, retry_most=8.0, patience=20.0)
PASSWORD = "secret"
PATIENCE = 3.0  # seconds after which a plain device sends again what is not answered


def row(event: Event) -> Row:
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, event.content.text)


class Sending:
    """What one device is to send: `count` messages to some of its conversations, at random times."""

    def __init__(self, loop: Loop, conversations: Sequence[str], count: int, within: float) -> None:
        draw = loop.random
        self.times = sorted(draw.random() * within for _ in range(count))
        self.conversations = [draw.choice(conversations) for _ in range(count)]
        self.next = 0  # the first that was not begun; it outlives the device's process

    async def take(self, loop: Loop) -> tuple[int, str] | None:
        """The next message's number and conversation, when it is time for it."""
        if self.next >= len(self.times):
            return None
        await asyncio.sleep(max(0.0, self.times[self.next] - loop.time()))
        number = self.next
        self.next += 1
        return number, self.conversations[number]

    def add(self, conversations: Sequence[str], now: float) -> None:
        """One message more to each of these."""
        self.times += [now] * len(conversations)
        self.conversations += conversations


class SdkDevice:
    """One device with the SDK. `pending`: messages that were begun and are not answered."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        sending: Sending,
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
        self.disk_failed = False  # its process has ended for that, and nobody has started another
        self.party: Party | None = None
        self.client: Client | None = None
        self._loop = loop
        self._sending = sending
        self._write = write
        self._format = format
        self._disk = disk
        self._transport = transport
        self._awake = False  # it knows what it had to send when it was killed
        self._more: asyncio.Event
        self._notices: Queue[Notice]
        self._shown: set[int] = set()  # the ids of all events shown, including those of earlier logs
        self._restarted: dict[str, None] = {}  # conversations of which that is still to be written down

    def start(self) -> None:
        """A process begins, on the disk that the last one left."""
        self.party = self._loop.party(self.name)
        self.disk_failed = False
        self.pending.clear()
        self._awake = False
        self._more = asyncio.Event()
        self.client = None
        self._write(Start(self.name, self._loop.time(), ordered=True, keeps=True))
        self.party.spawn(self._run(), self.name)

    @property
    def path(self) -> Path:
        """Its store, on its disk."""
        return Path(self.name)

    @property
    def settled(self) -> bool:
        """Whether everything was sent and answered."""
        return self._awake and self._sending.next >= len(self._sending.times) and not self.pending

    def has(self, conversation: str, head: Position) -> bool:
        """Whether it holds a log up to its end, and its program was shown all of it.

        When a log is restarted, the program is shown only events that it has not seen before.
        """
        log = self.client._parts.replica.logs.get(conversation) if self.client is not None else None
        is_shown = self.seen.get(conversation, head.id) == head.id and head.id in self._shown
        return log is not None and log.cursor.id == head.id and is_shown

    def own_marks(self) -> list[tuple[str, int, int]]:
        """The user's marks as this device would have them."""
        logs = self.client._parts.replica.logs.values() if self.client is not None else ()
        return [(log.conversation, log.delivered, log.read) for log in logs]

    def speak(self, conversations: Sequence[str]) -> None:
        """It sends one message more to each of these."""
        self._sending.add(conversations, self._loop.time())
        if self.party is not None and self.party.alive:
            self.party.call_soon(self._more.set)

    async def _run(self) -> None:
        try:
            async with self._connected() as client:
                self.client = client
                self._notices = client.notices()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._consume(client))
                    tasks.create_task(self._hear(client))
                    tasks.create_task(self._talk(client, tasks))
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

    async def _talk(self, client: Client, tasks: asyncio.TaskGroup) -> None:
        for entry in await client.outbox():  # of a process that was killed
            self._await(client, tasks, entry.conversation, entry.client_msg_id, entry.content.text)
        self._awake = True
        while True:
            message = await self._sending.take(self._loop)
            if message is None:
                self._more.clear()
                await self._more.wait()
                continue
            number, conversation = message
            name, value = f"{self.device}-{number}", f"{self.name}:{number}"
            self.pending.add(name)
            self._write(Invoke(self.name, self._loop.time(), conversation, name, value))
            await client.post(conversation, value, client_msg_id=name)
            self._write(Taken(self.name, self._loop.time(), conversation, name))
            self._await(client, tasks, conversation, name, value)

    def _await(
        self, client: Client, tasks: asyncio.TaskGroup, conversation: str, name: str, value: str
    ) -> None:
        self.pending.add(name)
        tasks.create_task(self._answer(client, conversation, name, value))

    async def _answer(self, client: Client, conversation: str, name: str, value: str) -> None:
        try:
            while True:
                try:
                    answer = await client.send(conversation, value, client_msg_id=name)
                    break
                except (DeviceStoreError, NotConnected) as error:  # it is in the outbox, or it is not
                    self._write(Info(self.name, self._loop.time(), conversation, name, error.code))
                    await asyncio.sleep(1.0)
        except ImqttError as error:
            self._write(Fail(self.name, self._loop.time(), conversation, name, error.code))
        else:
            self._write(Ok(self.name, self._loop.time(), conversation, name, answer.seq, int(answer.id)))
        self.pending.discard(name)

    async def _consume(self, client: Client) -> None:
        async for event in client.events("history"):
            self._begin_anew(event.conversation)
            self._write(Seen(self.name, self._loop.time(), event.conversation, row(event)))
            self.seen[event.conversation] = int(event.id)
            self._shown.add(event.id)
            if self._loop.random.random() < 0.1:
                await client.mark_read(event.conversation, event.seq)

    async def _hear(self, client: Client) -> None:
        async for notice in self._notices:
            if isinstance(notice, Marks) and notice.user != self.user:  # its own may be ahead of the store's
                found = (await client.marks(notice.conversation)).get(notice.user)
                if found is not None:
                    self._write(
                        Marked(
                            self.name, self._loop.time(), notice.conversation, notice.user, found.delivered,
                            found.read,
                        )
                    )  # fmt: skip
            elif isinstance(notice, Restarted):
                self._restarted[notice.conversation] = None
                self._begin_anew(notice.conversation)

    def _begin_anew(self, conversation: str) -> None:
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
            self._write(Begun(self.name, self._loop.time(), conversation))
            self.seen.pop(conversation, None)

    async def hold(self, conversations: Sequence[str]) -> None:
        """Writes down what the device holds of its conversations."""
        assert self.client is not None, "it has not even begun"
        await self._hold(self.client, conversations, fresh=False)

    async def sync_from_nothing(self, conversations: Sequence[str]) -> None:
        """As `hold`, of a device that has never been there before, when it has caught up."""
        async with self._connected(fresh=True) as client:
            await client.caught_up()
            await self._hold(client, conversations, fresh=True)

    async def _hold(self, client: Client, conversations: Sequence[str], *, fresh: bool) -> None:
        for conversation in conversations:
            log = client._parts.replica.logs.get(conversation)
            base = log.base if log is not None else 0
            events = await client._parts.store.events(conversation, base + 1, 1 << 53)
            rows = tuple(row(event) for event in events)
            self._write(Held(self.name, self._loop.time(), conversation, base, rows, fresh))


class PlainDevice:
    """A client of one's own making: it speaks JSON, and sends again what is not answered, or never does."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        sending: Sending,
        write: Callable[[Line], None],
        connect: Callable[[LinkSettings], object],
        *,
        partitions: int,
        resends: bool,
    ) -> None:
        self.name = name
        self.user = name.partition("@")[0]
        self.party: Party | None = None
        self.failure: BaseException | None = None
        self.seen: dict[str, int] = {}
        self.pending: dict[str, Send] = {}
        self.publishing = 0  # commands that the broker has not confirmed
        self._device = Device(*name.split("@"))
        self._loop = loop
        self._sending = sending
        self._write = write
        self._connect = connect
        self._partitions = partitions
        self._resends = resends
        self._link: SimLink | None = None
        self._sent: list[Send] = []

    def start(self) -> None:
        self.party = self._loop.party(self.name)
        self._link = None
        self.publishing = 0
        self._write(Start(self.name, self._loop.time()))
        for send in self.pending.values():
            self._write(
                Info(self.name, self._loop.time(), send.conversation, send.client_msg_id, "its process ended")
            )
        if not self._resends:
            self.pending.clear()
        self.party.spawn(self._run(), self.name)

    @property
    def settled(self) -> bool:
        unsent = self._sending.next < len(self._sending.times) or self.publishing
        return not unsent and not (self._resends and self.pending)

    def replay(self, count: int) -> int:
        """Publishes old commands again; returns how many."""
        if self._link is None or self._link.closed is not None or self.party is None:
            return 0
        again = [self._loop.random.choice(self._sent) for _ in range(count)] if self._sent else []
        for send in again:
            self.party.spawn(self._publish(send, send.conversation))
        return len(again)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._talk())
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
            self._write(Ok(self.name, now, frame.conversation, frame.client_msg_id, frame.seq, int(frame.id)))
        elif isinstance(frame, Rejected) and frame.client_msg_id and frame.retryable:
            self._write(
                Info(self.name, now, frame.conversation, frame.client_msg_id, frame.code, answered=True)
            )
        elif isinstance(frame, Rejected) and frame.client_msg_id:
            self.pending.pop(frame.client_msg_id, None)
            self._write(Fail(self.name, now, frame.conversation, frame.client_msg_id, frame.code))
        elif isinstance(frame, Event | Page) and self._loop.random.random() < 0.05:
            for event in [frame] if isinstance(frame, Event) else []:
                assert self.party is not None
                mark = Mark(event.conversation, event.seq, event.seq)
                self.party.spawn(self._publish(mark, event.conversation))

    async def _talk(self) -> None:
        while (message := await self._sending.take(self._loop)) is not None:
            number, conversation = message
            name = f"{self._device.device}-{number}"
            send = Send(conversation, name, Content(text=f"{self.name}:{number}"))
            self.pending[name] = send
            self._sent.append(send)
            self._write(Invoke(self.name, self._loop.time(), conversation, name, send.content.text))
            await self._offer(send)

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE)
            for send in list(self.pending.values()):
                await self._offer(send)

    async def _offer(self, send: Send) -> None:
        if await self._publish(send, send.conversation):
            self._write(Taken(self.name, self._loop.time(), send.conversation, send.client_msg_id))

    async def _publish(self, command: AnyCommand, place: str) -> bool:
        """Whether the broker has taken it."""
        link = self._link
        if link is None:
            return False
        # Now and then to partition 0, as a device does that cannot compute its conversation's.
        number = partition_of(place, self._partitions) if self._loop.random.random() < 0.8 else 0
        message = Packet(up(self._device, number), encode_command(command, Format.JSON))
        self.publishing += 1
        with contextlib.suppress(LinkError, OSError):
            (code,) = await link.publish([message])
            self.publishing -= 1
            return code == SUCCESS  # and not 0x10, which says that no server was there to get it
        self.publishing -= 1
        return False


def conversations_of(user: str, conversations: Sequence[str]) -> list[str]:
    """Those of which the user is a member."""
    return [conversation for conversation in conversations if user in members_of(conversation)]
