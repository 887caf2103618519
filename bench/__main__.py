"""`python -m bench`: direct messages between 20 pairs of devices, compared with a bare relay; and the codecs.

Prints tables and writes `bench/latest.json`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cluster, codec, report
from bench.processes import Failed, lines, running
from bench.traffic import devices
from imqtt.errors import SetupError
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from tests.given_mosquitto import use_given

LATEST = Path(__file__).parent / "latest.json"
PARTITIONS = 16
# As `--sweep` shows, throughput and latency grow with the window through larger batches: 10,200 messages per
# second at 15 ms (p50) with 4, 13,200 at 24 with 8, 17,200 at 75 with 32.
WINDOW = 8
SERVER_READY = "imqtt is ready"
RELAY_READY = "relay is ready"


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. Times are in seconds, the size in bytes of text."""

    seconds: float
    warmup: float
    relay_seconds: float
    lone: int
    codec_seconds: float
    kills: int
    window: int
    size: int
    directory: Path | None


async def main() -> None:
    arguments = _arguments()
    options = Options(
        seconds=1.5 if arguments.quick else arguments.seconds,
        warmup=0.5 if arguments.quick else 3.0,
        relay_seconds=1.5 if arguments.quick else 8.0,
        lone=40 if arguments.quick else 600,
        kills=2 if arguments.quick else 14,
        codec_seconds=0.02 if arguments.quick else 0.3,
        window=arguments.window,
        size=arguments.size,
        directory=arguments.directory,
    )
    found: dict[str, Any] = {}
    method = report.method(options.window, options.size, options.seconds)
    report.print_method(method)
    if arguments.memory:
        found["memory"] = await measure_memory(options, arguments.memory)
    elif arguments.sweep:
        found["windows"] = await sweep(options)
    elif arguments.cluster:
        found["cluster"] = await measure_cluster(options)
    else:
        found["direct"] = await measure_direct(options)
        found["cluster"] = await measure_cluster(options)
        rows = codec.measure(options.codec_seconds)
        report.print_codec(rows)
        found["codec"] = [row._asdict() for row in rows]
    if not arguments.quick:
        write(found | {"method": method})


def write(found: dict[str, Any]) -> None:
    """Merges the results with those of earlier runs."""
    try:
        latest = json.loads(LATEST.read_text())
    except (OSError, ValueError):
        latest = {}
    LATEST.write_text(json.dumps(latest | found, indent=2) + "\n")
    print(f"\nwritten to {os.path.relpath(LATEST)}")


# --- the measurements -------------------------------------------------------------------------------


async def measure_direct(options: Options) -> dict[str, float]:
    """Through the server, then through the bare relay, each with its own broker."""
    steady = {"warmup": options.warmup, "seconds": options.seconds}
    phases = [
        {"kind": "saturate", "name": "saturated", "window": options.window, **steady},
        {"kind": "pace", "name": "half load", "part": 0.5, **steady},
        {"kind": "pace", "name": "5,000 a second", "rate": 5_000.0, **steady},
        {"kind": "lone", "name": "lone", "count": options.lone},
    ]
    async with through_server(options) as plan:
        through = [phase async for phase in load(plan | {"phases": phases})]
    relayed = {"warmup": options.warmup, "seconds": options.relay_seconds}
    phases = [
        {"kind": "saturate", "name": "relay saturated", "window": options.window, **relayed},
        {"kind": "lone", "name": "relay lone", "count": options.lone},
    ]
    async with through_relay(options) as plan:
        bare = [phase async for phase in load(plan | {"phases": phases})]
    report.print_phases([*through, *bare])
    saturated, half, steadily, lone = through
    direct = {
        "stored_per_second": saturated["per_second"],
        "bare_relay_per_second": bare[0]["per_second"],
        "server_cpu_us": saturated["cpu_us"]["server"],
        "broker_cpu_us": saturated["cpu_us"]["broker"],
        "p50_saturated_ms": saturated["p50_ms"],
        "p99_saturated_ms": saturated["p99_ms"],
        "p50_half_load_ms": half["p50_ms"],
        "p99_half_load_ms": half["p99_ms"],
        "p50_5000_ms": steadily["p50_ms"],
        "p99_5000_ms": steadily["p99_ms"],
        "p50_lone_ms": lone["p50_ms"],
    }
    report.print_direct(direct)
    return direct


async def measure_cluster(options: Options) -> dict[str, float]:
    """On MongoDB and Redis: one worker, two workers, and the time of a takeover."""
    steady = {"warmup": options.warmup, "seconds": options.seconds}
    phases: dict[str, dict[str, Any]] = {}
    for count in (1, 2):
        name = f"{count} worker{'s' if count > 1 else ''}"
        saturated = {"kind": "saturate", "name": name, "window": options.window, **steady}
        half = {"kind": "pace", "name": f"{name}, half load", "part": 0.5, **steady}
        async with through_workers(options, count) as plan:
            async for phase in load(plan | {"phases": [saturated, half]}):
                phases[phase["phase"]] = phase
    report.print_phases([*phases.values()], "On MongoDB and Redis")
    async with _broker(options) as (broker, directory, _):
        seconds = await cluster.takeovers(broker, directory, options.kills)
    found = cluster.figures(phases, seconds)
    report.print_cluster(found)
    return found


