"""`imqtt workers`: the workers and their partitions."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli.output import Json, complain, print_json, print_table
from imqtt.cli.settings import server_config, server_flags
from imqtt.config import SETTINGS, ServerConfig
from imqtt.errors import SetupError

if TYPE_CHECKING:
    from imqtt.state.base import Worker

ASKED = {"store", "store_password", "mongo_driver", "state", "state_password"}

Partitions = Annotated[
    bool, typer.Option("--partitions", help="Print one line per partition instead of one per worker.")
]


@server_flags(without=[one.name for one in SETTINGS if one.name not in ASKED])
def workers(*, partitions: Partitions = False, as_json: Json = False, **flags: str | None) -> None:
    """Show which worker owns which partitions, since when, and how far behind it is.

    Needs the workers' `--store` and `--state`. Exit status 1: a partition has no owner, or two.
    """
    import asyncio

    config = server_config(flags)
    if config.state == "memory:":
        raise SetupError(
            "only servers with Redis can be listed: give --state redis://...; without Redis,"
            " one server owns all partitions"
        )
    number, alive = asyncio.run(_ask(config))
    if as_json:
        for worker in alive:
            print_json(worker)
    elif partitions:
        _print_partitions(number, alive)
    else:
        _print_workers(alive)
    if complaints := _complaints(number, alive):
        for complaint in complaints:
            complain(complaint)
        raise typer.Exit(1)


async def _ask(config: ServerConfig) -> "tuple[int, list[Worker]]":
    """The number of partitions, and the workers that are alive."""
    from imqtt.state import open_state
    from imqtt.stores import attach_store

    store = await attach_store(config.store, password=config.store_password, driver=config.mongo_driver)
    identity = store.identity
    await store.close()
    state = await open_state(
        config.state,
        cluster=identity.cluster,
        rate=config.device_rate,
        burst=config.device_burst,
        password=config.state_password,
    )
    try:
        return identity.partitions, await state.workers()
    finally:
        await state.close()


def _print_workers(alive: Sequence["Worker"]) -> None:
    print_table(
        ("worker", "host", "pid", "since", "partitions", "waiting", "oldest", "taken away", "trouble"),
        (
            (
                worker.id, worker.host, str(worker.pid), _time(worker.started),
                " ".join(str(held.partition) for held in worker.holdings),
                str(sum(held.unfinished for held in worker.holdings)),
                _seconds(max((held.oldest for held in worker.holdings), default=0)),
                str(sum(held.cuts for held in worker.holdings)),
                worker.trouble or ("leaving" if worker.leaving else ""),
            )
            for worker in alive
        ),
    )  # fmt: skip


def _print_partitions(number: int, alive: Sequence["Worker"]) -> None:
    owners = {held.partition: (worker, held) for worker in alive for held in worker.holdings}
    rows: list[tuple[str, ...]] = []
    for partition in range(number):
        if partition not in owners:
            rows.append((str(partition), "none", "", "", "", "", ""))
            continue
        worker, held = owners[partition]
        rows.append(
            (
                str(partition), worker.id, f"{worker.host}:{worker.pid}", _time(held.since),
                str(held.unfinished), _seconds(held.oldest), str(held.cuts),
            )
        )  # fmt: skip
    print_table(("partition", "worker", "process", "since", "waiting", "oldest", "taken away"), rows)


def _complaints(number: int, alive: Sequence["Worker"]) -> list[str]:
    if not alive:
        return ["no worker is alive"]
    # A worker of another version may also report partitions that do not exist.
    owners = Counter(held.partition for worker in alive for held in worker.holdings)
    without = [str(partition) for partition in range(number) if owners[partition] == 0]
    shared = [str(partition) for partition in range(number) if owners[partition] > 1]
    found = (("no owner", without), ("two owners", shared))
    return [f"partitions with {what}: {', '.join(wrong)}" for what, wrong in found if wrong]


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1_000:.3f} s" if milliseconds else ""
