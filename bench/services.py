"""What the measurements run: a broker, servers on a store, and the processes that play the devices."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import lines, running
from bench.traffic import devices
from imqtt.model import Device
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT

PARTITIONS = 16
SERVER_READY = "imqtt is ready"
RELAY_READY = "relay is ready"

Plan = dict[str, Any]
"""What a process of devices reads from its input: addresses, accounts and process ids, as JSON."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. Times are in seconds, the size in bytes of text."""

    quick: bool
    seconds: float
    warmup: float
    window: int
    size: int
    directory: Path | None

    @property
    def steady(self) -> dict[str, float]:
        """The times of a phase."""
        return {"warmup": self.warmup, "seconds": self.seconds}


@contextlib.asynccontextmanager
async def broker_for(
    options: Options, accounts: Iterable[Device]
) -> AsyncIterator[tuple[Mosquitto, Path, Plan]]:
    """A broker with an account for each device; yields it, a directory, and the beginnings of a plan."""
    with tempfile.TemporaryDirectory(prefix="imqtt-bench-", dir=options.directory) as name:
        directory = Path(name)
        broker = Mosquitto(directory / "broker")
        # Before the broker starts, so that it need not reload them.
        passwords = broker.passwords.add_all(map(str, accounts))
        await broker.start()
        plan = {
            "host": broker.host, "port": broker.port, "passwords": passwords, "size": options.size,
            "partitions": PARTITIONS, "pids": {"broker": [broker.pid]},
        }  # fmt: skip
        try:
            yield broker, directory, plan
        finally:
            await broker.kill()


@contextlib.asynccontextmanager
async def through_server(
    options: Options,
    accounts: Iterable[Device] | None = None,
    *,
    store: Path | None = None,
    partitions: int = PARTITIONS,
    settings: dict[str, str] | None = None,
) -> AsyncIterator[Plan]:
    """A broker and an imqtt server, by default with a new store; yields a plan."""
    async with broker_for(options, devices() if accounts is None else accounts) as (broker, directory, plan):
        settings = {
            "BROKER_HOST": INTERNAL_HOST,
            "BROKER_PORT": str(broker.internal_port),
            "BROKER_USERNAME": SERVER_ACCOUNT,
            "BROKER_PASSWORD": broker.server_password,
            "STORE": f"sqlite:///{(store or directory / 'imqtt.db').absolute()}",
            "PARTITIONS": str(partitions),
        } | (settings or {})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
        environment |= {f"IMQTT_{name}": value for name, value in settings.items()}
        async with running(
            sys.executable, "-m", "imqtt", "serve",
            ready=SERVER_READY, log=directory / "server.log", environment=environment,
        ) as pid:  # fmt: skip
            yield plan | {
                "through": "server", "partitions": partitions, "pids": plan["pids"] | {"server": [pid]},
            }  # fmt: skip


@contextlib.asynccontextmanager
async def through_relay(options: Options) -> AsyncIterator[Plan]:
    """A broker and the bare relay; yields a plan."""
    async with broker_for(options, devices()) as (broker, directory, plan):
        account = {
            "host": INTERNAL_HOST, "port": broker.internal_port, "username": SERVER_ACCOUNT,
            "password": broker.server_password,
        }  # fmt: skip
        async with running(
            sys.executable, "-m", "bench.relay",
            ready=RELAY_READY, log=directory / "relay.log", stdin=json.dumps(account).encode(),
        ) as pid:  # fmt: skip
            yield plan | {"through": "relay", "pids": plan["pids"] | {"relay": [pid]}}


async def load(plan: Plan, module: str = "bench.load") -> AsyncIterator[dict[str, Any]]:
    """Runs a process of devices; yields the lines that it prints."""
    async for line in lines(sys.executable, "-m", module, stdin=json.dumps(plan).encode()):
        yield json.loads(line)
