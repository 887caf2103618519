"""The benchmark on MongoDB and Redis: CPU per message with one and two workers, and takeover times."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench import report
from bench.services import PARTITIONS, Options, Plan, broker_for, load
from bench.traffic import devices
from imqtt.core.partitions import partition_of
from imqtt.model import Accepted, Content, Send
from imqtt.mosquitto.broker import Mosquitto
from tests.cluster import Cluster
from tests.device import RawDevice
from tests.mongodb import MongoServer
from tests.redis_server import RedisServer
from tests.services import ServerProcess, eventually

PROBER = "prober"


async def measure(options: Options) -> dict[str, float]:
    """One worker, two workers, and the time of a takeover."""
    phases: dict[str, dict[str, Any]] = {}
    for count in (1, 2):
        name = f"{count} worker{'s' if count > 1 else ''}"
        saturated = {"kind": "saturate", "name": name, "window": options.window, **options.steady}
        half = {"kind": "pace", "name": f"{name}, half load", "part": 0.5, **options.steady}
        async with through_workers(options, count) as plan:
            async for phase in load(plan | {"phases": [saturated, half]}):
                phases[phase["phase"]] = phase
    report.print_phases([*phases.values()], "On MongoDB and Redis")
    async with broker_for(options, ()) as (broker, directory, _):
        seconds = await takeovers(broker, directory, kills=2 if options.quick else 10)
    found = figures(phases, seconds)
    report.print_cluster(found)
    return found


@contextlib.asynccontextmanager
async def through_workers(options: Options, count: int) -> AsyncIterator[Plan]:
    """A broker, MongoDB, Redis and this many workers; yields a plan."""
    async with (
        broker_for(options, devices()) as (broker, directory, plan),
        workers(broker, directory, count) as (servers, mongo, redis),
    ):
        pids = {"server": [server.pid for server in servers], "mongodb": [mongo.pid], "redis": [redis.pid]}
        yield plan | {"through": "server", "pids": plan["pids"] | pids}


@contextlib.asynccontextmanager
async def workers(
    broker: Mosquitto, directory: Path, count: int
) -> AsyncIterator[tuple[list[ServerProcess], MongoServer, RedisServer]]:
    """This many `imqtt serve`, on their own MongoDB (or a server of its protocol) and Redis."""
    async with contextlib.AsyncExitStack() as stack:
        mongo = await stack.enter_async_context(MongoServer(directory / "mongodb"))
        redis = await stack.enter_async_context(RedisServer(directory / "redis"))
        servers: list[ServerProcess] = []
        for number in range(count):
            folder = directory / f"worker-{number}"
            folder.mkdir()
            server = ServerProcess(broker, folder, store=mongo.url, state=redis.url, partitions=PARTITIONS)
            servers.append(await stack.enter_async_context(server))
        await eventually(lambda: _shared(mongo, redis, servers))
        yield servers, mongo, redis


async def takeovers(broker: Mosquitto, directory: Path, kills: int) -> list[float]:
    """Seconds from the `kill -9` of a worker to the first `Accepted` on each of its partitions."""
    seconds: list[float] = []
    async with (
        workers(broker, directory, 2) as (servers, mongo, redis),
        RawDevice(broker, f"{PROBER}@phone") as device,
    ):
        await device.hello()
        probes = _one_conversation_in_each_partition()
        for kill in range(kills):
            victim = servers[kill % 2]
            owners = await Cluster(mongo.url, redis.url).owners()
            lost = [number for number, pid in owners.items() if pid == victim.pid]
            await victim.kill()
            killed = asyncio.get_running_loop().time()
            seconds += await _until_accepted(device, [probes[number] for number in lost], f"k{kill}", killed)
            await victim.start()
            await eventually(lambda: _shared(mongo, redis, servers), within=20)
    return seconds


async def _until_accepted(
    device: RawDevice, conversations: list[str], name: str, since: float
) -> list[float]:
    start = len(device.frames)
    for conversation in conversations:
        await device.command(Send(conversation, name, Content(text="probe")))
    waiting, seen, seconds = set(conversations), start, []
    while waiting:
        await device.until(lambda _: True, since=seen)
        now = asyncio.get_running_loop().time()
        for frame in device.frames[seen:]:
            if isinstance(frame, Accepted) and frame.client_msg_id == name:
                waiting.discard(frame.conversation)
                seconds.append(now - since)
        seen = len(device.frames)
    return seconds


def _one_conversation_in_each_partition() -> list[str]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        conversation = f"d:{PROBER}:user{number}" if f"user{number}" > PROBER else f"d:user{number}:{PROBER}"
        found.setdefault(partition_of(conversation, PARTITIONS), conversation)
        number += 1
    return [found[partition] for partition in range(PARTITIONS)]


async def _shared(mongo: MongoServer, redis: RedisServer, servers: list[ServerProcess]) -> bool:
    owners = await Cluster(mongo.url, redis.url).owners()
    return len(owners) == PARTITIONS and set(owners.values()) == {server.pid for server in servers}


def figures(phases: dict[str, dict[str, Any]], seconds: list[float]) -> dict[str, float]:
    """The figures to record."""
    one, two, paced = phases["1 worker"], phases["2 workers"], phases["1 worker, half load"]
    ordered = sorted(seconds)
    return {
        "stored_per_second_1_worker": one["per_second"],
        "stored_per_second_2_workers": two["per_second"],
        "server_cpu_us": one["cpu_us"]["server"],
        "server_cpu_us_half_load": paced["cpu_us"]["server"],
        "mongodb_cpu_us": one["cpu_us"]["mongodb"],
        "redis_cpu_us": one["cpu_us"]["redis"],
        "takeovers": len(ordered),
        "takeover_p50_s": ordered[len(ordered) // 2],
        "takeover_p99_s": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "takeover_max_s": ordered[-1],
    }
