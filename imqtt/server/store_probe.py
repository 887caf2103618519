"""Whether the store answers, on a worker for which nothing is stored.

Who stores messages finds out at once that the store is gone. A worker whose partitions get nothing but reads,
or nothing at all, would go on showing itself as healthy, and keep partitions that others could serve.
"""

import asyncio

from imqtt.errors import Unavailable
from imqtt.server.counters import Counters
from imqtt.server.problems import Problems
from imqtt.stores.base import OutcomeUnknown, Store

LOOK_SECONDS = 2.0
LOOKED_UP = "u:imqtt"  # one conversation, which need not exist: the cheapest read that there is


async def watch(store: Store, counters: Counters, problems: Problems) -> None:
    """Until cancelled. Reads something, unless events were stored since the last look."""
    stored = counters.stored
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        stored, before = counters.stored, stored
        if stored != before:
            problems.look_succeeded()
            continue
        try:
            await store.heads([LOOKED_UP])
        except (Unavailable, OutcomeUnknown) as error:
            problems.look_failed(error)
        else:
            problems.look_succeeded()
