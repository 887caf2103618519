"""The chat's screen: a title bar, a transcript that scrolls, a status line, and an input line."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import HSplit, Layout, VSplit, Window, WindowAlign
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl, UIContent, UIControl
from prompt_toolkit.styles import Style

from imqtt.cli.transcript import Line, Transcript
from imqtt.cli.wrapping import Rows, wrapped

if TYPE_CHECKING:
    from imqtt.cli.chat_controller import Chat

STYLE = Style.from_dict(
    {
        "bar": "reverse",
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

PROMPT = "> "
INPUT_ROWS = 6  # at most


class _Lines(UIControl):
    """Lines that are laid out already. Only those on the screen are drawn."""

    def __init__(self, lines: Callable[[int], list[Line]], cursor: Callable[[], int]) -> None:
        self._lines = lines
        self._cursor = cursor

    def create_content(self, width: int, height: int) -> UIContent:
        lines = self._lines(width)
        return UIContent(
            get_line=lambda number: [*lines[number]],
            line_count=len(lines),
            cursor_position=Point(0, self._cursor()),
            show_cursor=False,
        )


class _Input(BufferControl):
    """A buffer's text after `PROMPT`, cut into rows.

    prompt_toolkit's own control also wraps lines, but it scans the whole text several times per redraw.
    """

    def __init__(self, buffer: Buffer) -> None:
        super().__init__(buffer)
        self._shown: tuple[str, int, Rows] | None = None

    def rows(self, width: int) -> Rows:
        text = self.buffer.text
        if self._shown is None or self._shown[:2] != (text, width):
            # One column stays free for a cursor after a full row.
            self._shown = (text, width, Rows(text, max(width - len(PROMPT) - 1, 2)))
        return self._shown[2]

    def create_content(self, width: int, height: int, preview_search: bool = False) -> UIContent:
        rows = self.rows(width)
        row, column = rows.place(self.buffer.cursor_position)

        def line(number: int) -> StyleAndTextTuples:
            before = ("class:prompt", PROMPT) if number == 0 else ("", " " * len(PROMPT))
            return [before, ("", rows.texts[number] + " ")]  # the space is for the cursor

        return UIContent(
            get_line=line, line_count=len(rows.texts), cursor_position=Point(len(PROMPT) + column, row)
        )


class Screen:
    """Tells `chat` what the person does, and asks it for its `title`, `state` and `hint` at each redraw."""

    def __init__(self, transcript: Transcript, chat: "Chat") -> None:
        self._transcript = transcript
        self._chat = chat
        self._lines: list[Line] = []
        self._page = ""  # shown instead of the transcript
        self._anchor: int | None = None  # the line that stays in view; None: the last line
        self._pane = Window(_Lines(self._text, self._cursor), always_hide_cursor=True)
        self._buffer = Buffer(
            multiline=Condition(lambda: "\n" in self._buffer.text), on_text_changed=self._changed
        )
        control = _Input(self._buffer)
        entry = Window(control, height=lambda: min(len(control.rows(self._width()).texts), INPUT_ROWS))

        def right() -> StyleAndTextTuples:
            good, text = chat.state()
            return [("class:bar.good" if good else "class:bar.bad", f"{text} ")]

        left_window = Window(FormattedTextControl(lambda: f" {chat.title()}"), style="class:bar")
        right_window = Window(FormattedTextControl(right), style="class:bar", align=WindowAlign.RIGHT)
        bar = VSplit([left_window, right_window], height=1)
        note = Window(FormattedTextControl(lambda: [("class:typing", f"  {chat.hint()}")]), height=1)
        self.application: Application[None] = Application(
            Layout(HSplit([bar, self._pane, note, entry]), focused_element=entry),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            mouse_support=False,  # so that one can select and copy with the terminal
            refresh_interval=1.0,  # to remove notes that are shown for some seconds
        )

    async def run(self) -> None:
        """Returns when the person leaves. A cancellation also restores the terminal."""
        # Ctrl-C is a key binding. prompt_toolkit's own handler would ignore SIGINT.
        await self.application.run_async(handle_sigint=False)

    def changed(self) -> None:
        """Schedules a redraw. May be called any number of times."""
        self.application.invalidate()

    def show_page(self, text: str) -> None:
        """Shows a text instead of the transcript until Esc or Enter."""
        self._page = text
        self._anchor = 0

    def _show_end(self) -> None:
        """Closes the page, and shows the last line of the transcript."""
        self._page, self._anchor = "", None

    def grew_at_the_top(self, lines: int) -> None:
        """Keeps the view in place after `lines` were added before it."""
        if self._anchor is not None and not self._page:
            self._anchor += lines

    def count(self) -> int:
        """The number of lines of the transcript."""
        return len(self._transcript.lines(self._width()))

    def _width(self) -> int:
        return self.application.output.get_size().columns

    def _text(self, width: int) -> list[Line]:
        if self._page:
            rows = [row for line in self._page.split("\n") for row in wrapped(line, max(width - 2, 10))]
            self._lines = [[("class:note", f"  {row}")] for row in rows]
            self._lines.append([("class:day", "  ── Esc closes this page ──")])
        else:
            self._lines = self._transcript.lines(width) or [[("class:note", "  No messages yet: write one.")]]
        return self._lines

    def _cursor(self) -> int:
        """The line that prompt_toolkit keeps in view."""
        last = max(len(self._lines) - 1, 0)
        return last if self._anchor is None else min(self._anchor, last)

    def _scroll(self, pages: int) -> None:
        """One page up (-1) or down (1)."""
        shown = self._pane.render_info
        if shown is None:
            return
        step = max(shown.window_height, 1)
        if pages < 0:
            top = shown.first_visible_line()
            self._anchor = max(top - step, 0)
            if top == 0 and not self._page:
                self._chat.older()
        else:
            last = len(self._lines) - 1
            bottom = shown.last_visible_line() + step
            self._anchor = bottom if bottom < last else last if self._page else None

    def _changed(self, buffer: Buffer) -> None:
        self._chat.typing(typing=bool(buffer.text) and not buffer.text.startswith("/"))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            text = self._buffer.text.strip()
            if text in ("/quit", "/exit"):
                event.app.exit()
                return
            self._buffer.reset()  # including its undo history
            self._changed(self._buffer)
            self._show_end()
            if text:
                self._chat.send(text)

        is_empty, has_page = Condition(lambda: not self._buffer.text), Condition(lambda: bool(self._page))
        keys.add("escape", "enter")(lambda event: self._buffer.insert_text("\n"))
        keys.add("escape", filter=has_page, eager=True)(lambda event: self._show_end())
        keys.add("c-end")(lambda event: self._show_end())
        keys.add("f1")(lambda event: self._chat.help())
        keys.add("pageup")(lambda event: self._scroll(-1))
        keys.add("pagedown")(lambda event: self._scroll(1))
        keys.add("c-c")(lambda event: event.app.exit())
        keys.add("c-q")(lambda event: event.app.exit())
        keys.add("c-d", filter=is_empty)(lambda event: event.app.exit())
        return keys
