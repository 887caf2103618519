"""The chat's screen redraws quickly, regardless of the length and number of messages."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from imqtt.cli.screen import Screen
from imqtt.cli.transcript import Transcript
from tests.cli.test_transcript import event
from tests.cli.test_wrapping import LONG
from tests.services import eventually

KEYS = 20
SECONDS_A_KEY = 0.5  # where each key costs as much as the text is long, it takes 6 and more


class Actions:
    """Records the user's actions at the screen."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.fetched = 0

    def send(self, text: str) -> None:
        self.sent.append(text)

    def typing(self, *, typing: bool) -> None: ...

    def older(self) -> None:
        self.fetched += 1

    def help(self) -> None: ...

    def title(self) -> str:
        return ""

    def state(self) -> tuple[bool, str]:
        return True, ""

    def hint(self) -> str:
        return ""


@asynccontextmanager
async def open_screen(
    transcript: Transcript,
) -> AsyncIterator[tuple[Screen, PipeInput, Actions, io.StringIO]]:
    actions, written = Actions(), io.StringIO()
    with create_pipe_input() as keys:
        output = Vt100_Output(written, lambda: Size(rows=24, columns=80), enable_cpr=False)
        with create_app_session(input=keys, output=output):
            screen = Screen(transcript, actions)
            running = asyncio.create_task(screen.application.run_async())
            await eventually(lambda: screen.application.render_counter > 0)
            try:
                yield screen, keys, actions, written
            finally:
                screen.application.exit()
                await running


async def seconds_a_key(screen: Screen, keys: PipeInput) -> float:
    """The median CPU time of a keystroke with its redraw."""
    seconds: list[float] = []
    for _ in range(KEYS):
        begun = time.process_time()
        drawn = screen.application.render_counter
        keys.send_text("k")
        await eventually(lambda: screen.application.render_counter > drawn)  # noqa: B023
        seconds.append(time.process_time() - begun)
    return median(seconds)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
async def test_typing_beside_a_long_message_is_quick(text: str) -> None:
    transcript = Transcript("alice")
    transcript.add([event(1, "bob", text)])
    async with open_screen(transcript) as (screen, keys, _, written):
        assert await seconds_a_key(screen, keys) < SECONDS_A_KEY
        assert "\x1b[2J\x1b[2J" not in written.getvalue()
        assert "\x9b" not in written.getvalue()


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
async def test_typing_after_a_long_paste_is_quick_and_sends_all_of_it(text: str) -> None:
    async with open_screen(Transcript("alice")) as (screen, keys, actions, written):
        # In a thread, since a pipe holds only 64 KiB.
        await asyncio.to_thread(keys.send_text, f"\x1b[200~{text}\x1b[201~")
        await eventually(lambda: len(screen._buffer.text) == len(text))
        assert await seconds_a_key(screen, keys) < SECONDS_A_KEY
        keys.send_text("\r")
        await eventually(lambda: actions.sent)
        assert actions.sent == [text + "k" * KEYS]
        assert "\x9b" not in written.getvalue()


async def test_typing_beside_10_000_messages_is_quick() -> None:
    transcript = Transcript("alice")
    transcript.add([event(seq) for seq in range(1, 10_001)])
    async with open_screen(transcript) as (screen, keys, _, _):
        assert await seconds_a_key(screen, keys) < SECONDS_A_KEY


async def test_a_page_covers_the_transcript_until_esc_or_a_message() -> None:
    transcript = Transcript("alice")
    transcript.add([event(seq) for seq in range(1, 101)])
    async with open_screen(transcript) as (screen, keys, actions, _):
        for end in ("\x1b", "hi\r"):
            screen.show_page("one\ntwo")
            screen.changed()
            await eventually(lambda: len(screen._lines) == 3)
            keys.send_text("\x1b[5~")  # PageUp scrolls the page and fetches nothing
            keys.send_text(end)
            await eventually(lambda: len(screen._lines) > 100)
        assert (actions.sent, actions.fetched) == (["hi"], 0)
