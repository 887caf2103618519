"""The controller of a chat, between the client and the screen."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any
from uuid import uuid4

from imqtt.cli.client import SILENT, StateNews, make_client, naming_the_holder, stranger
from imqtt.cli.connection import DeviceAccess
from imqtt.cli.formatting import conversation_with, peer_of, since
from imqtt.cli.screen import Screen
from imqtt.cli.transcript import Transcript
from imqtt.client import Client, Phase, Refused, Restarted
from imqtt.errors import ImqttError, SetupError, TakenOver
from imqtt.model import Content, Marks, PeerTyping, Recall, Send
from imqtt.printable import printable

PAGE = 100  # messages per fetch
TYPING_SECONDS = 6.0  # for which a peer is shown as typing after its last notice
NOTE_SECONDS = 8.0  # for which a note is shown above the input
HINT = "Enter sends · /help or F1 shows all commands and keys · /quit leaves"
HELP = """\
Commands
  /to USER         chat with USER; your own name opens your notes
  /discard         remove the newest message that is waiting or refused
  /recall          take back your newest message: nobody is shown its text any more
  /help            this page
  /quit, /exit     leave
  //text           send a text that begins with /

Keys
  Enter            send
  Alt-Enter        begin a new line; or Esc, then Enter
  PageUp           older messages; at the top it fetches more
  PageDown         newer messages
  Ctrl-End         the newest message
  F1               this page; Esc closes it
  Ctrl-A, Ctrl-E   to the beginning and the end of the line
  Ctrl-W, Ctrl-U   delete the word, or everything, before the cursor
  Ctrl-K, Ctrl-Y   delete everything after it; paste what was deleted
  Ctrl-C, Ctrl-Q   leave; also Ctrl-D if nothing is written

