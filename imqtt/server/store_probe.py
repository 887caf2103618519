"""Probes the store on a worker that stores nothing.

Otherwise a worker whose partitions get only reads, or nothing, would not notice that the store is gone: it
would report itself as healthy, and keep partitions that others could serve.
"""

import asyncio

from imqtt.errors import Unavailable
from imqtt.problems import explain
from imqtt.server.counters import Counters
from imqtt.server.problems import PROBE, Problems
from imqtt.stores.base import LogStore, OutcomeUnknown

LOOK_SECONDS = 2.0
LOOKED_UP = "u:imqtt"  # a conversation that need not exist: the cheapest read


async def watch(store: LogStore, counters: Counters, problems: Problems) -> None:
    """Reads from the store periodically unless events were stored meanwhile, until cancelled."""
    stored = counters.stored
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        stored, before = counters.stored, stored
        try:
            if stored == before:
                await store.heads([LOOKED_UP])
        except (Unavailable, OutcomeUnknown) as error:
            problems.store.start(explain(error), PROBE)
        else:
            problems.store.end(PROBE)
