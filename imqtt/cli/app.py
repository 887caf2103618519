"""All commands, and their errors: one line on stderr, and an exit status."""

import io
import os
import sys
from collections.abc import Sequence

import typer

from imqtt.cli import chat, device, messages, outbox, server, store, workers
from imqtt.cli.output import OutputError, complain
from imqtt.errors import ImqttError

app = typer.Typer(
    name="imqtt",
    help="Instant messaging on an MQTT broker: ordered, stored, delivered once.\n\n"
    "Begin with `imqtt up` in one terminal; in another, `imqtt device add alice@phone bob@phone --save` and"
    " `imqtt chat bob --user alice`.",
    epilog="Results go to stdout, everything else to stderr. With `--json`, each result is a JSON object on a"
    " line of its own. Exit status: 0: success; 1: refused or failed; 2: wrong usage; 128 + N: ended by"
    " signal N. `up`, `serve` and `tail` run until a signal ends them, with status 0.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RUNNING, TALKING = "Running it", "Talking"
app.command("up", rich_help_panel=RUNNING)(server.up)
app.command("serve", rich_help_panel=RUNNING)(server.serve)
app.command("workers", rich_help_panel=RUNNING)(workers.workers)
app.add_typer(device.app, name="device", rich_help_panel=RUNNING)
app.add_typer(store.app, name="store", rich_help_panel=RUNNING)
app.command("chat", rich_help_panel=TALKING)(chat.chat)
app.command("send", rich_help_panel=TALKING)(messages.send)
app.command("recall", rich_help_panel=TALKING)(messages.recall)
app.command("tail", rich_help_panel=TALKING)(messages.tail)
app.command("history", rich_help_panel=TALKING)(messages.history)
app.add_typer(outbox.app, name="outbox", rich_help_panel=TALKING)


def _version(wanted: bool) -> None:
    if wanted:
        from imqtt.distribution import installed_version

        print(f"imqtt {installed_version()}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_version
    ),
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Runs one command. Returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # For characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(list(arguments), prog_name="imqtt", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        if message := error.format_message():
            complain(message)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:  # noqa: BLE001 - reported in one line
        return _failed(error)
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    """Reports an error. Returns the exit status."""
    if isinstance(error, BrokenPipeError):
        _abandon_stdout()  # the reader has closed the pipe
    elif isinstance(error, ImqttError):
        complain(error.reason)
        if isinstance(error, OutputError):
            _abandon_stdout()
    elif os.environ.get("IMQTT_DEBUG"):
        raise error
    else:
        complain(f"unexpected {type(error).__name__}: {error} (IMQTT_DEBUG=1 shows the traceback)")
    return 1


def _abandon_stdout() -> None:
    """Otherwise Python would fail to flush it at exit, print another error and return status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
