"""One device of a soak: it sends many messages and keeps each until it is accepted, as topics.md requires.

All devices share one process. A device keeps no log: its cursors are the newest events it knows, so it syncs
on connecting like a device that was offline.
"""

import asyncio
import logging
from dataclasses import dataclass
from random import Random
from uuid import uuid4

from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link, LinkSettings, Packet, Will, connect
from imqtt.core.partitions import home_of, partition_of
from imqtt.model import (
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Cursor,
    Device,
    Event,
    Hello,
    Id,
    Mark,
    Page,
    Rejected,
    Send,
    Status,
    Sync,
    Welcome,
)
from imqtt.protocol import Format, decode_frames, encode_command
from imqtt.protocol.topics import down, up
from tests.verification.checker.history import Fail, History, Info, Invoke, Ok, Queued, Start, now

HOST = "127.0.0.1"
ANSWER_WITHIN = 3.0  # seconds for the first try; topics.md suggests 10, but there is a fault every ten
PATIENCE = 30.0  # upper bound for later tries: more frequent ones would keep an overloaded server overloaded
KEEP_ALIVE = 5
UNACKED = 50  # packets: the broker queues the rest for a device that acks nothing
MARKS = 0.1  # probability in each tick that a device marks something as read

log = logging.getLogger("soak")


@dataclass(slots=True)
class Open:
    """An unanswered message: when it was sent, and when it is resent."""

    conversation: str
    payload: bytes
    since: float
    due: float
    tries: int = 1


