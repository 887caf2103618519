"""`imqtt chat`: a conversation in the terminal."""

import sys
from typing import Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.connection import ConnectionOptions, resolve
from imqtt.cli.options import with_options
from imqtt.errors import SetupError


@with_options
def chat(
    to: Annotated[
        str,
        typer.Argument(
            metavar="[TO]",
            help="A user or a conversation. Default: the conversation with the newest message.",
            autocompletion=completion.peers,
        ),
    ] = "",
    *,
    options: ConnectionOptions,
) -> None:
    """Chat in the terminal.

    A mark after each of your messages shows its state: `·` waiting to be stored, `✓` stored, `✓✓` delivered
    to a device of the other user, coloured `✓✓` read. Messages written without a connection are sent once
    there is one.

    Enter sends, Alt-Enter begins a new line, PageUp shows older messages. `/to USER` changes the
    conversation, `/recall` takes back your newest message, `/discard` removes one that is not stored yet,
    `/help` or F1 shows all commands and keys, `/quit` or Ctrl-C leaves.
    """
    access = resolve(options)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise SetupError("a chat needs a terminal; `imqtt send` and `imqtt tail` do not")

    from imqtt.cli import signals
    from imqtt.cli.chat_controller import converse

    if signalled := signals.run(lambda: converse(access, to)):
        raise typer.Exit(128 + signalled)
