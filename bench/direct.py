"""Direct messages between 20 pairs of devices, through the server and through a bare relay."""

from typing import Any

from bench import report
from bench.services import Options, load, through_relay, through_server

PACED_RATE = 2_000.0  # messages per second: batches are small, and the server is not saturated


async def measure_direct(options: Options) -> dict[str, float]:
    """Through the server, then through the bare relay, each with its own broker."""
    lone = {"kind": "lone", "count": 40 if options.quick else 600}
    saturated = {"kind": "saturate", "window": options.window, **options.steady}
    phases = [
        saturated | {"name": "saturated"},
        {"kind": "pace", "name": "half load", "part": 0.5, **options.steady},
        {"kind": "pace", "name": "5,000 a second", "rate": 5_000.0, **options.steady},
        lone | {"name": "lone"},
    ]
    async with through_server(options) as plan:
        through = [phase async for phase in load(plan | {"phases": phases})]
    phases = [saturated | {"name": "relay saturated"}, lone | {"name": "relay lone"}]
    async with through_relay(options) as plan:
        bare = [phase async for phase in load(plan | {"phases": phases})]
    report.print_phases([*through, *bare])
    first, half, steadily, alone = through
    direct = {
        "stored_per_second": first["per_second"],
        "bare_relay_per_second": bare[0]["per_second"],
        "server_cpu_us": first["cpu_us"]["server"],
        "broker_cpu_us": first["cpu_us"]["broker"],
        "p50_saturated_ms": first["p50_ms"],
        "p99_saturated_ms": first["p99_ms"],
        "p50_half_load_ms": half["p50_ms"],
        "p99_half_load_ms": half["p99_ms"],
        "p50_5000_ms": steadily["p50_ms"],
        "p99_5000_ms": steadily["p99_ms"],
        "p50_lone_ms": alone["p50_ms"],
        "accepted_p50_lone_ms": alone["accepted_p50_ms"],
        "server_cpu_lone_us": alone["cpu_us"]["server"],
    }
    report.print_direct(direct)
    return direct


async def measure_paced(options: Options) -> dict[str, float]:
    """2,000 messages per second through the server."""
    phase = {"kind": "pace", "name": "2,000 a second", "rate": PACED_RATE, **options.steady}
    async with through_server(options) as plan:
        (paced,) = [phase async for phase in load(plan | {"phases": [phase]})]
    report.print_phases([paced], "Paced")
    return {
        "server_cpu_us": paced["cpu_us"]["server"],
        "broker_cpu_us": paced["cpu_us"]["broker"],
        "p50_ms": paced["p50_ms"],
        "p99_ms": paced["p99_ms"],
        "accepted_p50_ms": paced["accepted_p50_ms"],
        "accepted_p99_ms": paced["accepted_p99_ms"],
    }


async def sweep(options: Options) -> list[dict[str, Any]]:
    """Throughput and latency through the server for different windows."""
    phases = [
        {"kind": "saturate", "name": f"window {window}", "window": window, **options.steady}
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
