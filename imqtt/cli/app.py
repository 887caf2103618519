"""The commands, and how what goes wrong with them is told: one line on stderr, and an exit status."""

import os
import sys
from collections.abc import Sequence

import typer

from imqtt.cli import chat, device, messages, server, store, workers
from imqtt.cli.output import complain
from imqtt.errors import ImqttError

app = typer.Typer(
    name="imqtt",
    help="Instant messaging on an MQTT broker: ordered, stored, delivered once.\n\n"
    "Begin with `imqtt up` in one terminal; in another, `imqtt device add alice@phone --save` and"
    " `imqtt chat bob --user alice`.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 used wrongly.",
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
app.command("tail", rich_help_panel=TALKING)(messages.tail)
app.command("history", rich_help_panel=TALKING)(messages.history)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"imqtt {version('imqtt')}")
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
    try:
        status = app(list(arguments), prog_name="imqtt", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        if message := error.format_message():
            complain(message)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except ImqttError as error:
        complain(error.reason)
        return 1
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("IMQTT_DEBUG"):
            raise
        complain(f"unexpected {type(error).__name__}: {error} (IMQTT_DEBUG=1 shows where)")
        return 1
    return status if isinstance(status, int) else 0
