"""The tables, and the description of the measurement: machine, versions and parameters."""

import os
import platform
import re
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.codec import Row
from bench.traffic import DEVICES, PAIRS
from imqtt.mosquitto.broker import executable

GOALS = {  # by key of `direct`: the goal, and whether more is better
    "stored_per_second": (10_000, True),
    "p99_half_load_ms": (20, False),
    "p99_5000_ms": (20, False),
    "p50_lone_ms": (5, False),
}

CLUSTER_GOALS = {"server_cpu_us": 90, "takeover_p99_s": 3}

console = Console(highlight=False, width=None if os.isatty(1) else 120)


def method(window: int, size: int, seconds: float, runs: int) -> dict[str, Any]:
    """Machine, versions and parameters."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mosquitto": _mosquitto(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in ("mqtt5", "msgspec", "protobuf", "uvloop")},
        "pairs": PAIRS,
        "text_bytes": size,
        "window": window,
        "seconds": seconds,
        "runs": runs,
    }


def print_method(found: dict[str, Any]) -> None:
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    console.print(found["machine"])
    console.print(
        f"Python {found['python']}, Mosquitto {found['mosquitto']}, SQLite {found['sqlite']}, {packages}"
    )
    console.print(
        f"{PAIRS} pairs of devices on {DEVICES} connections, {found['text_bytes']} bytes of text, QoS 1, "
        "protobuf. Broker, server (or relay) and load generator are one process each and share the cores. "
        "A message is done when its sender has Accepted and the other device has the Event; every seq is "
        f"checked. Saturated: each device keeps {found['window']} messages unanswered. "
        "Half load: sent by a schedule at half the saturated rate, latency "
        "from the scheduled time. Lone: one message at a time. CPU is user and system time of the process "
        f"over the measured {found['seconds']:g} s, divided by messages."
    )


def print_phases(phases: list[dict[str, Any]], title: str = "Direct messages") -> None:
    table = Table("phase", title=f"\n{title}", title_justify="left")
    for name in (
        "msg/s", "p50 ms", "p99 ms", "max ms", "accepted p50", "p99", "server us", "broker us", "load us",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for phase in phases:
        cpu = phase["cpu_us"]
        table.add_row(
            phase["phase"],
            f"{phase['per_second']:,.0f}",
            *(f"{phase[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
            *(f"{phase[key]:.2f}" for key in ("accepted_p50_ms", "accepted_p99_ms")),
            *(
                f"{value:.0f}"
                for value in (cpu.get("server", cpu.get("relay", 0)), cpu["broker"], cpu["load"])
            ),
        )
    console.print(table)


def print_direct(direct: dict[str, float]) -> None:
    """The recorded figures and their goals."""
    table = Table("figure", title="\nRecorded figures", title_justify="left")
    table.add_column("found", justify="right")
    table.add_column("goal", justify="right")
    for key, found in direct.items():
        goal, more = GOALS.get(key, (None, True))
        bound = "" if goal is None else f"{'at least' if more else 'below'} {goal:,}"
        table.add_row(key, f"{found:,.2f}", bound)
    share = direct["stored_per_second"] / direct["bare_relay_per_second"]
    table.add_row("stored / bare relay", f"{share:.2f}", "at least 0.40")
    table.add_row(
        "server CPU / broker CPU", f"{direct['server_cpu_us'] / direct['broker_cpu_us']:.2f}", "at most 1.00"
    )
    console.print(table)


def print_cluster(found: dict[str, float]) -> None:
    """The recorded figures on MongoDB and Redis, and their goals."""
    table = Table("figure", title="\nRecorded figures", title_justify="left")
    table.add_column("found", justify="right")
    table.add_column("goal", justify="right")
    for key, value in found.items():
        goal = CLUSTER_GOALS.get(key)
        table.add_row(key, f"{value:,.2f}", "" if goal is None else f"at most {goal:,}")
    console.print(table)


def print_sync(rows: list[dict[str, Any]], events: int) -> None:
    """How a device that has nothing fetched everything."""
    table = Table("pages", title=f"\nCatching up on {events:,} events", title_justify="left")
    for name in ("events/s", "server us", "broker us", "device us"):
        table.add_column(name, justify="right")
    for row in rows:
        cpu = (f"{row[f'{part}_cpu_us']:.1f}" for part in ("server", "broker", "device"))
        table.add_row(row["way"], f"{row['per_second']:,.0f}", *cpu)
    console.print(table)


def print_storms(rows: list[dict[str, float]], title: str) -> None:
    """Connections of all devices at once; CPU for each device."""
    table = Table("storm", title=f"\n{title}", title_justify="left")
    for name in ("last CONNACK s", "last welcome s", "server us", "broker us", "load us"):
        table.add_column(name, justify="right")
    for number, row in enumerate(rows, 1):
        seconds = (f"{row[key]:.2f}" for key in ("connected_s", "welcomed_s"))
        cpu = (f"{row[f'{part}_cpu_us']:.0f}" for part in ("server", "broker", "load"))
        table.add_row(str(number), *seconds, *cpu)
    console.print(table)


def print_store(sizes: dict[str, int], size: int, seconds: float) -> None:
    sizes_text = ", ".join(f"{number:,} {name}" for name, number in sizes.items())
    console.print(f"\na store of {sizes_text}: {size / 2**20:,.0f} MiB, in {seconds:.0f} s")


def print_growth(found: dict[str, dict[str, float]]) -> None:
    """Each point by what distinguishes it from the first."""
    table = Table("point", title="\nGrowth", title_justify="left")
    for name in ("msg/s", "server us", "broker us", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for name in ("paced: server us", "broker us", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for name, point in found.items():
        cpu = ("server_cpu_us", "broker_cpu_us")
        latency = ("p50_ms", "p99_ms")
        table.add_row(
            name, f"{point['stored_per_second']:,.0f}",
            *(f"{point[key]:.0f}" for key in cpu), *(f"{point[key]:.2f}" for key in latency),
            *(f"{point[f'paced_{key}']:.0f}" for key in cpu),
            *(f"{point[f'paced_{key}']:.2f}" for key in latency),
        )  # fmt: skip
    console.print(table)


def print_medians(figures: dict[str, list[float]], runs: int) -> None:
    """All figures of several runs."""
    table = Table("figure", title=f"\n{runs} runs", title_justify="left")
    for name in ("median", "lowest", "highest"):
        table.add_column(name, justify="right")
    for name, found in figures.items():
        table.add_row(name, *(f"{value:,.2f}" for value in (median(found), min(found), max(found))))
    console.print(table)


def print_time(part: str, seconds: float) -> None:
    console.print(f"{part} took {seconds:.0f} s")


def print_codec(rows: list[Row]) -> None:
    table = Table("message", title="\nCodecs: imqtt's messages", title_justify="left")
    for name in ("text bytes", "format", "size bytes", "encode us", "decode us"):
        table.add_column(name, justify="left" if name == "format" else "right")
    before = None
    for row in rows:
        if before not in (None, (row.message, row.text)):
            table.add_section()
        before = (row.message, row.text)
        table.add_row(
            row.message, f"{row.text:,}", row.format, f"{row.size:,}",
            f"{row.encode_us:.2f}", f"{row.decode_us:.2f}",
        )  # fmt: skip
    console.print(table)


def print_memory(step: dict[str, int]) -> None:
    megabytes = {who: size / 2**20 for who, size in step.items() if who != "messages"}
    console.print(
        f"{step['messages']:>10,} messages: server {megabytes['server']:7.1f} MiB, "
        f"broker {megabytes['broker']:7.1f} MiB"
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _mosquitto() -> str:
    usage = subprocess.run([executable(), "-h"], capture_output=True, text=True, check=False).stdout
    return usage.split("\n", 1)[0].removeprefix("mosquitto version ")
