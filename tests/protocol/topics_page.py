"""topics.md as data: its examples, tables and links.

A fenced block is an example according to the text after its language:

    ```json up alice@phone 12     published by alice@phone to its up/12
    ```json down alice@phone      the next frames that alice@phone receives
    ```json will bob@phone 0      the last will with which bob@phone connects
    ```raw up alice@phone 0       published unchanged
    ```console                    `$ ` before each command, then the lines that they print
    ```textproto                  the previous example as protobuf in text form
    ```hex                        and as bytes
    <!-- bob@phone drops out -->  its connection breaks

`python -m tests.protocol.topics_page --write` writes the contents of the last two kinds of block.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from imqtt.protocol import Format, decode_frames, encode_command, encode_frame, join
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.json_format import decode_command

PAGE = Path(__file__).parents[2] / "topics.md"

_BLOCK = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_DROPS_OUT = re.compile(r"^<!-- (?P<device>\S+) drops out -->$", re.MULTILINE)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_TABLE = re.compile(r"(?:^\|.*\|\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """One block. `what` is `up`, `down`, `will`, `console` or `drops out`."""

    line: int
    what: str
    device: str = ""
    partition: int = 0
    text: str = ""
    raw: bool = False
    protobuf_text: str | None = None
    protobuf_hex: str | None = None

    @property
    def payload(self) -> bytes:
        """The published or received text, without the newline of its last line."""
        return self.text.rstrip("\n").encode()

    @property
    def place(self) -> str:
        return f"topics.md:{self.line}"


@dataclass(frozen=True)
class Table:
    """A table and its headings, outermost first. A row maps column to cell."""

    headings: tuple[str, ...]
    rows: list[dict[str, str]]


def examples(page: str) -> list[Example]:
    """The examples in order. Raises `ValueError` for an unknown kind of example."""
    found: list[Example] = []
    for match in sorted([*_BLOCK.finditer(page), *_DROPS_OUT.finditer(page)], key=re.Match.start):
        line = page.count("\n", 0, match.start()) + 1
        if match.re is _DROPS_OUT:
            found.append(Example(line, "drops out", match["device"]))
            continue
        language, *words = match["info"].split()
        text = match["text"]
        if language == "textproto" and not words and found:
            found[-1] = _with(found[-1], protobuf_text=text)
        elif language == "hex" and not words and found:
            found[-1] = _with(found[-1], protobuf_hex=text)
        elif language == "console" and not words:
            found.append(Example(line, "console", text=text))
        elif language == "json" and words[:1] in (["up"], ["will"]) and len(words) == 3:
            found.append(Example(line, words[0], words[1], int(words[2]), text))
        elif language == "raw" and words[:1] == ["up"] and len(words) == 3:
            found.append(Example(line, "up", words[1], int(words[2]), text, raw=True))
        elif language == "json" and words[:1] == ["down"] and len(words) == 2:
            found.append(Example(line, "down", words[1], text=text))
        else:
            raise ValueError(f"topics.md:{line}: unknown kind of example: {match['info']}")
    return found


def tables(page: str) -> Iterator[Table]:
    """Every table, in order."""
    for match in _TABLE.finditer(page):
        path: dict[int, str] = {}
        for heading in _HEADING.finditer(page, 0, match.start()):
            depth = len(heading[1])
            path = {above: name for above, name in path.items() if above < depth} | {depth: heading[2]}
        header, _, *body = (
            [cell.strip() for cell in line[1:-1].split("|")] for line in match[0].splitlines()
        )
        rows = [dict(zip(header, row, strict=True)) for row in body]
        yield Table(tuple(path.values()), rows)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    seen: dict[str, int] = {}
    found: set[str] = set()
    for heading in _HEADING.finditer(_BLOCK.sub("", page)):
        name = re.sub(r"[^\w\- ]", "", heading[2].lower()).replace(" ", "-")
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.add(f"{name}-{count}" if count else name)
    return found


def as_protobuf(example: Example) -> bytes:
    """The example's JSON as protobuf."""
    if example.what == "down":
        frames = [encode_frame(frame, Format.PROTOBUF) for frame in decode_frames(example.payload)]
        return join(frames, Format.PROTOBUF)
    return encode_command(decode_command(example.payload), Format.PROTOBUF)


def protobuf_message(example: Example) -> pb.Command | pb.Frames:
    """An empty message of the example's type."""
    return pb.Frames() if example.what == "down" else pb.Command()


def frames_of(payload: bytes) -> list[dict[str, object]]:
    """A packet's frames as JSON objects."""
    found: list[dict[str, object]] = json.loads(payload)["frames"]
    return found


def _with(example: Example, **changed: str) -> Example:
    return Example(**{**vars(example), **changed})


def _filled(page: str) -> str:
    current = {example.line: example for example in examples(page)}
    above = 0

    def fill(match: re.Match[str]) -> str:
        nonlocal above
        line = page.count("\n", 0, match.start()) + 1
        if match["info"] not in ("textproto", "hex"):
            above = line
            return match[0]
        payload = as_protobuf(current[above])
        if match["info"] == "hex":
            lines = [payload[start : start + 32].hex() for start in range(0, len(payload), 32)]
            return f"```hex\n{chr(10).join(lines)}\n```"
        message = protobuf_message(current[above])
        message.MergeFromString(payload)
        return f"```textproto\n{text_format.MessageToString(message, as_utf8=True)}```"

    return _BLOCK.sub(fill, page)


def main() -> None:
    page = PAGE.read_text()
    filled = _filled(page)
    if "--write" in sys.argv:
        PAGE.write_text(filled)
    elif filled != page:
        sys.exit("topics.md: the protobuf examples are outdated; run with --write")


if __name__ == "__main__":
    main()