async def sweep(options: Options) -> list[dict[str, Any]]:
    """Throughput and latency through the server for different windows."""
    steady = {"warmup": options.warmup, "seconds": options.seconds}
    phases = [
        {"kind": "saturate", "name": f"window {window}", "window": window, **steady}
        for window in (2, 4, 8, 16, 32, 64, 128)
    ]
    async with through_server(options) as plan:
        through = [phase async for phase in load(plan | {"phases": phases})]
    report.print_phases(through)
    return through


async def measure_memory(options: Options, messages: int) -> list[dict[str, Any]]:
    """The server's memory at steps while it stores this many messages."""
    phase = {
        "kind": "count", "name": "memory", "messages": messages, "window": options.window, "steps": 20,
    }  # fmt: skip
    steps = []
    async with through_server(options) as plan:
        async for step in load(plan | {"phases": [phase]}):
            if "phase" not in step:
                report.print_memory(step)
                steps.append(step)
    return steps


# --- what runs --------------------------------------------------------------------------------------


async def load(plan: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Runs the load generator; yields its lines."""
    async for line in lines(sys.executable, "-m", "bench.load", stdin=json.dumps(plan).encode()):
        yield json.loads(line)


@contextlib.asynccontextmanager
async def through_server(options: Options) -> AsyncIterator[dict[str, Any]]:
    """A broker and an imqtt server; yields a plan for the load generator."""
    async with _broker(options) as (broker, directory, plan):
        settings = {
            "BROKER_HOST": INTERNAL_HOST,
            "BROKER_PORT": str(broker.internal_port),
            "BROKER_USERNAME": SERVER_ACCOUNT,
            "BROKER_PASSWORD": broker.server_password,
            "STORE": f"sqlite:///{directory / 'imqtt.db'}",
            "PARTITIONS": str(PARTITIONS),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
        environment |= {f"IMQTT_{name}": value for name, value in settings.items()}
        async with running(
            sys.executable, "-m", "imqtt", "serve",
            ready=SERVER_READY, log=directory / "server.log", environment=environment,
        ) as pid:  # fmt: skip
            yield plan | {"through": "server", "pids": plan["pids"] | {"server": [pid]}}


@contextlib.asynccontextmanager
async def through_workers(options: Options, count: int) -> AsyncIterator[dict[str, Any]]:
    """A broker, MongoDB, Redis and this many workers; yields a plan for the load generator."""
    async with (
        _broker(options) as (broker, directory, plan),
        cluster.workers(broker, directory, count) as (servers, mongo, redis),
    ):
        pids = {"server": [server.pid for server in servers], "mongodb": [mongo.pid], "redis": [redis.pid]}
        yield plan | {"through": "server", "pids": plan["pids"] | pids}


@contextlib.asynccontextmanager
async def through_relay(options: Options) -> AsyncIterator[dict[str, Any]]:
    """A broker and the bare relay; yields a plan for the load generator."""
    async with _broker(options) as (broker, directory, plan):
        account = {
            "host": INTERNAL_HOST, "port": broker.internal_port, "username": SERVER_ACCOUNT,
            "password": broker.server_password,
        }  # fmt: skip
        async with running(
            sys.executable, "-m", "bench.relay",
            ready=RELAY_READY, log=directory / "relay.log", stdin=json.dumps(account).encode(),
        ) as pid:  # fmt: skip
            yield plan | {"through": "relay", "pids": plan["pids"] | {"relay": [pid]}}


@contextlib.asynccontextmanager
async def _broker(options: Options) -> AsyncIterator[tuple[Mosquitto, Path, dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="imqtt-bench-", dir=options.directory) as name:
        directory = Path(name)
        broker = Mosquitto(directory / "broker")
        await broker.start()
        try:
            passwords = await asyncio.to_thread(broker.passwords.add_all, map(str, devices()))
            yield (
                broker,
                directory,
                {
                    "host": broker.host, "port": broker.port, "passwords": passwords, "size": options.size,
                    "partitions": PARTITIONS, "pids": {"broker": [broker.pid]},
                },
            )  # fmt: skip
        finally:
            await broker.kill()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short smoke test; writes no file")
    parser.add_argument(
        "--memory", type=int, metavar="N", help="send N messages and print the server's memory"
    )
    parser.add_argument("--cluster", action="store_true", help="only the measurements on MongoDB and Redis")
    parser.add_argument("--sweep", action="store_true", help="measure different window sizes")
    parser.add_argument("--window", type=int, default=WINDOW, help="unanswered messages of each device")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds measured in each phase")
    parser.add_argument("--size", type=int, default=200, help="bytes of text in a message")
    parser.add_argument("--directory", type=Path, help="directory of the store's and the broker's files")
    return parser.parse_args()


if __name__ == "__main__":
    use_given()
    try:
        asyncio.run(main())
    except (Failed, SetupError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
