"""Text from other people, made safe to print: it moves no cursor and changes no colour."""

from collections.abc import Callable
from unicodedata import category

MAX_CHARACTERS = 10_000  # that a table keeps
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # emoji and Persian need them


class CharacterTable(dict[int, str]):
    """What stands for each character, for `str.translate`. Looked up once for each, and kept for many."""

    def __init__(self, stand_in: Callable[[str], str]) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __missing__(self, code: int) -> str:
        if len(self) > MAX_CHARACTERS:
            self.clear()
        found = self[code] = self._stand_in(chr(code))
        return found


def printable_character(character: str) -> str:
    """The character, or one that can be shown in its place."""
    if character.isprintable() or character in _JOINERS:
        return character
    if category(character) == "Zs" or character == "\t":
        return " "
    return "\N{REPLACEMENT CHARACTER}"


_PRINTABLE = CharacterTable(printable_character)


def printable(text: str) -> str:
    """`text` on its lines, without the characters that a terminal would obey."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line if line.isprintable() else line.translate(_PRINTABLE) for line in lines)
