"""Text from other users made safe to print, without control characters that a terminal obeys."""

from collections.abc import Callable
from unicodedata import category

MAX_CHARACTERS = 10_000  # in a table
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # emoji and Persian need them


class CharacterTable(dict[int, str]):
    """A table for `str.translate` that calls `stand_in` once per character and caches its results."""

    def __init__(self, stand_in: Callable[[str], str]) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __missing__(self, code: int) -> str:
        if len(self) > MAX_CHARACTERS:
            self.clear()
        found = self[code] = self._stand_in(chr(code))
        return found


def printable_character(character: str) -> str:
    """The character, or a printable one instead of it."""
    if character.isprintable() or character in _JOINERS:
        return character
    if category(character) == "Zs" or character == "\t":
        return " "
    return "\N{REPLACEMENT CHARACTER}"


_PRINTABLE = CharacterTable(printable_character)


def printable(text: str) -> str:
    """`text` with its line breaks, but without other control characters."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line if line.isprintable() else line.translate(_PRINTABLE) for line in lines)
