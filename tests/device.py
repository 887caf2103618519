"""A device without an SDK: it publishes commands and keeps every frame that it receives."""

import asyncio
from collections.abc import Callable
from typing import Self, TypeVar

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS
from imqtt.broker.link import Link, LinkSettings, Packet, connect
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
    Page,
    Rejected,
    Send,
    Welcome,
)
from imqtt.mosquitto.broker import Mosquitto
from imqtt.protocol import Format, decode_frames, encode_command
from imqtt.protocol.topics import down, up
from tests.services import WITHIN

F = TypeVar("F")


class RawDevice:
    """`async with RawDevice(broker, "alice@phone") as phone`: connected and subscribed, without a `Hello`."""

    def __init__(
        self, broker: Mosquitto, name: str, format: Format = Format.JSON, *, partitions: int = 16
    ) -> None:
        self.broker = broker
        self.device = Device(*name.split("@"))
        self.format = format
        self.partitions = partitions
        self.frames: list[AnyFrame] = []
        self._arrived = asyncio.Event()
        self._password = ""
        self._link: Link | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, **settings: object) -> None:
        name = str(self.device)
        self._password = self._password or self.broker.passwords.add(name)
        given = {
            "host": self.broker.host, "port": self.broker.port, "client_id": name, "username": name,
            "password": self._password, "clean_start": True, **settings,
        }  # fmt: skip
        self._link = await connect(LinkSettings(**given))  # type: ignore[arg-type]  # names are LinkSettings' own
        await self._link.subscribe(down(self.device))
        self._reader = asyncio.create_task(self._read(self._link))

    async def disconnect(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._link is not None:
            await self._link.close()

    async def stop_reading(self) -> None:
        """Stays connected and reads nothing: PUBACKs stop, and then the socket fills."""
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def command(self, command: AnyCommand, *, to: int | None = None) -> None:
        """Publishes, to the right partition unless `to` is given, and waits for the PUBACK.

        Again while no server has the partition's session: a broker that was killed has lost it.
        """
        key = getattr(command, "conversation", home_of(self.device.user))
        partition = partition_of(key, self.partitions) if to is None else to
        payload = encode_command(command, self.format)
        while await self.raw(payload, to=partition) == [NO_MATCHING_SUBSCRIBERS]:
            await asyncio.sleep(0.1)

    async def raw(self, payload: bytes, *, to: int = 0, topic: str = "", **fields: object) -> list[int]:
        assert self._link is not None
        message = Packet(topic or up(self.device, to), payload, **fields)  # type: ignore[arg-type]
        return await self._link.publish([message])

    async def hello(self, *cursors: Cursor, nonce: str = "n1", **fields: object) -> tuple[Welcome, Page]:
        """Sends a `Hello`; returns the answer."""
        start = len(self.frames)
        await self.command(Hello(nonce, cursors=cursors, **fields))  # type: ignore[arg-type]
        welcome = await self.frame(Welcome, since=start)
        return welcome, await self.frame(Page, since=start)

    async def send(
        self, conversation: str, name: str, text: str = "hi", **fields: object
    ) -> Accepted | Rejected:
        """Sends a message. Returns the answer."""
        start = len(self.frames)
        await self.command(Send(conversation, name, Content(text=text), **fields))  # type: ignore[arg-type]
        return await self.answer(name, since=start)

    async def answer(self, name: str, since: int = 0) -> Accepted | Rejected:
        """Waits for the next answer to the message of this name."""

        def matches(frame: AnyFrame) -> bool:
            return isinstance(frame, Accepted | Rejected) and frame.client_msg_id == name

        found = await self.until(matches, since=since)
        assert isinstance(found, Accepted | Rejected)
        return found

    async def frame(self, kind: type[F], since: int = 0, within: float = WITHIN) -> F:
        """Waits for the next frame of this kind."""
        found = await self.until(lambda frame: isinstance(frame, kind), since=since, within=within)
        assert isinstance(found, kind)
        return found

    async def until(
        self, matches: Callable[[AnyFrame], bool], since: int = 0, within: float = WITHIN
    ) -> AnyFrame:
        """Waits for the first matching frame from number `since` on."""
        at = since
        try:
            async with asyncio.timeout(within):
                while True:
                    for frame in self.frames[at:]:
                        at += 1
                        if matches(frame):
                            return frame
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(
                f"no such frame within {within} s; got {self.frames[since:][-20:]}"
            ) from None

    def events(self, conversation: str) -> list[Event]:
        """The events received of a conversation, in order of arrival."""
        return [
            frame for frame in self.frames if isinstance(frame, Event) and frame.conversation == conversation
        ]

    async def _read(self, link: Link) -> None:
        while True:
            for received in await link.receive(1_000):
                self.frames.extend(decode_frames(received.payload))
                link.ack(received)
            self._arrived.set()
