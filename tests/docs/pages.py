"""The code blocks of a page, and the commands in them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_TYPED = {"text", "js", "toml"}  # the languages of blocks without commands
COMMANDS = {"sh", ""}  # "" is a block without a fence: indented by four columns

_FENCE = re.compile(r"( *)```(\w*)$")
_INDENTED = re.compile(r" {4}.*\S")
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list["Block"]:
        """The commands of the block, each with all its lines."""
        found: list[Block] = []
        lines = self.text.splitlines()
        number = 0
        while number < len(lines):
            first = number
            while lines[number].endswith("\\"):
                number += 1
            if here := _HERE.search(lines[number]):
                while lines[number] != here[2]:
                    number += 1
            text = "\n".join(lines[first : number + 1])
            if text.strip():
                found.append(Block(self.page, self.line + first, self.language, text))
            number += 1
        return found


def blocks(text: str, page: str) -> list[Block]:
    """Every code block of a page, in order. Raises `ValueError` for a fence without a language."""
    found = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        first = number
        if fence := _FENCE.match(lines[number]):
            number += 1
            while lines[number].strip() != "```":
                number += 1
            if not fence[2]:
                raise ValueError(
                    f"{page}:{first + 1}: a fence needs a language: sh, python, toml, js or text"
                )
            found.append(_block(page, first + 2, fence[2], lines[first + 1 : number]))
        elif _INDENTED.match(lines[number]) and not (lines[number - 1].strip() if number else ""):
            while number + 1 < len(lines) and _INDENTED.match(lines[number + 1]):
                number += 1
            found.append(_block(page, first + 1, "", lines[first : number + 1]))
        number += 1
    return found


def _block(page: str, line: int, language: str, lines: list[str]) -> Block:
    return Block(page, line, language, textwrap.dedent("\n".join(lines) + "\n"))


def of_page(path: Path) -> list[Block]:
    """Every code block of a page, in order."""
    return blocks(path.read_text(), path.name if path.parent == ROOT else f"{path.parent.name}/{path.name}")


def mentions(text: str) -> list[str]:
    """The code spans of a page's prose, each on one line."""
    prose = re.sub(r"^ *```.*?^ *```$|^ {4}[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
