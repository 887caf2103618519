"""A small server for tests: it keeps logs in memory, speaks the real protocol, and misbehaves on demand.

It loses answers, repeats and shuffles events, rejects commands, forgets stored events and falls silent.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Self

from msgspec.structs import replace

from imqtt.broker.link import Link, LinkSettings, Packet, connect
from imqtt.core.conversations import members_of
from imqtt.model import (
    SNOWFLAKE_TIME_SHIFT,
    Accepted,
    AnyCommand,
    AnyFrame,
    Content,
    Cursor,
    Device,
    Event,
    Head,
    Hello,
    History,
    Id,
    Limits,
    Mark,
    Marks,
    Page,
    Presence,
    Rejected,
    Send,
    Slice,
    Sync,
    Welcome,
)
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.protocol import Bounds, Format, decode_command, encode_frame, format_of, join
from imqtt.protocol.topics import down, parse_up
from tests.services import WITHIN

CLOCK = 1 << 40  # before the first event
PAGE = 100
PRESENCE = 10 * int(WITHIN)  # a silent device sends its status after 0.3 to 0.5 of it
LIMITS = Limits(content=65_536, command=262_144, page=PAGE, cursors=1_000, rate=1_000, presence=PRESENCE)


class FakeServer:
    """`async with FakeServer(broker) as server`.

    `received` has every command with its device and partition. If `refuse(command)` returns a `Rejected`, the
    command is not carried out. If `lose(device, frame)` is true, the frame is not sent.
    """

    def __init__(self, broker: Mosquitto, *, partitions: int = 4) -> None:
        self.broker = broker
        self.partitions = partitions
        self.received: list[tuple[Device, int, AnyCommand]] = []
        self.logs: dict[str, list[Event]] = defaultdict(list)
        self.marks: dict[tuple[str, str], Marks] = {}
        self.devices: dict[Device, Format] = {}
        self.refuse: Callable[[AnyCommand], Rejected | None] = lambda _: None
        self.lose: Callable[[Device, AnyFrame], bool] = lambda _device, _frame: False
        self.silent = False  # receives commands without answering them; see `resume`
        self.present: list[Presence] = []  # sent after each `Hello`
        self.page_size = PAGE
        self.heads_size = PAGE
        self._clock = CLOCK
        self._restores = 0
        self._unanswered: list[tuple[Device, AnyCommand]] = []
        self._arrived = asyncio.Event()
        self._link: Link | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        self._link = await connect(
            LinkSettings(
                host=INTERNAL_HOST,
                port=self.broker.internal_port,
                client_id="fake-server",
                username=SERVER_ACCOUNT,
                password=self.broker.server_password,
                clean_start=True,
            )
        )
        await self._link.subscribe("imqtt/+/up/+")
        self._reader = asyncio.create_task(self._read(self._link))

    async def disconnect(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            await self._link.close()

    # --- for tests

    def commands(self, kind: type, device: str = "") -> list[AnyCommand]:
        return [
            command
            for sender, _, command in self.received
            if isinstance(command, kind) and device in ("", str(sender))
        ]

    def store(self, conversation: str, text: str, sender: str = "bob@phone", name: str = "") -> Event:
        """Stores an event without sending it."""
        user, device = sender.split("@")
        log = self.logs[conversation]
        self._clock = max(self._clock, clock_of(log)) + 1
        id_ = Id(self._clock << SNOWFLAKE_TIME_SHIFT | self._restores)  # no id is drawn twice
        event = Event(
            conversation,
            len(log) + 1,
            id_,
            id_.time,
            user,
            device,
            name or f"m{self._clock}",
            Content(text=text),
        )
        log.append(event)
        return event

    async def send(self, device: str, *frames: AnyFrame) -> None:
        """Sends frames to a device in one packet."""
        receiver = Device(*device.split("@"))
        format = self.devices.get(receiver, Format.PROTOBUF)
        kept = [frame for frame in frames if not self.lose(receiver, frame)]
        await self.raw(device, join([encode_frame(frame, format) for frame in kept], format))

    async def raw(self, device: str, payload: bytes) -> None:
        assert self._link is not None
        await self._link.publish([Packet(down(Device(*device.split("@"))), payload)])

    def live(self, event: Event) -> Event:
        """The event as it is sent live: with the id of the previous one."""
        log = self.logs[event.conversation]
        return replace(event, previous=log[event.seq - 2].id if event.seq > 1 else Id(0))

    def restore(self, conversation: str, seq: int, *, clock_was_ahead: bool = False) -> None:
        """Restores a backup that ended at `seq`.

        `clock_was_ahead`: new ids follow those of the backup, and may be lower than those of removed events.
        """
        log = self.logs[conversation]
        del log[seq:]
        self._restores += 1
        if clock_was_ahead:
            self._clock = clock_of(log)

    async def resume(self) -> None:
        """Ends the silence, and answers the commands received during it."""
        while self._unanswered:
            await self._answer(*self._unanswered.pop(0))
        self.silent = False

    # --- the server

    async def _read(self, link: Link) -> None:
        while True:
            for received in await link.receive(100):
                link.ack(received)
                device = parse_up(received.topic)
                assert device is not None
                command = decode_command(received.payload, Bounds())
                self.devices[device] = format_of(received.payload)
                self.received.append((device, int(received.topic.rsplit("/", 1)[1]), command))
                if self.silent:
                    self._unanswered.append((device, command))
                else:
                    await self._answer(device, command)

    async def _answer(self, device: Device, command: AnyCommand) -> None:
        refusal = self.refuse(command)
        if refusal is not None:
            await self.send(str(device), refusal)
        elif isinstance(command, Send):
            await self._store(device, command)
        elif isinstance(command, Mark):
            key = (command.conversation, device.user)
            marks = Marks(command.conversation, device.user, command.delivered, command.read)
            self.marks[key] = marks
            await self._publish(command.conversation, marks, device)
        elif isinstance(command, Hello):
            welcome = Welcome(
                command.nonce, device.user, device.device, 0, self.partitions, LIMITS, command.ref
            )
            page = self._page(device.user, command, command.cursors, 0)
            await self.send(str(device), welcome, page, *self.present)
        elif isinstance(command, Sync):
            before = command.heads_before if command.heads else None
            await self.send(str(device), self._page(device.user, command, command.cursors, before))
        elif isinstance(command, History):
            log = self.logs.get(command.conversation, [])
            end = command.before - 1 if command.before else len(log)
            start = max(0, end - min(command.limit or PAGE, self.page_size))
            part = Slice(
                command.conversation,
                tuple(log[start:end]),
                start > 0,
                False,
                "start" if start == 0 else "",
                True,
            )
            await self.send(str(device), Page(command.ref, slices=(part,)))

    async def _store(self, device: Device, send: Send) -> None:
        log = self.logs[send.conversation]
        key = (device.user, send.client_msg_id)
        known = next((event for event in log if (event.sender, event.client_msg_id) == key), None)
        event = known or self.store(send.conversation, "", str(device), send.client_msg_id)
        if known is None:
            event = log[-1] = Event(
                event.conversation, event.seq, event.id, event.time, event.sender, event.device,
                event.client_msg_id, send.content, "message", send.client_time,
            )  # fmt: skip
            await self._publish(send.conversation, self.live(event), device)
        previous = self.live(event).previous if known is None else Id(0)
        accepted = Accepted(
            event.conversation, event.client_msg_id, event.seq, event.id, event.time, previous
        )
        await self.send(str(device), accepted)

    async def _publish(self, conversation: str, frame: AnyFrame, but: Device) -> None:
        for device in self.devices:
            if device != but and device.user in members_of(conversation):
                await self.send(str(device), frame)

    def _page(
        self, user: str, command: Hello | Sync, cursors: tuple[Cursor, ...], before: int | None
    ) -> Page:
        heads: list[Head] = []
        more_heads = Id(0)
        if before is not None:
            mine = [log for name, log in self.logs.items() if log and user in members_of(name)]
            mine.sort(key=lambda log: -log[-1].id)
            mine = [log for log in mine if not before or log[-1].id < before]
            known = {cursor.conversation for cursor in cursors}
            for log in mine[: self.heads_size]:
                last = log[-1]
                marks = tuple(mark for (name, _), mark in self.marks.items() if name == last.conversation)
                latest = None if last.conversation in known else last
                heads.append(Head(last.conversation, last.seq, last.id, latest, marks))
            if len(mine) > self.heads_size:
                more_heads = heads[-1].id
        if isinstance(command, Hello) and not cursors and heads:
            log = self.logs[heads[0].conversation]
            part = Slice(
                heads[0].conversation, tuple(log[-PAGE:]), missing="start" if len(log) <= PAGE else ""
            )
            return Page(command.ref, tuple(heads), more_heads, (part,))
        slices: list[Slice] = []
        room, more = self.page_size, False
        for cursor in cursors:
            log = self.logs.get(cursor.conversation, [])
            if cursor.seq and cursor.id and (len(log) < cursor.seq or log[cursor.seq - 1].id != cursor.id):
                slices.append(Slice(cursor.conversation, tuple(log[-PAGE:]), restart=True))
            elif len(log) > cursor.seq:
                if room == 0:
                    more = True
                    break
                part = log[cursor.seq : cursor.seq + room]
                room -= len(part)
                unfinished = cursor.seq + len(part) < len(log)
                slices.append(Slice(cursor.conversation, tuple(part), unfinished))
                more = more or unfinished
        return Page(command.ref, tuple(heads), more_heads, tuple(slices), more)


def clock_of(log: list[Event]) -> int:
    """The time of the newest event."""
    return log[-1].id >> SNOWFLAKE_TIME_SHIFT if log else CLOCK
