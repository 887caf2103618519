"""`imqtt chat` as a person sees it: on a terminal, with keys."""

import asyncio
import codecs
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from tests.cli.commands import environment, imqtt
from tests.services import ServerProcess, eventually

ROWS, COLUMNS = 20, 80
PARTS = re.compile(r"\x1b\[(?P<numbers>[0-9;?]*)(?P<code>[a-zA-Z])|\x1b.|(?P<character>.)", re.DOTALL)
UNFINISHED = re.compile(r"\x1b(\[[0-9;?]*)?$")


class Grid:
    """What a terminal shows after what was written to it: as much of one as a chat needs."""

    def __init__(self) -> None:
        self._rows = [[" "] * COLUMNS for _ in range(ROWS)]
        self._row = self._column = 0
        self._unfinished = ""  # a sequence whose end has not come yet

    def __str__(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def write(self, text: str) -> None:
        text = self._unfinished + text
        cut = UNFINISHED.search(text)
        text, self._unfinished = (text[: cut.start()], cut[0]) if cut else (text, "")
        for part in PARTS.finditer(text):
            if part["code"]:
                self._control(part["code"], [int(it or 0) for it in part["numbers"].strip("?").split(";")])
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
    """A process on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments
        self._grid = Grid()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def start(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        variables = environment(TERM="xterm-256color", COLUMNS=str(COLUMNS))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "imqtt", *map(str, self._arguments),
            env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        try:
            self._grid.write(self._decoder.decode(os.read(self._master, 65_536)))
        except OSError:
            asyncio.get_running_loop().remove_reader(self._master)

    async def shows(self, text: str) -> None:
        try:
            await eventually(lambda: text in str(self._grid))
        except AssertionError:
            raise AssertionError(f"{text!r} is not on the screen, but:\n{self._grid}") from None

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@pytest.fixture
async def data(broker: Mosquitto, server: ServerProcess) -> Path:
    assert server.pid is not None
    await imqtt("device", "add", "alice@phone", "bob@laptop", "--save", "--data", broker.directory)
    return broker.directory


@pytest.fixture
async def alice(data: Path) -> AsyncIterator[Terminal]:
    """alice's chat with bob, open."""
    await imqtt("send", "alice", "before", "--user", "bob", "--data", data)
    terminal = Terminal("chat", "bob", "--user", "alice", "--data", data)
    await terminal.start()
    await terminal.shows("Enter sends")
    yield terminal
    await terminal.end()


async def test_history_is_there_on_opening(alice: Terminal) -> None:
    await alice.shows("bob  before")
    await alice.shows("This is where it begins.")


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


async def test_what_comes_is_shown(alice: Terminal, data: Path) -> None:
    await imqtt("send", "alice", "after", "--user", "bob", "--data", data)
    await alice.shows("bob  after")


async def test_a_lost_connection_is_shown_and_what_is_written_is_sent_later(
    alice: Terminal, broker: Mosquitto, data: Path
) -> None:
    await broker.kill()
    await alice.shows("no connection, trying again")
    alice.type("written without a broker\r")
    await alice.shows("written without a broker ·")
    await broker.start()
    await alice.shows("written without a broker ✓")
    history = (await imqtt("history", "alice", "--user", "bob", "--data", data, "--json")).json
    assert history[-1]["content"] == {"text": "written without a broker"}


@pytest.mark.parametrize("keys", ["/quit\r", "\x03", "\x04"], ids=["/quit", "Ctrl-C", "Ctrl-D"])
async def test_leaving_is_no_failure(alice: Terminal, keys: str) -> None:
    alice.type(keys)
    async with asyncio.timeout(10):
        assert await alice.process.wait() == 0


async def test_a_revoked_device_is_told_and_ends(alice: Terminal, data: Path) -> None:
    await imqtt("device", "revoke", "alice@phone", "--data", data)
    async with asyncio.timeout(20):
        assert await alice.process.wait() == 1
    await alice.shows("no broker takes the password of alice@phone")


async def test_a_command_that_there_is_not_is_explained(alice: Terminal) -> None:
    alice.type("/dance\r")
    await alice.shows("/to USER")
    alice.type("/to b*b\r")
    await alice.shows("neither a user nor a conversation")
