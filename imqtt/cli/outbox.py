"""`imqtt outbox`: messages and other commands of a device that are not stored yet, or were refused."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli.connection import StoreOptions, resolve_store
from imqtt.cli.options import with_options
from imqtt.cli.output import Json, complain, print_json, print_line, print_table
from imqtt.errors import SetupError

if TYPE_CHECKING:
    from imqtt.cli.connection import LocalDevice
    from imqtt.client import Entry
    from imqtt.client.store import LocalStore

app = typer.Typer(
    help="Show and discard messages of this device that are not stored yet.\n\n"
    "A message stays in the device's outbox until the server has stored it. Every command that connects as"
    " the device sends the messages that wait there. The commands here do not connect, and send nothing."
    " Without a command, `imqtt outbox` lists them.",
    invoke_without_command=True,
)


@app.callback()
@with_options
def outbox(context: typer.Context, *, as_json: Json = False, options: StoreOptions) -> None:
    if context.invoked_subcommand is None:
        list_(as_json=as_json, **asdict(options))
        return
    sources = (context.get_parameter_source(name) for name in context.params)
    if any(source is not None and source.name == "COMMANDLINE" for source in sources):
        raise typer.BadParameter(f"options come after `{context.invoked_subcommand}`")


@app.command("list")
@with_options
def list_(*, as_json: Json = False, options: StoreOptions) -> None:
    """List the messages that wait to be sent or were refused, in the order in which they were written.

    A refused message is not sent again. It stays in the outbox until you discard it.
    """
    import asyncio

    import msgspec

    from imqtt.cli.formatting import local, words_of_command
    from imqtt.protocol import Format, encode_command

    entries = asyncio.run(_entries(resolve_store(options)))
    if as_json:
        for entry in entries:
            command = msgspec.json.decode(encode_command(entry.command, Format.JSON))
            refusal = {"refused": entry.refused, "reason": entry.reason} if entry.refused else {}
            print_json({**command, **refusal})
        return
    if not entries:
        complain("the outbox is empty")
        return
    print_table(
        ("message", "conversation", "written", "state", "text"),
        (
            (
                entry.client_msg_id,
                entry.conversation,
                f"{local(entry.client_time):%Y-%m-%d %H:%M:%S}",
                f"refused: {entry.reason}" if entry.refused else "waiting",
                _shortened(words_of_command(entry.command)),
            )
            for entry in entries
        ),
    )


@app.command()
@with_options
def discard(
    messages: Annotated[
        list[str] | None,
        typer.Argument(metavar="MESSAGE", help="Ids, as `imqtt outbox list` shows them."),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Discard all of them.")] = False,
    as_json: Json = False,
    options: StoreOptions,
) -> None:
    """Take messages out of the outbox, so that they are not sent again.

    A message that was already sent may be stored although its answer is missing.
    """
    import asyncio

    if bool(messages) == everything:
        raise typer.BadParameter("give message ids, or --all")
    where = resolve_store(options)
    discarded = asyncio.run(_discard(where, messages or None))
    for entry in discarded:
        if as_json:
            print_json(
                {"client_msg_id": entry.client_msg_id, "conversation": entry.conversation, "discarded": True}
            )
        else:
            print_line(f"discarded: {entry.conversation} {entry.client_msg_id}")
    if not discarded:
        complain("the outbox is empty")


async def _entries(where: "LocalDevice") -> "list[Entry]":
    async with _opened(where) as store:
        return [] if store is None else list((await store.entries()).values())


async def _discard(where: "LocalDevice", messages: list[str] | None) -> "list[Entry]":
    """Discards `messages`, or all if None, and returns them. Raises `SetupError` if one is missing."""
    async with _opened(where) as store:
        entries = [] if store is None else list((await store.entries()).values())
        known = {entry.client_msg_id for entry in entries}
        if missing := [message for message in messages or () if message not in known]:
            raise SetupError(f"not in the outbox of {where.device}: {', '.join(missing)}")
        chosen = [entry for entry in entries if messages is None or entry.client_msg_id in messages]
        for entry in chosen:
            assert store is not None  # noqa: S101 - the entry came from it
            await store.discard(entry.key)
        return chosen


@contextlib.asynccontextmanager
async def _opened(where: "LocalDevice") -> "AsyncIterator[LocalStore | None]":
    """Yields the device's store; None if it does not exist yet."""
    from imqtt.cli.client import naming_the_holder
    from imqtt.client.store import LocalStore

    if not where.store.exists():
        yield None
        return
    with naming_the_holder(where.device, where.data):
        store = await LocalStore.open(where.store, where.device)
    try:
        yield store
    finally:
        await store.close()


def _shortened(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