class SoakDevice:
    """`run` keeps it connected. `newest`: when the latest accepted message was first sent.

    `window`: the maximum number of unanswered messages. `detour`: it publishes everything to partition 0.
    """

    def __init__(
        self,
        name: str,
        password: str,
        port: int,
        conversations: tuple[str, ...],
        *,
        history: History,
        rng: Random,
        window: int,
        format: Format,
        detour: bool,
    ) -> None:
        self.name = name
        self.device = Device(*name.split("@"))
        self.conversations = conversations
        self.sent = 0
        self.accepted = 0
        self.refused = 0
        self.resent = 0  # messages that were sent again
        self.newest = 0.0
        self.open: dict[str, Open] = {}  # by name, oldest first
        self._password = password
        self._port = port
        self._history = history
        self._rng = rng
        self._window = window
        self._format = format
        self._detour = detour
        self._partitions = 0
        self._link: Link | None = None
        self._reads = asyncio.Event()  # it reads the connection
        self._reads.set()
        self._nonce = ""
        self._welcomed = False  # on the present connection
        self._hello_due = 0.0
        self._hellos = 0  # on the present connection
        self._sync_due = 0.0  # when to ask, or ask again; 0: up to date
        self._syncs = 0  # since the last answer
        self._cursors: dict[str, Cursor] = {}

    def __repr__(self) -> str:
        return f"SoakDevice({self.name})"

    # --- the connection

    async def run(self) -> None:
        """Until cancelled."""
        # Its queued messages survive everything that is done to the parts.
        self._history.write(Start(self.name, now(), ordered=False, durable=True))
        tries = 0
        while True:
            try:
                await self._connect()
                tries = 0
                await self._receive()
            except (LinkError, OSError, TimeoutError) as error:
                log.debug("%s: no connection: %s", self.name, error)
            finally:
                self._welcomed = False
                if self._link is not None:
                    self._link.abort()
                self._link = None
            tries += 1
            await asyncio.sleep(self._rng.uniform(0.5, 1.0) * min(3.0, 0.2 * 2.0**tries))

    async def close(self) -> None:
        """With a DISCONNECT."""
        if self._link is not None:
            await self._link.close()

    async def _connect(self) -> None:
        self._nonce = uuid4().hex
        home = self._topic(home_of(self.device.user))
        will = encode_command(Status("offline", self._nonce), self._format)
        link = await connect(
            LinkSettings(
                HOST, self._port, self.name, username=self.name, password=self._password, clean_start=True,
                keep_alive=KEEP_ALIVE, receive_max=UNACKED, timeout=3.0, will=Will(home, will),
            )
        )  # fmt: skip
        self._link = link
        await link.subscribe(down(self.device))
        self._hellos = 0
        self._say_hello()

    def _say_hello(self) -> None:
        self._hello_due = now() + self._wait(self._hellos)
        self._hellos += 1
        self._send_command(Hello(self._nonce, "soak", cursors=tuple(self._cursors.values())))

    def _sync(self) -> None:
        self._sync_due = now() + self._wait(self._syncs)
        self._syncs += 1
        self._send_command(Sync(tuple(self._cursors.values())))

    async def _receive(self) -> None:
        link = self._link
        assert link is not None
        while True:
            await self._reads.wait()
            batch = await link.receive(1_000)
            await self._reads.wait()
            for received in batch:
                for frame in decode_frames(received.payload):
                    self._take(frame)
                link.ack(received)

    def _topic(self, place: str) -> str:
        partition = 0 if self._detour or not self._partitions else partition_of(place, self._partitions)
        return up(self.device, partition)

    def _send_command(self, command: AnyCommand) -> None:
        if self._link is not None:
            place = getattr(command, "conversation", home_of(self.device.user))
            self._link.publish([Packet(self._topic(place), encode_command(command, self._format))])

    # --- a device that stops reading

    def stop_reading(self) -> None:
        self._reads.clear()

    def resume_reading(self) -> None:
        self._reads.set()

    @property
    def stuck(self) -> bool:
        """Whether so much is unread that the broker sends it nothing more."""
        link = self._link
        return link is not None and not self._reads.is_set() and link._connection.load >= 1

    # --- sending

    @property
    def room(self) -> int:
        """How many messages it may send now."""
        return max(0, self._window - len(self.open)) if self._welcomed else 0

    def send(self, count: int) -> None:
        """Sends new messages."""
        at = now()
        messages = []
        for _ in range(count):
            self.sent += 1
            conversation = self._rng.choice(self.conversations)
            name = f"{self.name}:{self.sent}"
            value = f"{name} {self._rng.randbytes(self._rng.choice((4, 16, 64))).hex()}"
            payload = encode_command(Send(conversation, name, Content(text=value)), self._format)
            self.open[name] = Open(conversation, payload, at, at + ANSWER_WITHIN)
            self._history.write(Invoke(self.name, at, conversation, name, value))
            self._history.write(Queued(self.name, at, conversation, name))
            messages.append(Packet(self._topic(conversation), payload))
        assert self._link is not None
        self._link.publish(messages)

    def tick(self) -> None:
        """Does what is due. Called a few times per second."""
        if self._link is None or self._link.closed is not None:
            return
        at = now()
        if not self._welcomed:
            if self._hello_due <= at:
                self._say_hello()
            return
        if self._sync_due and self._sync_due <= at:
            self._sync()
        due = [message for message in self.open.values() if message.due <= at]
        if due:
            self._send_again(due, at)
        if self._cursors and self._rng.random() < MARKS:
            cursor = self._rng.choice(list(self._cursors.values()))
            self._send_command(Mark(cursor.conversation, delivered=cursor.seq, read=cursor.seq))

    def _send_again(self, due: list[Open], at: float) -> None:
        """The same bytes, in the original order."""
        assert self._link is not None
        for message in due:
            message.due = at + self._wait(message.tries)
            message.tries += 1
        self.resent += len(due)
        self._link.publish([Packet(self._topic(message.conversation), message.payload) for message in due])

    def _wait(self, tries: int) -> float:
        """Seconds to wait for an answer after this many tries."""
        return min(PATIENCE, ANSWER_WITHIN * 2.0**tries) * self._rng.uniform(1.0, 1.2)

    # --- receiving

    def _take(self, frame: AnyFrame) -> None:
        if isinstance(frame, Accepted):
            self._history.write(
                Ok(self.name, now(), frame.conversation, frame.client_msg_id, frame.seq, int(frame.id))
            )
            open = self.open.pop(frame.client_msg_id, None)
            if open is not None:
                self.accepted += 1
                self.newest = max(self.newest, open.since)
            self._heard_of(frame.conversation, frame.seq, frame.id)
        elif isinstance(frame, Event):
            self._heard_of(frame.conversation, frame.seq, frame.id)
        elif isinstance(frame, Page):
            self._take_page(frame)
        elif isinstance(frame, Welcome):
            if frame.nonce == self._nonce and not self._welcomed:
                self._welcomed = True
                self._partitions = frame.partitions
                self._send_again(list(self.open.values()), now())
        elif isinstance(frame, Rejected):
            self._take_rejection(frame)

    def _heard_of(self, conversation: str, seq: int, id: Id) -> None:
        cursor = self._cursors.get(conversation)
        if cursor is None or seq > cursor.seq:
            self._cursors[conversation] = Cursor(conversation, seq, id)

    def _take_page(self, page: Page) -> None:
        for slice in page.slices:
            for event in slice.events:
                self._heard_of(event.conversation, event.seq, event.id)
        self._sync_due = 0.0
        self._syncs = 0
        if page.more:
            self._sync()

    def _take_rejection(self, frame: Rejected) -> None:
        wait = now() + frame.retry_after / 1_000 + self._rng.uniform(0.2, 1.0)
        open = self.open.get(frame.client_msg_id)
        if frame.command == "hello":
            self._hello_due = wait
        elif frame.command == "sync":
            self._sync_due = wait
        elif open is None:
            log.warning("%s: a %s is rejected: %s", self.name, frame.command, frame.reason)
        elif frame.retryable:
            open.due = wait
            self._history.write(
                Info(self.name, now(), open.conversation, frame.client_msg_id, frame.code, answered=True)
            )
        else:
            self.refused += 1
            del self.open[frame.client_msg_id]
            self._history.write(Fail(self.name, now(), open.conversation, frame.client_msg_id, frame.code))
