"""`imqtt outbox`: messages and other commands of a device that are not stored yet, or were refused."""

import contextlib
from dataclasses import asdict
from typing import Annotated

import typer

from imqtt.cli.connection import StoreOptions, resolve_store
from imqtt.cli.formatting import local, words_of_command
from imqtt.cli.options import with_options
from imqtt.cli.output import Json, complain, print_json, print_result, print_table
from imqtt.core.outbox import Entry
from imqtt.errors import DeviceStoreInUse, SetupError

app = typer.Typer(
    help="Show and discard messages and recalls of this device that are not stored yet.\n\n"
    "They stay in the device's outbox until the server has stored them. Every command that connects as"
    " the device sends those that wait there; a short one, such as `imqtt history`, may end before all are"
    " stored. The commands here do not connect, and send nothing. Without a command, `imqtt outbox` lists"
    " them.",
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

    from imqtt.protocol import Format, encode_command

    entries = asyncio.run(_entries(options))
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
    discarded = asyncio.run(_entries(options, messages or None, discard=True))
    for entry in discarded:
        print_result(
            {"client_msg_id": entry.client_msg_id, "conversation": entry.conversation, "discarded": True},
            f"discarded: {entry.conversation} {entry.client_msg_id}",
            as_json=as_json,
        )
    if not discarded:
        complain("the outbox is empty")


async def _entries(
    options: StoreOptions, messages: list[str] | None = None, *, discard: bool = False
) -> list[Entry]:
    """Returns the named entries or all, and may discard them. Raises `SetupError` if one is missing."""
    from imqtt.client.store import LocalStore

    device, path = resolve_store(options)
    entries: list[Entry] = []
    async with contextlib.AsyncExitStack() as stack:
        if path.exists():
            try:
                store = await LocalStore.open(path, device)
            except DeviceStoreInUse as error:  # another device has another outbox
                raise DeviceStoreInUse(f"{error.reason}; end it first") from error
            stack.push_async_callback(store.close)
            entries += (await store.entries()).values()
        known = {entry.client_msg_id for entry in entries}
        if missing := [message for message in messages or () if message not in known]:
            raise SetupError(f"not in the outbox of {device}: {', '.join(missing)}")
        chosen = [entry for entry in entries if messages is None or entry.client_msg_id in messages]
        for entry in chosen if discard else ():
            await store.discard(entry.key)
        return chosen


def _shortened(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
