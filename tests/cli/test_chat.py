"""`imqtt chat` on a terminal, operated by keys."""

import asyncio
import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt.client import Client
from imqtt.mosquitto.broker import Mosquitto
from tests.cli.commands import environment, imqtt
from tests.forked import Forked, fork
from tests.services import WITHIN, ServerProcess, eventually

ROWS, COLUMNS = 20, 80
PARTS = re.compile(r"\x1b\[(?P<numbers>[0-9;?]*)(?P<code>[a-zA-Z])|\x1b.|(?P<character>.)", re.DOTALL)
UNFINISHED = re.compile(r"\x1b(\[[0-9;?]*)?$")


class Grid:
    """A terminal emulator with the features that the chat needs."""

    def __init__(self) -> None:
        self._rows = [[" "] * COLUMNS for _ in range(ROWS)]
        self._row = self._column = 0
        self._unfinished = ""  # an incomplete escape sequence

    def __str__(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def write(self, text: str) -> None:
        text = self._unfinished + text
        cut = UNFINISHED.search(text)
        text, self._unfinished = (text[: cut.start()], cut[0]) if cut else (text, "")
        for part in PARTS.finditer(text):
            if part["code"]:
                self._control(part["code"], [int(one or 0) for one in part["numbers"].strip("?").split(";")])
            elif part["character"]:
                self._character(part["character"])

    def _character(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row = min(self._row + 1, ROWS - 1)
        elif character == "\b":
            self._column = max(self._column - 1, 0)
        elif character.isprintable() and self._column < COLUMNS:
            self._rows[self._row][self._column] = character
            self._column += 1

    def _control(self, code: str, numbers: list[int]) -> None:
        step = max(numbers[0], 1)
        match code:
            case "A" | "B":
                self._row = min(max(self._row + (step if code == "B" else -step), 0), ROWS - 1)
            case "C" | "D":
                self._column = min(max(self._column + (step if code == "C" else -step), 0), COLUMNS - 1)
            case "H":
                self._row, self._column = step - 1, max([*numbers, 0, 0][1], 1) - 1
            case "K":
                self._rows[self._row][self._column :] = [" "] * (COLUMNS - self._column)
            case "J":
                below = self._row + 1 if numbers[0] == 0 else 0
                self._rows[self._row][self._column :] = [" "] * (COLUMNS - self._column)
                self._rows[below:] = [[" "] * COLUMNS for _ in range(ROWS - below)]


class Terminal:
    """A process on its own terminal: a fork (see `tests.forked`), or one of `python -m imqtt`."""

    def __init__(self, *arguments: object, forked: bool = True, **variables: str) -> None:
        self.written = ""
        self._forked = forked
        self._arguments = arguments
        self._variables = variables
        self._grid = Grid()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def start(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        variables = environment(TERM="xterm-256color", COLUMNS=str(COLUMNS), **self._variables)
        arguments = ("imqtt", *map(str, self._arguments))
        self.process: Forked | asyncio.subprocess.Process
        if self._forked:
            self.process = fork(*arguments, env=variables, out=slave, terminal=True)
        else:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments,
                env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # for SIGHUP
            )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        try:
            text = self._decoder.decode(os.read(self._master, 65_536))
        except OSError:
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self.written += text
        self._grid.write(text)

    async def shows(self, text: str) -> None:
        try:
            await eventually(lambda: text in str(self._grid))
        except AssertionError:
            raise AssertionError(f"{text!r} is not on the screen, but:\n{self._grid}") from None

    async def shows_no(self, text: str) -> None:
        await eventually(lambda: text not in str(self._grid), what=f"{text!r} is gone")

    @property
    def is_canonical(self) -> bool:
        """Whether the terminal is in canonical mode with echo, as a shell expects."""
        wanted = termios.ICANON | termios.ECHO
        return termios.tcgetattr(self._master)[3] & wanted == wanted

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = -1

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.close()


def saved(data: Path, device: str) -> str:
    """A device's password."""
    return (data / "credentials" / device).read_text().strip()


by_python = pytest.mark.parametrize("alice", [pytest.param(False, id="python -m")], indirect=True)


@pytest.fixture
async def alice(data: Path, broker: Mosquitto, request: pytest.FixtureRequest) -> AsyncIterator[Terminal]:
    """alice's open chat with bob."""
    async with Client(
        user="bob",
        device="laptop",
        password=saved(data, "bob@laptop"),
        brokers=f"{broker.host}:{broker.port}",
    ) as bob:
        await bob.send("alice", "before")
    forked = getattr(request, "param", True)
    terminal = Terminal("chat", "bob", "--user", "alice", "--data", data, forked=forked)
    await terminal.start()
    await terminal.shows("Enter sends")
    yield terminal
    await terminal.end()


async def test_a_chat_opens_with_its_history(alice: Terminal) -> None:
    await alice.shows("bob  before")
    await alice.shows("The conversation begins here.")


async def test_a_message_gets_its_ticks(alice: Terminal, data: Path) -> None:
    alice.type("hello bob\r")
    await alice.shows("hello bob ✓")
    bob = Terminal("chat", "alice", "--user", "bob", "--data", data)
    await bob.start()
    try:
        await bob.shows("hello bob")
        await alice.shows("✓✓")
        await alice.shows("bob · online")
        bob.type("x")
        await alice.shows("bob is typing")
    finally:
        await bob.end()


async def test_an_incoming_message_is_shown(alice: Terminal, data: Path) -> None:
    await imqtt("send", "alice", "after", "--user", "bob", "--data", data)
    await alice.shows("bob  after")


async def test_a_lost_connection_is_shown_and_messages_written_meanwhile_are_sent_later(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    await broker.kill()
    await alice.shows("no connection, trying again")
    alice.type("written without a broker\r")
    await alice.shows("written without a broker ·")
    await broker.start()
    await alice.shows("written without a broker ✓")
    history = (await imqtt("history", "alice", "--user", "bob", "--data", data, "--json")).rows
    assert history[-1]["content"] == {"text": "written without a broker"}


@pytest.mark.parametrize("keys", ["/quit\r", "\x03", "\x04"], ids=["/quit", "Ctrl-C", "Ctrl-D"])
async def test_leaving_a_chat_exits_with_status_0(alice: Terminal, keys: str) -> None:
    alice.type(keys)
    async with asyncio.timeout(WITHIN):
        assert await alice.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_the_chat_cleanly(alice: Terminal, data: Path, number: signal.Signals) -> None:
    await alice.shows("alice@phone")
    assert not alice.is_canonical
    alice.process.send_signal(number)
    async with asyncio.timeout(WITHIN):
        assert await alice.process.wait() == 128 + number
    await eventually(lambda: "\x1b[?1049l" in alice.written, what="the terminal's main screen is back")
    assert alice.is_canonical
    assert not list(data.rglob("alice@phone.db-wal"))  # SQLite removes it when a store is closed


@by_python
async def test_a_terminal_that_closes_ends_the_chat_cleanly(alice: Terminal, data: Path) -> None:
    await alice.shows("alice@phone")
    alice.close()
    async with asyncio.timeout(WITHIN):
        assert await alice.process.wait() == 128 + signal.SIGHUP
    assert not list(data.rglob("alice@phone.db-wal"))


async def test_the_chat_of_a_revoked_device_ends_with_the_reason(alice: Terminal, data: Path) -> None:
    await imqtt("device", "revoke", "alice@phone", "--data", data)
    async with asyncio.timeout(WITHIN):
        assert await alice.process.wait() == 1
    await alice.shows("no broker accepts the password of alice@phone")


async def test_the_silence_and_the_return_of_the_server_are_shown(
    alice: Terminal, server: ServerProcess
) -> None:
    await alice.shows("alice@phone")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await alice.shows("the server does not answer, trying again")
        await alice.shows("connected to the broker; the imqtt server does not answer")
        alice.type("written without a server\r")
        await alice.shows("written without a server ·")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await alice.shows("the imqtt server answers again")
    await alice.shows("written without a server ✓")


async def test_another_process_with_the_same_credential_is_reported(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    await alice.shows("alice@phone")
    password, address = saved(data, "alice@phone"), f"{broker.host}:{broker.port}"
    async with Client(user="alice", device="phone", password=password, brokers=address, wait=0):
        await alice.shows("another process seems to use alice@phone; each needs its own device")


async def test_presence_is_not_shown_while_it_is_unknown(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    await imqtt("send", "alice", "after", "--user", "bob", "--data", data)
    await alice.shows("bob · ")
    await broker.kill()
    await alice.shows("no connection, trying again")
    await alice.shows_no("bob · ")


async def test_help_shows_every_command_and_key(alice: Terminal) -> None:
    alice.type("/help\r")
    for command in ("/to USER", "/discard", "/help", "/quit", "//text", "Alt-Enter", "PageUp", "F1"):
        await alice.shows(command)
    alice.type("\x1b")
    await alice.shows("bob  before")
    alice.type("\x1bOP")
    await alice.shows("/discard")
    alice.type("\x1b[6~\x1b[6~")
    await alice.shows("Esc closes this page")
    alice.type("said meanwhile\r")
    await alice.shows("said meanwhile ✓")


async def test_a_message_can_be_discarded_before_it_is_stored(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    alice.type("/discard\r")
    await alice.shows("no message is waiting or refused")
    await broker.kill()
    await alice.shows("no connection, trying again")
    alice.type("one\r")
    await alice.shows("one ·")
    alice.type("two\r")
    await alice.shows("two ·")
    alice.type("/discard\r")
    await alice.shows_no("two ·")
    await broker.start()
    await alice.shows("one ✓")
    history = (await imqtt("history", "alice", "--user", "bob", "--data", data, "--json")).rows
    assert [event["content"]["text"] for event in history] == ["before", "one"]


async def test_a_recall_takes_back_the_newest_message_and_no_other(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    alice.type("/recall\r")
    await alice.shows("none of your messages here can be recalled")
    alice.type("stored\r")
    await alice.shows("stored ✓")
    await broker.kill()
    await alice.shows("no connection, trying again")
    alice.type("waiting\r")
    await alice.shows("waiting ·")
    alice.type("/recall\r")
    await alice.shows("your newest message is not stored: /discard removes it")
    alice.type("/discard\r")
    await alice.shows_no("waiting ·")
    alice.type("/recall\r")
    await alice.shows("recalled as soon as the server answers")
    alice.type("/recall\r")
    await alice.shows("it is being recalled already")
    await broker.start()
    await alice.shows("alice  [recalled] ✓")
    history = (await imqtt("history", "alice", "--user", "bob", "--data", data, "--json")).rows
    assert [(event["content"], event.get("kind")) for event in history] == [
        ({"text": "before"}, None),
        ({}, None),
        ({}, "recall"),
    ]


async def test_pending_messages_of_one_conversation_are_not_shown_in_another(
    alice: Terminal, broker: Mosquitto
) -> None:
    await broker.kill()
    await alice.shows("no connection, trying again")
    alice.type("/to carol\r")
    await alice.shows_no("bob  before")
    alice.type("for carol\r")
    await alice.shows("for carol ·")
    alice.type("/to bob\r")
    await alice.shows("bob  before")
    alice.type("/to carol\r/to bob\rfor bob\r")
    await alice.shows("for bob ·")
    await alice.shows("bob  before")
    await alice.shows_no("for carol ·")


async def test_a_text_may_begin_with_a_slash(alice: Terminal) -> None:
    alice.type("//etc/hosts\r")
    await alice.shows("alice  /etc/hosts ✓")


async def test_a_user_without_devices_is_reported(alice: Terminal) -> None:
    alice.type("/to bbo\r")
    await alice.shows("no device of bbo has a credential on this broker; did you mean bob?")
    alice.type("/to bob\r")
    await alice.shows("bob  before")
    await alice.shows_no("did you mean")


@by_python
async def test_another_command_on_the_device_names_the_process_that_uses_it(
    alice: Terminal, data: Path
) -> None:
    refused = await imqtt("send", "bob", "hi", "--user", "alice", "--data", data)
    assert (refused.status, refused.out) == (1, "")
    assert f"alice@phone.db is in use by process {alice.process.pid} (" in refused.err
    assert "imqtt chat bob --user alice" in refused.err
    assert f"`imqtt device add alice@NAME --save --data {data}`, then --device NAME" in refused.err
    assert refused.err.count("\n") == 1
    outbox = await imqtt("outbox", "--user", "alice", "--data", data)
    assert (outbox.status, outbox.err.partition("); ")[2]) == (1, "end it first\n")


async def test_messages_of_others_cannot_control_the_terminal(alice: Terminal, data: Path) -> None:
    await imqtt(
        "send",
        "alice",
        "--user",
        "bob",
        "--data",
        data,
        stdin="\x1b]0;owned\x07\x9b2J\u202eb" + "\u0301" * 30_000,
    )
    await alice.shows("]0;owned")
    assert "\x1b]0;owned" not in alice.written
    assert not set("\x07\x9b\u202e") & set(alice.written)
    alice.type("still here\r")
    await alice.shows("still here ✓")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("--device", "tablet"), {}, "no password for alice@tablet"),
        (("--device", "phone"), {"IMQTT_PASSWORD": "wrong"}, "no broker accepts the password of alice@phone"),
        ((), {"IMQTT_BROKER": "127.0.0.1:x"}, "not a broker's address"),
    ],
    ids=["no credential", "a wrong password", "a bad address"],
)
async def test_a_chat_that_cannot_start_prints_the_reason_in_one_line(
    data: Path, arguments: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    terminal = Terminal("chat", "bob", "--user", "alice", *arguments, "--data", data, **variables)
    await terminal.start()
    try:
        async with asyncio.timeout(WITHIN):
            assert await terminal.process.wait() == 1
        await terminal.shows("imqtt: ")
        assert message in terminal.written.replace("\r\n", " ")
        assert terminal.written.count("\n") == 1
    finally:
        await terminal.end()


async def test_an_unknown_command_is_explained(alice: Terminal) -> None:
    alice.type("/dance\r")
    await alice.shows("there is no command /dance: /help shows all; //dance sends it as a text")
    alice.type("/recall it\r")
    await alice.shows("/recall takes no text; //recall it sends it as a text")
    alice.type("/help me\r")
    await alice.shows("/discard")
    alice.type("\x1b")
    await alice.shows("bob  before")
    alice.type("/to b*b\r")
    await alice.shows("neither a user nor a conversation")
