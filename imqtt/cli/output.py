"""Output of the commands: tables for people, JSON for programs."""

import codecs
import contextlib
import sys
from collections.abc import Iterable, Sequence
from getpass import getpass
from typing import Annotated

import msgspec
import typer

from imqtt.errors import ImqttError, SetupError
from imqtt.model import to_json_type
from imqtt.printable import printable

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def print_json(value: object) -> None:
    """Prints a JSON object in one line. Values of `imqtt.model` have their wire format."""
    text = msgspec.json.encode(value, enc_hook=to_json_type).decode()
    if not text.isascii() and codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8":
        text = "".join(character if character.isascii() else _escaped(character) for character in text)
    elif not text.isprintable():  # JSON escapes only ASCII control characters; terminals obey others, too
        text = "".join(character if character.isprintable() else _escaped(character) for character in text)
    _write(text + "\n")


def print_line(text: str) -> None:
    """Prints a result for people and flushes stdout. Removes control characters except line breaks."""
    _write(printable(text) + "\n")


def print_result(value: object, text: str, *, as_json: bool) -> None:
    """Prints a result for programs or for people."""
    if as_json:
        print_json(value)
    else:
        print_line(text)


def complain(message: str) -> None:
    """Prints one line on stderr, for everything that is not a result."""
    print("imqtt:", printable(" ".join(message.split())), file=sys.stderr)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error


def _escaped(character: str) -> str:
    """A character as JSON escapes it."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class OutputError(ImqttError):
    """Stdout cannot be written, for example because a disk is full."""

    code = "output"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table. In a pipe, its rows do not wrap, so that `grep` finds whole lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    console.print(table)


def read_secret(path: str) -> str:
    """The first line of a file, or of stdin for `-`. A terminal does not echo it. Raises `SetupError`."""
    try:
        with contextlib.nullcontext(sys.stdin) if path == "-" else open(path) as file:  # noqa: PTH123
            if file.isatty():
                return getpass("Password: ")
            return file.readline().rstrip("\r\n")
    except EOFError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or error
        raise SetupError(f"cannot read a password from {path}: {why}") from error
