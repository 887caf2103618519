"""Wrapping text to the columns of a terminal, in linear time even for text without spaces.

Widths are those of prompt_toolkit, which places the characters on the screen.
"""

import re
from bisect import bisect_right
from itertools import accumulate

from prompt_toolkit.utils import get_cwidth

from imqtt.printable import CharacterTable, printable_character

MAX_STACKED = 8
"""Zero-width characters allowed in a row. prompt_toolkit keeps all of them in one cell, and copies it for
each of them."""

_WIDTHS = CharacterTable(lambda character: chr(get_cwidth(character)))
_SHOWN = CharacterTable(lambda character: character if character == "\n" else printable_character(character))
_TOO_MANY = re.compile(rb"(?<=\0{%d})\0+" % MAX_STACKED)


def widths(text: str) -> bytes:
    """The width of each character: two for most East Asian ones, zero for combining ones."""
    return text.translate(_WIDTHS).encode("latin-1")


def columns(text: str) -> int:
    return len(text) if text.isascii() else sum(widths(text))


def unstacked(text: str, instead: str = "") -> str:
    """`text` with at most `MAX_STACKED` zero-width characters in a row; `instead` replaces further ones."""
    if text.isascii():
        return text
    parts: list[str] = []
    end = 0
    for run in _TOO_MANY.finditer(widths(text)):
        parts += (text[end : run.start()], instead * len(run[0]))
        end = run.end()
    return "".join([*parts, text[end:]])


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words if possible."""
    lines: list[str] = []
    line, room = "", width
    for word in re.findall(r" *[^ ]+| +$", text):
        size = columns(word)
        if size <= room:
            line, room = line + word, room - size
            continue
        if line:
            lines.append(line)
            word = word.lstrip(" ")  # noqa: PLW2901 - the line break replaces the spaces
        *full, line = pieces(word, width)
        lines += full
        room = width - columns(line)
    return [*lines, line]


def pieces(text: str, width: int) -> list[str]:
    """`text` cut into pieces of at most `width` columns. `width` is at least 2."""
    if text.isascii():
        return [text[start : start + width] for start in range(0, len(text), width)] or [""]
    taken = list(accumulate(widths(text)))
    cut: list[str] = []
    start = before = 0
    while start < len(text):
        end = bisect_right(taken, before + width, lo=start)
        cut.append(text[start:end])
        start, before = end, taken[end - 1]
    return cut


class Rows:
    """A text being edited, in rows of at most `width` columns. `width` is at least 2."""

    def __init__(self, text: str, width: int) -> None:
        self.texts: list[str] = []
        self._starts: list[int] = []  # the position in the text at which each row begins
        start = 0
        # Each character is replaced by exactly one, so that positions stay the same.
        shown = unstacked(text.translate(_SHOWN), "\N{REPLACEMENT CHARACTER}")
        for line in shown.split("\n"):
            for piece in pieces(line, width):
                self.texts.append(piece)
                self._starts.append(start)
                start += len(piece)
            start += 1  # the line break

    def place(self, position: int) -> tuple[int, int]:
        """The row of the character at `position` in the text, and its number in that row."""
        row = bisect_right(self._starts, position) - 1
        return row, position - self._starts[row]