Marks behind your own messages
  ·                waiting to be stored; sent as soon as the server answers
  ✓                stored: it cannot get lost
  ✓✓               delivered to a device of the other user; coloured: read
  ✗                refused, with the reason; /discard removes it"""


async def converse(access: DeviceAccess, to: str) -> None:
    """Returns when the person leaves. Raises `SetupError` and the error that ends the client."""
    given = conversation_with(access.device.user, to) if to else ""
    # Messages may arrive later, but the latest conversation has to be known before the screen opens.
    client = make_client(access, platform="imqtt chat", wait=1.0 if given else 5.0)
    with naming_the_holder(access.device, access.data):
        async with client:
            await Chat(client, access, given or await _latest(client)).run()


async def _latest(client: Client) -> str:
    known = await client.conversations(1)
    if not known:
        raise SetupError("this device has no conversation yet: `imqtt chat USER` begins one")
    return known[0].conversation


class Chat:
    """The chat of one person, which shows one conversation at a time."""

    def __init__(self, client: Client, access: DeviceAccess, conversation: str) -> None:
        self._client = client
        self._access = access
        self._device = client.settings.device
        self._conversation = conversation
        self._transcript = Transcript(self._device.user)
        self._typing_until = 0.0
        self._typed = False
        self._note = (0.0, "")
        self._fetching = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._screen = Screen(self._transcript, self)

    async def run(self) -> None:
        """Shows the conversation until the person leaves. Raises the error that ends the client."""
        self._say(HINT, 30.0)
        events, notices = self._client.events(), self._client.notices()  # from here on, none is missed
        await self._open(self._conversation)
        screen = asyncio.create_task(self._screen.run(), name="screen")
        followers = [
            asyncio.create_task(self._follow_events(events), name="events"),
            asyncio.create_task(self._follow_notices(notices), name="notices"),
            asyncio.create_task(self._follow_states(), name="states"),
        ]
        try:
            await asyncio.wait((screen, followers[0]), return_when=asyncio.FIRST_COMPLETED)
            if not screen.done():
                self._screen.application.exit()
                await screen
                followers[0].result()
        finally:
            for task in (screen, *followers, *self._tasks):
                task.cancel()
            await asyncio.gather(screen, *followers, *self._tasks, return_exceptions=True)

    # --- actions of the person

    def send(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            self._command(text)
            return
        text = text.removeprefix("/")
        message, content = uuid4().hex, Content(text=text)
        self._transcript.wait(message, content, _now())
        self._do(self._post(self._conversation, message, content))

    def typing(self, *, typing: bool) -> None:
        """The input has changed; it is empty if `typing` is False."""
        if typing or self._typed:
            self._typed = typing
            self._do(self._client.typing(self._conversation, typing))

    def older(self) -> None:
        if not self._transcript.begins and not self._fetching:
            self._fetching = True
            self._do(self._fetch_older())

    def _command(self, text: str) -> None:
        command, _, argument = text.partition(" ")
        match command, argument.strip():
            case "/to", "":
                self._say("/to needs a user: /to USER")
            case "/to", to:
                try:
                    conversation = conversation_with(self._device.user, to)
                except ImqttError as error:
                    self._say(error.reason)
                else:
                    self._note = (0.0, "")
                    self._do(self._open(conversation))
            case "/discard", "":
                self._do(self._discard())
            case "/recall", "":
                self._do(self._recall())
            case "/discard" | "/recall", _:
                self._say(f"{command} takes no text; /{text} sends it as a text")
            case "/help", _:
                self.help()
            case _:
                self._say(f"there is no command {command}: /help shows all; /{text} sends it as a text")

    def help(self) -> None:
        self._screen.show_page(HELP)

    async def _discard(self) -> None:
        """Discards the newest message that is not stored."""
        message = next(reversed(self._transcript.unstored), "")
        if not message:
            self._say("no message is waiting or refused")
            return
        await self._client.discard(self._conversation, message)
        if message not in self._transcript.unstored:
            self._say("it was stored just now")
        elif self._transcript.discard(message).refused:
            self._say("removed")
        else:
            self._say("removed; if it was sent already, it may be stored nevertheless")

    async def _recall(self) -> None:
        """Recalls the person's newest message, which has to be stored."""
        message = self._transcript.own_newest
        if self._transcript.unstored:  # newer than any that is stored
            self._say("your newest message is not stored: /discard removes it")
            return
        if message is None:
            self._say("none of your messages here can be recalled")
            return
        commands = [entry.command for entry in await self._client.outbox() if not entry.refused]
        if any(isinstance(command, Recall) and command.target == message.position for command in commands):
            self._say("it is being recalled already")
            return
        if self._client.state.phase is not Phase.ESTABLISHED:
            self._say("recalled as soon as the server answers")
        await self._client.recall(self._conversation, message.position)

    async def _post(self, conversation: str, message: str, content: Content) -> None:
        try:
            await self._client.post(conversation, content, client_msg_id=message)
        except ImqttError as error:
            self._transcript.refuse(message, error.reason)

    async def _open(self, conversation: str) -> None:
        self._conversation = conversation
        self._typing_until = 0.0
        self._transcript.clear()
        if warning := stranger(self._access, conversation):
            self._say(warning, 30.0)
        known_marks = await self._client.marks(conversation)
        entries = await self._client.outbox()  # last, because a message may be stored during other awaits
        if conversation != self._conversation:
            return  # another one was opened
        for entry in entries:
            if entry.conversation == conversation and isinstance(entry.command, Send):
                self._transcript.wait(entry.client_msg_id, entry.content, entry.client_time)
                if entry.refused:
                    self._transcript.refuse(entry.client_msg_id, entry.reason)
        for marks in known_marks.values():
            self._transcript.mark(marks)
        self._do(self._fetch_older())

    async def _fetch_older(self) -> None:
        conversation, first = self._conversation, self._transcript.first
        self._fetching = True
        try:
            events = await self._client.history(conversation, first or None, PAGE)
        finally:
            self._fetching = False
        if conversation != self._conversation:
            return
        before = self._screen.count()
        has_all = len(events) < PAGE and self._client.state.phase is Phase.ESTABLISHED
        self._transcript.add(events, begins=has_all)
        self._screen.grew_at_the_top(self._screen.count() - before)
        await self._client.mark_read(conversation)

    # --- events

    async def _follow_events(self, events: Any) -> None:
        async for event in events:
            if event.conversation == self._conversation:
                self._transcript.add([event])
                if event.sender != self._device.user:
                    self._typing_until = 0.0
                    await self._client.mark_read(event.conversation, event.seq)
            elif event.sender != self._device.user and event.kind == "message":
                self._say(f"{event.sender} wrote to you: /to {event.sender}")
            self._screen.changed()

    async def _follow_notices(self, notices: Any) -> None:
        async for notice in notices:
            match notice:
                case Marks() if notice.conversation == self._conversation:
                    self._transcript.mark(notice)
                case PeerTyping() if notice.conversation == self._conversation:
                    self._typing_until = time.monotonic() + TYPING_SECONDS if notice.typing else 0.0
                case Refused() if isinstance(notice.entry.command, Send):
                    self._transcript.refuse(notice.entry.client_msg_id, notice.error.reason)
                case Refused():
                    self._say(notice.error.reason)
                case Restarted() if notice.conversation == self._conversation:
                    self._say("the server was restored from a backup: these are its messages")
                    self._do(self._open(self._conversation))
            self._screen.changed()

    async def _follow_states(self) -> None:
        news = StateNews()
        async for state in self._client.states():
            report = news.of(state)
            if report and not state.silent and state.phase is Phase.ESTABLISHED:
                self._say(report)
            if state.phase is Phase.ESTABLISHED and not self._transcript.first:
                self.older()  # there was no connection before
            self._screen.changed()

    # --- the lines around the transcript

    def title(self) -> str:
        peer = peer_of(self._device.user, self._conversation)
        if not peer:
            return "notes to yourself"
        presence = self._client.presence_of(peer)
        state = self._client.state
        if presence is None or state.silent or state.phase is not Phase.ESTABLISHED:
            return peer  # its presence may be outdated
        if presence.state == "offline" and presence.last_seen:
            return f"{peer} · last seen {since(presence.last_seen, _now())}"
        return f"{peer} · {presence.state}"

    def state(self) -> tuple[bool, str]:
        """Whether the chat is connected, and a text about the connection."""
        state = self._client.state
        if state.silent:
            return False, "the server does not answer, trying again …"
        if state.phase is Phase.ESTABLISHED:
            return True, f"{self._device}"
        if state.phase is Phase.CONNECTING:
            return False, "connecting …"
        return False, "no connection, trying again …"

    def hint(self) -> str:
        now = time.monotonic()
        if now < self._typing_until:
            return f"{peer_of(self._device.user, self._conversation)} is typing …"
        until, note = self._note
        if now < until and note != HINT:  # the answer to what the person has just done
            return note
        state = self._client.state
        if state.silent:
            return f"{SILENT} · messages wait"
        if isinstance(state.error, TakenOver):  # the whole reason is too long for the line
            return f"another process seems to use {self._device}; each needs its own device"
        if state.phase is not Phase.ESTABLISHED and state.reason:
            return printable(f"what you write is sent later ({state.reason})")
        return note if now < until else ""

    def _say(self, note: str, seconds: float = NOTE_SECONDS) -> None:
        self._note = (time.monotonic() + seconds, printable(note))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` as a task and shows its error."""

        async def attempt() -> None:
            try:
                await work
            except ImqttError as error:
                self._say(error.reason)
            self._screen.changed()

        task = asyncio.create_task(attempt(), name="chat")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now() -> int:
    return time.time_ns() // 1_000_000
