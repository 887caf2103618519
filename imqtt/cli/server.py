"""`imqtt up` and `imqtt serve`: the server with or without its own broker."""

import logging
import os
import shlex
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.addresses import host_port
from imqtt.cli.connection import reachable
from imqtt.cli.data import DEFAULT, Data, DataDirectory, data_option
from imqtt.cli.output import Json, complain, print_json, print_line, print_result
from imqtt.cli.settings import ignored_settings, server_config, server_flags
from imqtt.config import SETTINGS
from imqtt.redaction import redacted

if TYPE_CHECKING:
    from imqtt.mosquitto.broker import Mosquitto

MQTT_PORT, WEBSOCKET_PORT = 1883, 8083  # for a new data directory, if they are free

_PREFIXES = {"broker", "store", "mongo", "state", "workers", "worker"}
SET_BY_UP = [one.name for one in SETTINGS if one.name.split("_")[0] in _PREFIXES]

_port = partial(typer.Option, min=0, max=65_535)
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also log informational messages.")]


@server_flags()
def serve(*, as_json: Json = False, quiet: Quiet = False, **flags: str | None) -> None:
    """Run the server on a broker that is already running.

    With MongoDB and Redis, any number of processes on any number of machines share the work. `--workers`
    starts several on this machine, and `imqtt workers` shows which one owns which partitions.

    The broker needs the configuration in `deploy/mosquitto`. Each setting can be given as a flag, as an
    environment variable or in the file that `--config` names. When all partitions are served, `imqtt is
    ready` appears on stdout. On SIGTERM or Ctrl-C, the server finishes the commands that it has begun and
    ends.
    """
    from imqtt.cli import services, signals, supervisor
    from imqtt.mosquitto import file_limits
    from imqtt.serving import check_tls

    config = server_config(flags)
    check_tls(config)  # each worker checks it, too; here the error appears once
    file_limits.raise_file_limit()
    lifeline = supervisor.LIFELINE in os.environ
    _log_to_stderr(logging.WARNING if quiet else logging.INFO, many=lifeline or config.workers > 1)
    store = redacted(config.store)

    def say_ready(partitions: int) -> None:
        broker = host_port(config.broker_host, config.broker_port)
        print_result(
            {"ready": True, "partitions": partitions, "broker": broker, "store": store},
            f"imqtt is ready: {partitions} partitions on {broker}, store {store}",
            as_json=as_json,
        )

    if config.workers > 1:
        signals.run(lambda: supervisor.run(config, say_ready))
    else:
        signals.run(lambda: services.serve(config, say_ready), with_stdin=lifeline)


@server_flags(without=SET_BY_UP)
def up(
    *,
    data: Data = DEFAULT,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. 0.0.0.0 lets other machines connect, without encryption."),
    ] = "127.0.0.1",
    port: Annotated[
        int, _port(help="Port for devices. 0: the last one used, else 1883, else any free one.")
    ] = 0,
    websocket_port: Annotated[
        int, _port(help="Port for browsers. 0: the last one used, else 8083, else any free one.")
    ] = 0,
    internal_port: Annotated[
        int, _port(help="Port for the server, on loopback. 0: the last one used, else any.")
    ] = 0,
    broker_user: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The user that runs Mosquitto if root runs this. Default: `mosquitto`, else `nobody`.",
        ),
    ] = "",
    as_json: Json = False,
    verbose: Verbose = False,
    **flags: str | None,
) -> None:
    """Run a broker and the server on one data directory.

    Mosquitto has to be installed. The command starts its own Mosquitto, prints the addresses, and ends both
    on Ctrl-C. It restarts the broker if the broker ends. Only you can enter the data directory. If
    root runs this, the server runs as root and Mosquitto as another user.
    """
    from imqtt.cli import services, signals
    from imqtt.mosquitto.broker import Mosquitto

    started = time.monotonic()
    directory = DataDirectory(data)
    broker = Mosquitto(
        directory.path,
        host=host,
        port=port,
        websocket_port=websocket_port,
        internal_port=internal_port,
        preferred=(MQTT_PORT, WEBSOCKET_PORT),
        user=broker_user,
    )
    server_config(flags)  # raises before anything is started
    if ignored := ignored_settings(flags, SET_BY_UP):
        complain(f"ignored by `imqtt up`, which sets them itself: {', '.join(ignored)}")
    _log_to_stderr(logging.INFO if verbose else logging.WARNING)

    def say_ready(partitions: int) -> None:
        _say_ready(broker, directory, partitions, time.monotonic() - started, as_json=as_json)

    signals.run(lambda: services.up(broker, directory, flags, say_ready))
    if not as_json:
        print_line("imqtt has ended; its data is kept.")


def _say_ready(
    broker: "Mosquitto", directory: DataDirectory, partitions: int, seconds: float, *, as_json: bool
) -> None:
    # Users paste these into other terminals, and the documentation uses their names.
    host = reachable(broker.host)
    environment = {
        "IMQTT_DATA": str(directory.path),
        "IMQTT_BROKER": host_port(host, broker.port),
        "MQTT_HOST": host,
        "MQTT_PORT": str(broker.port),
    }
    if as_json:
        print_json(
            {
                "ready": True,
                "host": broker.host,
                "port": broker.port,
                "websocket_port": broker.websocket_port,
                "internal_port": broker.internal_port,
                "ports_in_use": {str(port): by for port, by in broker.displaced.items()},
                "environment": environment,
                "data": str(directory.path),
                "partitions": partitions,
                "broker_pid": broker.pid,
                "seconds": round(seconds, 3),
            }
        )
        return
    where = data_option(directory.path)
    variables = "\n".join(f"  export {name}={shlex.quote(value)}" for name, value in environment.items())
    print_line(
        f"imqtt is ready after {seconds:.1f} s. Ctrl-C ends it.\n\n"
        f"  devices    {host_port(broker.host, broker.port)}\n"
        f"  browsers   ws://{host_port(broker.host, broker.websocket_port)}\n"
        f"  data       {directory.path}\n"
        f"  broker log {broker.log}\n\n"
        f"For other terminals:\n\n"
        f"{variables}\n\n"
        f"  Give devices their credentials:  imqtt device add alice@phone bob@phone --save{where}\n"
        f"  Talk:                            imqtt chat bob --user alice{where}\n"
    )


def _log_to_stderr(level: int, *, many: bool = False) -> None:
    process = "[%(process)d] " if many else ""
    logging.basicConfig(
        level=level, format=f"%(asctime)s {process}%(levelname)s %(name)s: %(message)s", force=True
    )
