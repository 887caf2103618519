"""Any text is wrapped to the columns of a terminal in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from imqtt.cli.wrapping import MAX_STACKED, Rows, columns, unstacked, wrapped

LONG = {
    "no spaces": "x" * 65_536,
    "words": "lorem ip " * 7_281,
    "wide": "日" * 21_845,
    "combining": "e" + "\u0301" * 32_767,
    "emoji": "👩‍👩‍👧" * 3_640,
    "controls": "\x1b[2J\x9b" * 10_922,
    "lines": "x\n" * 32_768,
}

awkward = st.text(st.sampled_from("ab 日\u0301\u200d👩\x1b\x9b\t\n\u202e") | st.characters(codec="utf-8"))


def seconds_for(work: object) -> float:
    """CPU time, which is independent of other processes."""
    begun = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - begun


def test_a_line_breaks_between_words() -> None:
    assert wrapped("one two three", 8) == ["one two", "three"]
    assert wrapped("  indented", 20) == ["  indented"]
    assert wrapped("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrapped("日本語", 4) == ["日本", "語"]
    assert wrapped("日本語", 5) == ["日本", "語"]
    assert wrapped("ab cdefgh", 4) == ["ab", "cdef", "gh"]
    assert wrapped("", 4) == [""]


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_64_kib_of_any_text_are_wrapped_quickly(text: str) -> None:
    assert seconds_for(lambda: wrapped(unstacked(text.replace("\n", "")), 60)) < 1.0
    assert seconds_for(lambda: Rows(text, 77)) < 1.0


def test_few_combining_characters_stay_and_many_do_not() -> None:
    assert unstacked("e\u0301e\u0301\u0302") == "e\u0301e\u0301\u0302"
    assert unstacked("👩‍👩‍👧") == "👩‍👩‍👧"
    assert unstacked("e" + "\u0301" * 100 + "x") == "e" + "\u0301" * MAX_STACKED + "x"


@given(awkward, st.integers(2, 30))
def test_the_rows_of_an_edited_text_hold_its_characters_in_order(text: str, width: int) -> None:
    rows = Rows(text, width)
    assert all(columns(row) <= width for row in rows.texts)
    places = [rows.place(position) for position in range(len(text) + 1)]
    assert places == sorted(set(places))
    for character, (row, column) in zip(text, places, strict=False):
        if character == "\n":
            assert column == len(rows.texts[row])
        elif character.isprintable() and get_cwidth(character):
            assert rows.texts[row][column] == character
    assert places[-1] == (len(rows.texts) - 1, len(rows.texts[-1]))


@given(awkward, st.integers(2, 30))
def test_edited_text_cannot_control_the_terminal(text: str, width: int) -> None:
    shown = "".join(Rows(text, width).texts)
    assert all(character.isprintable() or character in "\u200c\u200d" for character in shown)
