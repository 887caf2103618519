"""`imqtt send`, `recall`, `tail` and `history`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.connection import ConnectionOptions, resolve
from imqtt.cli.formatting import conversation_with, local, words_of
from imqtt.cli.options import with_options
from imqtt.cli.output import Json, complain, print_json, print_line
from imqtt.errors import ImqttError, SetupError
from imqtt.fields import MAX_SEQ
from imqtt.model import Event

To = Annotated[
    str,
    typer.Argument(
        metavar="TO",
        help="A user, or a conversation such as `d:alice:bob`. Your own name stands for your notes.",
        autocompletion=completion.peers,
    ),
]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0.1, help="Seconds to wait at most.")]


@with_options
def send(
    to: To,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="The message. Default: the content of stdin.")
    ] = None,
    *,
    file: Annotated[Path | None, typer.Option("--file", help="Send a file's content; `-` is stdin.")] = None,
    content_type: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="The content's media type. Default: plain text. `application/json` sends the JSON value, any"
            " other type sends bytes.",
        ),
    ] = "",
    lines: Annotated[bool, typer.Option("--lines", help="Send each line of stdin as a message.")] = False,
    message_id: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="The message's client_msg_id. A message that is sent again with the same id is stored once.",
        ),
    ] = "",
    wait: Wait = 30.0,
    as_json: Json = False,
    options: ConnectionOptions,
) -> None:
    """Send a message, and return when it is stored.

    A stored message cannot get lost. Exit status 1: the message was refused, or it is unknown whether it is
    stored. With `--lines`, each message is stored before the next is sent, blank lines are skipped, and the
    command ends at the first message that cannot be stored.

    A message that is not answered before Ctrl-C or the end of `--wait` stays in the device's outbox. The next
    command of the same device sends it; `imqtt outbox discard` removes it.
    """
    from imqtt.cli import outgoing, signals
    from imqtt.cli.stdin import lines_of_stdin

    if lines and (text or file or message_id):
        raise typer.BadParameter("--lines reads messages from stdin: no TEXT, --file or --message-id with it")
    if text and file:
        raise typer.BadParameter("TEXT or --file, not both")
    access = resolve(options)
    conversation = conversation_with(access.device.user, to)
    first = None if lines else outgoing.content_of(outgoing.body_of(text, file), content_type)

    async def main() -> None:
        begun = time.monotonic()
        async with outgoing.connected(access, options, conversation, wait, as_json=as_json) as device:
            if first is not None:
                await device.send(first, begun, message_id)
                return
            number = 0
            async for line in lines_of_stdin():
                number += 1
                body = line.rstrip(b"\r\n")
                if not body.strip():
                    continue
                try:
                    await device.send(outgoing.content_of(body, content_type), time.monotonic())
                except ImqttError as error:
                    error.reason = f"line {number}: {error.reason}"
                    raise

    if signalled := signals.run(main):
        raise typer.Exit(128 + signalled)


@with_options
def recall(
    to: To,
    seq: Annotated[
        int,
        typer.Argument(
            metavar="SEQ", min=1, max=MAX_SEQ - 1, help="The message's seq, as `imqtt history` shows it."
        ),
    ],
    *,
    wait: Wait = 30.0,
    as_json: Json = False,
    options: ConnectionOptions,
) -> None:
    """Take back a message of yours, and return when that is stored.

    All devices then show the message as recalled, without its content. A recall that is not answered before
    Ctrl-C or the end of `--wait` stays in the device's outbox, as in `imqtt send`.
    """
    from imqtt.cli import outgoing, signals

    access = resolve(options)
    conversation = conversation_with(access.device.user, to)

    async def main() -> None:
        begun = time.monotonic()
        async with outgoing.connected(access, options, conversation, wait, as_json=as_json) as device:
            await device.recall(seq, begun)

    if signalled := signals.run(main):
        raise typer.Exit(128 + signalled)


@with_options
def tail(
    to: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TO",
            help="Users or conversations. Default: all of yours.",
            autocompletion=completion.peers,
        ),
    ] = None,
    *,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="End after this many messages; 0: never.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the last `tail --resume` of this device ended.")
    ] = False,
    read: Annotated[bool, typer.Option("--read", help="Mark the messages as read.")] = False,
    as_json: Json = False,
    options: ConnectionOptions,
) -> None:
    """Print messages as they arrive, each conversation in order, until Ctrl-C.

    Changes of the connection are reported on stderr. With `--json`, each line is an event in its wire format.
    """
    from imqtt.cli import signals
    from imqtt.cli.client import open_client

    access = resolve(options)
    if resume and access.store is None:
        raise SetupError("--resume needs a file to remember its position: --device-store FILE")
    wanted = {conversation_with(access.device.user, name) for name in to or ()}

    async def main() -> None:
        left = count
        async with open_client(access, wanted, wait=10.0, patient=True) as client:
            events = client.events("tail" if resume else None)
            async for event in events:
                if wanted and event.conversation not in wanted:
                    continue
                _print_event(event, as_json=as_json)
                if read:
                    await client.mark_read(event.conversation, event.seq)
                left -= 1
                if left == 0:
                    await events.finish()
                    return

    signals.run(main)


@with_options
def history(
    to: To,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The number of messages, at most.")] = 50,
    before: Annotated[
        int,
        typer.Option(metavar="SEQ", min=0, max=MAX_SEQ, help="Only messages before this seq. 0: the newest."),
    ] = 0,
    wait: Wait = 10.0,
    as_json: Json = False,
    options: ConnectionOptions,
) -> None:
    """Print a conversation's messages, oldest first.

    With `--json`, each line is an event in its wire format. The `content` of a recalled message is empty.
    """
    from imqtt.cli import signals
    from imqtt.cli.client import fetch, open_client
    from imqtt.client import Phase

    access = resolve(options)
    conversation = conversation_with(access.device.user, to)

    async def main() -> None:
        begun = time.monotonic()
        async with open_client(access, {conversation}, wait=min(wait, 10.0)) as client:
            events = await fetch(client, conversation, before or None, limit, wait=wait, begun=begun)
            if events and (client.state.silent or client.state.phase is not Phase.ESTABLISHED):
                complain(f"no answer from the server: {access.device} has these messages; there may be more")
        for event in events:
            _print_event(event, as_json=as_json)
        if not events:
            complain(f"nothing in {conversation} yet")

    if signalled := signals.run(main):
        raise typer.Exit(128 + signalled)


def _print_event(event: Event, *, as_json: bool) -> None:
    if as_json:
        print_json(event)
        return
    head = f"{local(event.time):%Y-%m-%d %H:%M:%S}  {event.conversation} {event.seq}  {event.sender}: "
    print_line(head + words_of(event).replace("\n", "\n" + " " * len(head)))
