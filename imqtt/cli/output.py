"""What commands print: tables for people, JSON for programs."""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from getpass import getpass
from typing import Annotated

import msgspec
import typer

from imqtt.cli.wording import printable
from imqtt.errors import SetupError
from imqtt.model import to_json_type

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(value: object) -> None:
    """One line of JSON. Values of `imqtt.model` have the shape that they have on the wire."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=to_json_type).decode() + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """One line for people, at once, though stdout be a file."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """One line on stderr."""
    print("imqtt:", " ".join(message.split()), file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as it must be; in a pipe, too, so that `grep` finds whole lines."""
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
        table.expand = False
    console.print(table)


def read_secret(path: str) -> str:
    """The first line of a file that holds a password; `-` is stdin. A terminal does not show what is typed.

    Raises `SetupError`.
    """
    try:
        with contextlib.nullcontext(sys.stdin) if path == "-" else open(path) as file:  # noqa: PTH123
            if file.isatty():
                return getpass("Password: ")
            return file.readline().rstrip("\r\n")
    except EOFError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read a password from {path}: {error}") from error
