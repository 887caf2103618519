"""The client: the methods with which a program uses imqtt, as one device of one user."""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4

from imqtt.client.database import Database
from imqtt.client.feed import Broadcast, Events, Queue
from imqtt.client.mqtt import Mqtt
from imqtt.client.parts import Parts
from imqtt.client.sender import UNBOUNDED
from imqtt.client.settings import ClientSettings, Timing, check_device, parse_addresses
from imqtt.client.store import LocalStore
from imqtt.client.tls import TlsContexts
from imqtt.client.transport import Transport
from imqtt.client.values import ConnectionState, Notice, Summary
from imqtt.core.conversation_view import ConversationView
from imqtt.core.conversations import conversation_with
from imqtt.core.outbox import Entry, OutboxKey
from imqtt.core.overlays import counts_as_unread
from imqtt.errors import ClientError, Invalid, NotConnected, SetupError
from imqtt.model import (
    Accepted,
    Content,
    Event,
    Id,
    Marks,
    Position,
    Presence,
    Recall,
    Send,
    Status,
    Typing,
    canonical_json,
)
from imqtt.protocol import Format, check

MAX_NOTICES = 1_000  # waiting for one iterator; the oldest are dropped
TYPING_EVERY = 3.0  # seconds; receivers forget it after six


class Client:
    """One device of one user. Use it as `async with Client(...) as client`; a client is entered once.

    `password`: the device's password; none if the broker identifies it by a client certificate (`tls`).
    `brokers`: `host`, `host:port` or a URL (`mqtt`, `mqtts`, `ws`, `wss`), one or several to try in turn. An
    address without a scheme uses TLS if `tls` is given or its port is 8883. Either all addresses use TLS or
    none does.
    `store`: the file of the device's log and outbox, or an `imqtt.client.database.Database`. Without one, log
    and outbox end with the process.
    `format`: the format of commands and frames, protobuf or JSON.
    `start`: where a new device begins. `latest`: events that are stored from then on are new, and all others
    are history. `beginning`: everything is new, from each conversation's first event.
    `keep`: about how many events of a conversation stay in the store; by default all of them.
    `platform`: a text for the operator's device list.
    `max_packet`: the largest MQTT packet that the device accepts, in bytes; 0: the server's bound.
    `tls`: an `ssl.SSLContext` that verifies the broker, or a function that returns one and is called for each
    connection, so that renewed certificates are read. By default `mqtts` and `wss` trust the system's
    authorities.
    `wait`: how many seconds entering waits for the device to catch up. Entering returns earlier if the first
    attempt to connect fails: a client also works without a connection, and keeps trying. It then logs a
    warning, unless the program follows `states`.
    `timing`: the client's timeouts and intervals.
    `transport`: an `imqtt.client.transport.Transport` in place of aiomqtt.

    Constructing and entering raise `SetupError`; entering raises `DeviceStoreError` and `CredentialsRefused`.
    Before entering, a method that needs the store or the connection raises `ClientError`.

    Wherever a method takes a `conversation`, the name of a user stands for the direct conversation with that
    user, and the user's own name for notes to self. Any other text raises `Invalid`.
    """

    def __init__(
        self,
        *,
        user: str,
        device: str,
        password: str = "",
        brokers: str | Iterable[str] = "127.0.0.1",
        store: Path | str | Database | None = None,
        format: Format = Format.PROTOBUF,
        start: Literal["latest", "beginning"] = "latest",
        keep: int | None = None,
        platform: str = "",
        max_packet: int = 0,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        wait: float = 10.0,
        timing: Timing | None = None,
        transport: Transport = Mqtt.open,
    ) -> None:
        addresses = parse_addresses(brokers, encrypted=tls is not None)
        encrypted = addresses[0].is_encrypted
        if not password and not encrypted:
            raise SetupError("a device needs its password, or TLS with a client certificate")
        self.settings = ClientSettings(
            device=check_device(user, device),
            password=password,
            addresses=addresses,
            format=format,
            start=start,
            platform=platform,
            max_packet=max_packet,
            keep=keep,
            tls=TlsContexts(tls) if encrypted else None,
            timing=timing or Timing(),
        )
        self._given_store = Path(store) if isinstance(store, str) else store
        self._transport = transport
        self._wait = wait
        self._states: Broadcast[ConnectionState] = Broadcast(100)
        self._notices: Broadcast[Notice] = Broadcast(MAX_NOTICES)
        self._typed: dict[str, float] = {}
        self._entered = False
        self._made: Parts | None = None

    # --- beginning and end

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ClientError("a client is entered once; make another one")
        self._entered = True
        store = await LocalStore.open(self._given_store, self.settings.device)
        try:
            self._made = Parts(
                settings=self.settings,
                store=store,
                memory=await store.load(),
                transport=self._transport,
                notices=self._notices,
                states=self._states,
            )
            await self._made.start(self._wait)
        except BaseException:
            try:
                await self.close()
            finally:
                await store.close()
            raise
        return self

    @property
    def _parts(self) -> Parts:
        if self._made is None:
            raise ClientError("the client is not open: use it as `async with Client(...) as client`")
        return self._made

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnects and closes the store. Unsent messages stay in it."""
        if self._made is not None:
            await self._made.close()

    # --- messages

    async def send(
        self,
        conversation: str,
        content: object,
        *,
        content_type: str = "",
        reply_to: Position | None = None,
        mentions: Iterable[str] = (),
        client_msg_id: str | None = None,
    ) -> Accepted:
        """Sends a message and returns when the server has stored it.

        `content` is text, or bytes with a `content_type`, or a `Content`, or any other JSON value. The
        message is in the device's outbox before it is sent and stays there until it is stored or refused: a
        timeout, a cancellation or the end of the process does not remove it. Sending the same content again
        with the same `client_msg_id` adds no second message.

        Raises the error with which the server refuses the message (`Conflict`, `NotAllowed`, `Invalid`,
        `TooLarge`, `Unsupported`) and removes it from the outbox; `Discarded` if `discard` removed it;
        `DeviceStoreError`. If the client ends first, the message stays in the outbox, and the error is
        `NotConnected` after `close`, or `CredentialsRefused`.
        """
        made = _content(content, content_type, reply_to, mentions)
        return await self._parts.sender.send(self._message(conversation, made, client_msg_id))

    async def post(
        self,
        conversation: str,
        content: object,
        *,
        content_type: str = "",
        reply_to: Position | None = None,
        mentions: Iterable[str] = (),
        client_msg_id: str | None = None,
    ) -> str:
        """Puts a message into the outbox and returns its client_msg_id without waiting for the server.

        The arguments are those of `send`. A message that the server refuses stays in the outbox as refused,
        and `notices` reports it.
        """
        made = _content(content, content_type, reply_to, mentions)
        command = self._message(conversation, made, client_msg_id)
        await self._parts.sender.put(command)
        return command.client_msg_id

    async def recall(
        self, conversation: str, message: Position, *, client_msg_id: str | None = None
    ) -> Accepted:
        """Takes back a message of this user, and returns when the server has stored that.

        `message` is the `position` of the message's `Accepted`, `Event` or `Message`. All devices then show
        it as recalled, without its content. The recall is in the outbox until it is stored or refused, as in
        `send`. Raises `NotFound`, `NotAllowed` for another user's message, `AlreadyRecalled`, and as `send`.
        """
        self._parts.check()
        command = Recall(self._id_of(conversation), client_msg_id or uuid4().hex, _position(message), _now())
        return await self._parts.sender.send(command)

    async def outbox(self) -> list[Entry]:
        """The commands that are not stored yet or were refused, in the order of sending."""
        return list((await self._parts.store.entries()).values())

    async def discard(self, conversation: str, client_msg_id: str) -> bool:
        """Removes a command from the outbox. False if it is not there. Its `send` raises `Discarded`.

        If it was already sent, it may be stored anyway: do not use its client_msg_id for other content.
        """
        return await self._parts.sender.discard(OutboxKey(self._id_of(conversation), client_msg_id))

    def direct(self, other: str) -> str:
        """The id of the direct conversation with another user, or of the user's own conversation."""
        return self._id_of(other)

    def _id_of(self, conversation: str) -> str:
        return conversation_with(self.settings.device.user, conversation)

    def _message(self, conversation: str, content: Content, client_msg_id: str | None) -> Send:
        self._parts.check()
        return Send(self._id_of(conversation), client_msg_id or uuid4().hex, content, _now())

    # --- events and notices

    def events(self, consumer: str | None = None, *, conversation: str | None = None) -> Events:
        """An async iterator of new events, each conversation's in order, including the user's own.

        Without a name it begins with the next event after this call. A named `consumer` keeps its place in
        the store: asking for the next event marks the previous one as processed, and after a restart it
        resumes after the last processed one. A new name begins with the oldest event that the store does not
        hold as history. With `conversation`, only that one's events.
        """
        one = None if conversation is None else self._id_of(conversation)
        return Events(self._parts.feed, self._parts.store, consumer, one)

    def notices(self) -> Queue[Notice]:
        """An async iterator of marks, presence, typing, restarted or skipped logs, and refused commands.

        They are not stored. If more than 1,000 wait, the oldest are dropped.
        """
        return self._notices.iterate()

    async def history(self, conversation: str, before: int | None = None, limit: int = 100) -> list[Event]:
        """At most `limit` events before seq `before` (default: the newest), in order of seq.

        They are read from the device's store as far as it holds them, and else from the server. There are
        fewer than `limit` only at the beginning of the conversation or without a connection. Raises
        `NotAllowed`, `NotConnected` if the device holds none of them, and `DeviceStoreError`.
        """
        found = await self._parts.reader.history(self._id_of(conversation), before, limit)
        self._parts.inbox.check()
        return found

    async def view(self, conversation: str, limit: int = 1_000) -> ConversationView:
        """A conversation as a program displays it: messages with receipts, holes, and messages in the outbox.

        It covers the newest `limit` events that the device holds, and events that arrived ahead of missing
        ones; `events` returns those only when the hole is filled. `history` fetches older events.
        """
        found = await self._parts.reader.view(self._id_of(conversation), limit)
        self._parts.inbox.check()
        return found

    async def conversations(self, limit: int = 1_000) -> list[Summary]:
        """The user's conversations, the one with the newest event first."""
        return await self._parts.store.summaries(limit)

    async def conversation(self, conversation: str) -> Summary | None:
        """One conversation, or None if the device does not know it."""
        found = await self._parts.store.summaries(1, self._id_of(conversation))
        return found[0] if found else None

    async def unread(self, conversation: str) -> int:
        """The exact number of unread messages: after the `read` mark, not recalled, and of other users.

        Requests the events after `read` that the device does not hold. Raises `NotConnected` if that is not
        possible; `conversation` still returns the bounds.
        """
        summary = await self.conversation(conversation)
        if summary is None or summary.unread == summary.unread_at_most:
            return 0 if summary is None else summary.unread
        events = await self._parts.reader.after(summary.conversation, summary.read, summary.head.seq)
        self._parts.inbox.check()
        user = self.settings.device.user
        return sum(event.sender != user and counts_as_unread(event) for event in events)

    # --- marks, presence, typing

    async def mark_read(self, conversation: str, seq: int | None = None) -> None:
        """Marks everything up to `seq` as read, by default everything that has arrived.

        The mark is sent to the server soon afterwards. Raises `DeviceStoreError`, which ends the client.
        """
        self._parts.inbox.check()
        if self._parts.replica.mark_read(self._id_of(conversation), seq):
            await self._parts.inbox.commit()

    async def marks(self, conversation: str) -> dict[str, Marks]:
        """Each member's `delivered` and `read` marks, by user."""
        return await self._parts.store.marks(self._id_of(conversation))

    def presence_of(self, user: str) -> Presence | None:
        """The user's presence as the server last reported it; None, which means offline, if it never did.

        On each new connection all users count as offline (`last_seen` 0: unknown) until the server reports
        otherwise.
        """
        return self._parts.inbox.presences.get(user)

    async def typing(self, conversation: str, typing: bool = True) -> None:
        """Tells the other members that the user is typing. Call it at every key; it does nothing offline."""
        conversation = self._id_of(conversation)
        now = time.monotonic()
        if typing and now - self._typed.get(conversation, -TYPING_EVERY) < TYPING_EVERY:
            return
        if typing:
            self._typed[conversation] = now
            if len(self._typed) > 100:
                del self._typed[next(iter(self._typed))]
        else:
            self._typed.pop(conversation, None)
        with contextlib.suppress(NotConnected):
            await self._parts.uplink.publish(Typing(conversation, typing))

    async def set_status(self, state: str, *, network: str = "", battery: int | None = None) -> None:
        """Reports the device as `online`, `away` or `background`, until the next call.

        `network` is a short text for the operator, `battery` a percentage.
        """
        check(Status(state, "-", network, battery), UNBOUNDED)  # its nonce is added on sending
        await self._parts.connection.set_status(Status(state, "", network, battery))

    # --- the connection

    @property
    def state(self) -> ConnectionState:
        """The present state of the connection. Available before entering."""
        return ConnectionState() if self._made is None else self._made.connector.state

    def states(self) -> Queue[ConnectionState]:
        """An async iterator of the connection's states from the present one on, also before entering."""
        return self._states.iterate(self.state)

    async def caught_up(self) -> None:
        """Returns when the device is connected and has received everything that it missed.

        Raises the error that ended the client.
        """
        await self._parts.caught_up()

    @property
    def counts(self) -> dict[str, int]:
        """How many received packets and answers were unusable, by kind. Empty in normal operation."""
        odd = self._parts.replica.odd
        return dict(self._parts.inbox.counts) | ({"events": odd} if odd else {})


def _now() -> int:
    return time.time_ns() // 1_000_000


def _content(
    content: object, content_type: str, reply_to: Position | None, mentions: Iterable[str]
) -> Content:
    reply_to = None if reply_to is None else _position(reply_to)
    given: dict[str, Any] = {"content_type": content_type, "reply_to": reply_to, "mentions": tuple(mentions)}
    if isinstance(content, Content):
        if any(given.values()):
            raise Invalid("a Content has its own content_type, reply_to and mentions")
        return content
    if isinstance(content, str):
        return Content(text=content, **given)
    if isinstance(content, bytes | bytearray | memoryview):
        return Content(data=bytes(content), **given)
    return Content(json=canonical_json(content), **given)


def _position(given: Position) -> Position:
    """The position with an `Id`. A program may have kept it as two plain integers."""
    return Position(given.seq, Id(given.id))
