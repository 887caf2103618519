"""`python -m bench`: direct messages between 20 pairs of devices, compared with a bare relay; catching up; a
storm of connections; the codecs.

Prints tables and writes `bench/latest.json`.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench import cluster, codec, direct, growth, report, storm, sync
from bench.processes import Failed
from bench.repeats import figures, medians, spread
from bench.services import Options
from imqtt.errors import SetupError
from tests.given_mosquitto import use_given

LATEST = Path(__file__).parent / "latest.json"
# As `--sweep` shows, throughput and latency grow with the window through larger batches: 10,200 messages per
# second at 15 ms (p50) with 4, 13,200 at 24 with 8, 17,200 at 75 with 32.
WINDOW = 8

Part = Callable[[Options], Awaitable[Any]]


async def measure_codec(options: Options) -> list[dict[str, Any]]:
    """Size and time of messages in each format."""
    rows = codec.measure(0.02 if options.quick else 0.3)
    report.print_codec(rows)
    return [row._asdict() for row in rows]


PARTS: dict[str, Part] = {  # by name in `latest.json`, in the order of the default run
    "direct": direct.measure_direct,
    "paced": direct.measure_paced,
    "sync": sync.measure,
    "storm": storm.measure,
    "cluster": cluster.measure,
    "codec": measure_codec,
}


async def main() -> None:
    arguments = _arguments()
    options = Options(
        quick=arguments.quick,
        seconds=1.5 if arguments.quick else arguments.seconds,
        warmup=0.5 if arguments.quick else 2.0,
        window=arguments.window,
        size=arguments.size,
        directory=arguments.directory,
    )
    method = report.method(options.window, options.size, options.seconds, arguments.repeat)
    report.print_method(method)
    found = await _repeated(_chosen(arguments), options, arguments.repeat)
    if not arguments.quick:
        write(found | {"method": method})


def _chosen(arguments: argparse.Namespace) -> dict[str, Part]:
    if arguments.memory:
        return {"memory": lambda options: direct.measure_memory(options, arguments.memory)}
    if arguments.sweep:
        return {"windows": direct.sweep}
    if arguments.growth:
        return {"growth": growth.measure}
    return {name: part for name, part in PARTS.items() if name in (arguments.only or PARTS)}


async def _repeated(parts: dict[str, Part], options: Options, times: int) -> dict[str, Any]:
    """The results by part: medians of several runs. `spread` has the lowest and the highest.

    All parts run once before any of them runs again, so that each meets the machine in several conditions.
    """
    runs: dict[str, list[Any]] = {name: [] for name in parts}
    for _ in range(times):
        for name, part in parts.items():
            start = time.monotonic()
            runs[name].append(await part(options))
            report.print_time(name, time.monotonic() - start)
    found = {name: medians(of) for name, of in runs.items()}
    if times > 1:
        report.print_medians(figures(runs), times)
        found["spread"] = {name: spread(of) for name, of in runs.items()}
    return found


def write(found: dict[str, Any]) -> None:
    """Merges the results with those of earlier runs."""
    try:
        latest = json.loads(LATEST.read_text())
    except (OSError, ValueError):
        latest = {}
    spreads = {name: bounds for name, bounds in latest.pop("spread", {}).items() if name not in found}
    found["spread"] = spreads | found.get("spread", {})
    LATEST.write_text(json.dumps(latest | found, indent=2) + "\n")
    print(f"\nwritten to {os.path.relpath(LATEST)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short smoke test; writes no file")
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART",
        help=f"run only this part, or several if given again: {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N",
        help="run everything N times; report medians, with the lowest and the highest",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=int, metavar="N", help="send N messages and print the server's memory"
    )
    parser.add_argument("--sweep", action="store_true", help="measure different window sizes")
    parser.add_argument(
        "--growth", action="store_true",
        help="measure with up to a million conversations and ten million events; takes some minutes, and "
        "several GB in --directory, where the stores are kept for the next run",
    )  # fmt: skip
    parser.add_argument("--window", type=int, default=WINDOW, help="unanswered messages of each device")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds measured in each phase")
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
