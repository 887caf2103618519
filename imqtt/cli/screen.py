"""The chat's screen: a transcript that scrolls, a line for what is going on, and one to write in."""

from collections.abc import Callable
from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
    WindowAlign,
)
from prompt_toolkit.layout.processors import BeforeInput
from prompt_toolkit.styles import Style

from imqtt.cli.transcript import Line, Transcript

STYLE = Style.from_dict(
    {
        "bar": "reverse",
        "bar.good": "reverse",
        "bar.bad": "reverse ansired bold",
        "day": "ansibrightblack",
        "note": "ansibrightblack italic",
        "time": "ansibrightblack",
        "tick": "ansibrightblack",
        "tick.read": "ansibrightcyan bold",
        "tick.failed": "ansired",
        "name.own": "ansibrightblack bold",
        "name.0": "ansigreen bold",
        "name.1": "ansiyellow bold",
        "name.2": "ansimagenta bold",
        "name.3": "ansiblue bold",
        "name.4": "ansicyan bold",
        "name.5": "ansired bold",
        "typing": "ansibrightblack italic",
        "prompt": "bold",
    }
)


class Actions(Protocol):
    """What a person at the screen can do."""

    def send(self, text: str) -> None: ...

    def typing(self, *, typing: bool) -> None:
        """The line being written has become empty, or is being changed."""

    def older(self) -> None:
        """He wants to see what was before the first event."""


class Screen:
    """`title`, `state` and `hint` are asked for each time that it is drawn."""

    def __init__(
        self,
        transcript: Transcript,
        actions: Actions,
        *,
        title: Callable[[], str],
        state: Callable[[], tuple[bool, str]],
        hint: Callable[[], str],
    ) -> None:
        self._transcript = transcript
        self._actions = actions
        self._lines: list[Line] = []
        self._anchor: int | None = None  # the line that the view is held at; None: it follows the end
        self._pane = Window(
            FormattedTextControl(self._text, get_cursor_position=self._cursor, show_cursor=False),
            always_hide_cursor=True,
        )
        self._buffer = Buffer(
            multiline=Condition(lambda: "\n" in self._buffer.text), on_text_changed=self._changed
        )
        entry = Window(
            BufferControl(self._buffer, input_processors=[BeforeInput("> ", style="class:prompt")]),
            height=lambda: min(self._buffer.document.line_count, 6),
            wrap_lines=True,
        )
        bar = VSplit(
            [
                Window(FormattedTextControl(lambda: f" {title()}"), style="class:bar"),
                Window(
                    FormattedTextControl(lambda: [_state(*state())]),
                    style="class:bar",
                    align=WindowAlign.RIGHT,
                ),
            ],
            height=1,
        )
        note = Window(FormattedTextControl(lambda: [("class:typing", f"  {hint()}")]), height=1)
        self.application: Application[None] = Application(
            Layout(HSplit([bar, self._pane, note, entry]), focused_element=entry),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            mouse_support=False,  # so that the terminal's own selecting and copying work
            refresh_interval=1.0,  # for what is shown for some seconds only
        )

    def changed(self) -> None:
        """Draws again soon. May be called as often as one likes."""
        self.application.invalidate()

    def grew_at_the_top(self, lines: int) -> None:
        """So many lines have come before the ones shown, which stay where they are."""
        if self._anchor is not None:
            self._anchor += lines

    def count(self) -> int:
        """How many lines there are to show."""
        return len(self._transcript.lines(self._width()))

    def _width(self) -> int:
        return self.application.output.get_size().columns

    # --- the transcript

    def _text(self) -> StyleAndTextTuples:
        self._lines = self._transcript.lines(self._width()) or [
            [("class:note", "  Nothing here yet: write something.")]
        ]
        text: StyleAndTextTuples = []
        for number, line in enumerate(self._lines):
            if number:
                text.append(("", "\n"))
            text.extend(line)
        return text

    def _cursor(self) -> Point:
        """prompt_toolkit keeps this line in view."""
        last = max(len(self._lines) - 1, 0)
        return Point(0, last if self._anchor is None else min(self._anchor, last))

    def _scroll(self, pages: float) -> None:
        shown = self._pane.render_info
        if shown is None:
            return
        step = max(int(shown.window_height * abs(pages)), 1)
        if pages < 0:
            top = shown.first_visible_line()
            self._anchor = max(top - step, 0)
            if top == 0:
                self._actions.older()
        else:
            bottom = shown.last_visible_line() + step
            self._anchor = None if bottom >= len(self._lines) - 1 else bottom

    # --- the line to write in

    def _changed(self, buffer: Buffer) -> None:
        self._actions.typing(typing=bool(buffer.text) and not buffer.text.startswith("/"))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            text = self._buffer.text.strip()
            if text in ("/quit", "/exit"):
                event.app.exit()
                return
            self._buffer.set_document(Document(), bypass_readonly=True)
            self._anchor = None
            if text:
                self._actions.send(text)

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            self._buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("c-q")
        def _(event: KeyPressEvent) -> None:
            event.app.exit()

        @keys.add("c-d", filter=Condition(lambda: not self._buffer.text))
        def _(event: KeyPressEvent) -> None:
            event.app.exit()

        @keys.add("pageup")
        def _(event: KeyPressEvent) -> None:
            self._scroll(-1)

        @keys.add("pagedown")
        def _(event: KeyPressEvent) -> None:
            self._scroll(1)

        @keys.add("c-end")
        def _(event: KeyPressEvent) -> None:
            self._anchor = None

        return keys


def _state(good: bool, text: str) -> tuple[str, str]:
    return ("class:bar.good" if good else "class:bar.bad", f"{text} ")
