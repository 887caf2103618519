"""`imqtt store`: copying a store into another."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli.output import Json, complain, print_json, print_line, read_secret
from imqtt.errors import SetupError, StoreInUse, Unavailable
from imqtt.redaction import redacted

if TYPE_CHECKING:
    from imqtt.stores.copy.comparison import Copied
    from imqtt.stores.copy.source import Progress, Source

LINE_SECONDS = 5.0  # between two lines of progress, without a terminal

app = typer.Typer(
    help="Copy one store into another, and make backups.\n\n"
    "The address of a store is that of `imqtt serve --store`: `sqlite:///path` or `mongodb://host/database`.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass  # otherwise Typer omits the name of a single command


@app.command()
def copy(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The store to copy. Nothing is written to it.")
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A store that does not exist yet, or an earlier copy of SOURCE to update."
        ),
    ],
    *,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Read SOURCE while the server uses it: a backup of about the present state."
        ),
    ] = False,
    source_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File whose first line is SOURCE's password.")
    ] = None,
    target_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File whose first line is TARGET's password.")
    ] = None,
    driver: Annotated[str, typer.Option(help="The MongoDB driver: pymongo or motor.")] = "pymongo",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the progress.")] = False,
    as_json: Json = False,
) -> None:
    """Copy a store, and verify the copy.

    Stop the server first, and start it on TARGET afterwards. Devices notice nothing but the pause. If the
    command is interrupted, run it again: it continues where it stopped. At the end, TARGET is compared with
    SOURCE conversation by conversation; servers refuse TARGET until then. Exit status 1: TARGET is not a
    complete copy.
    """
    from imqtt.cli import signals

    passwords = [
        "" if file is None else read_secret(str(file))
        for file in (source_password_file, target_password_file)
    ]
    if source == target:
        raise SetupError("SOURCE and TARGET are the same store")
    started = datetime.now().astimezone()

    async def main() -> None:
        copied = await _copy(source, target, passwords, driver, live=live, quiet=quiet, as_json=as_json)
        if as_json:
            print_json({"done": True, "live": live, **copied._asdict()})
            return
        print_line(
            f"{redacted(target)} holds what {redacted(source)} does: {copied.conversations:,} conversations"
            f" with {copied.events:,} events ({copied.added:,} of them new), {copied.members:,} members,"
            f" {copied.marks:,} marks and {copied.devices:,} devices; digest {copied.digest}."
        )
        if live:
            print_line(f"It is the state of {started:%H:%M:%S}; later changes may be missing.")

    if signalled := signals.run(main):
        raise typer.Exit(128 + signalled)


async def _copy(
    source_url: str, target_url: str, passwords: list[str], driver: str,
    *, live: bool, quiet: bool, as_json: bool,
) -> "Copied":  # fmt: skip
    import asyncio

    from imqtt.stores import open_store
    from imqtt.stores.base import HOW_TO_FINISH, OutcomeUnknown
    from imqtt.stores.copy.comparison import CopyDiffers
    from imqtt.stores.copy.copier import copy

    source = await _open_source(source_url, passwords[0], driver, live=live)
    try:
        target = await open_store(
            target_url, source.identity, password=passwords[1], driver=driver, copying=True
        )
        try:
            if quiet:
                return await copy(source, target, live=live)
            has_bar = sys.stderr.isatty() and not as_json
            with _bar() if has_bar else nullcontext(_lines()) as tell:
                return await copy(source, target, live=live, tell=tell)
        except CopyDiffers as error:
            if as_json:
                where = {"conversation": error.conversation, "seq": error.seq}
                print_json({"done": False, "difference": error.reason, **where})
            raise SetupError(
                f"{error.reason}; {redacted(target_url)} is marked as unfinished, and no server opens it:"
                " remove it, and copy again"
            ) from error
        except (OutcomeUnknown, Unavailable) as error:
            raise SetupError(f"{error.reason}; {HOW_TO_FINISH}") from error
        except asyncio.CancelledError:
            complain(f"{redacted(target_url)} is not finished; {HOW_TO_FINISH}")
            raise
        finally:
            await target.close()
    finally:
        await source.close()


async def _open_source(url: str, password: str, driver: str, *, live: bool) -> "Source":
    """Opens an existing store, exclusively unless `live`."""
    from imqtt.stores import attach_store, open_store

    reader = await attach_store(url, password=password, driver=driver)  # does not create a store
    if live and reader.identity.cluster:
        return reader
    await reader.close()
    if live:
        raise SetupError(f"an older imqtt wrote {redacted(url)}; start the present server on it first")
    try:
        return await open_store(url, reader.identity, password=password, driver=driver)
    except StoreInUse as error:
        raise SetupError(f"{error.reason}; or use --live for a backup while it runs") from error


def _lines() -> Callable[["Progress"], None]:
    """Prints a line at the start of each phase, and every few seconds."""
    phase, due = "", 0.0

    def tell(progress: "Progress") -> None:
        nonlocal phase, due
        now = time.monotonic()
        if progress.phase == phase and now < due:
            return
        phase, due = progress.phase, now + LINE_SECONDS
        all_events = f" of {progress.all_events:,}" if progress.all_events else ""
        all_conversations = f" of {progress.all_conversations:,}" if progress.all_conversations else ""
        print(
            f"{progress.phase}: {progress.conversations:,}{all_conversations} conversations,"
            f" {progress.events:,}{all_events} events",
            file=sys.stderr,
            flush=True,
        )

    return tell


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    columns = (
        rich.TextColumn("{task.description:>9}"),
        rich.BarColumn(bar_width=None, table_column=Column(ratio=1)),  # the rest of the line
        rich.TextColumn(
            "{task.fields[conversations]:,} conversations, {task.fields[events]} events{task.fields[rate]}"
        ),
        rich.TimeRemainingColumn(compact=True),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def tell(progress: "Progress") -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(
                    progress.phase, total=None, conversations=0, events="", rate=""
                )
            task = bar.tasks[tasks[progress.phase]]
            all_events = f"/{progress.all_events:,}" if progress.all_events else ""
            bar.update(
                task.id,
                completed=progress.events,
                total=progress.all_events or None,
                conversations=progress.conversations,
                events=f"{progress.events:,}{all_events}",
                rate=f", {task.speed:,.0f}/s" if task.speed else "",
            )

        yield tell
