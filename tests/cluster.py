"""The workers of a cluster and their partitions, as the state reports them."""

from imqtt.state.base import Worker
from imqtt.state.redis.connection import TRIP_SECONDS
from imqtt.state.redis.state import RedisState
from imqtt.stores import attach_store


class Cluster:
    """What `imqtt workers` shows. `trip_seconds`: see `RedisState.open`."""

    def __init__(self, store: str, state: str, trip_seconds: float = TRIP_SECONDS) -> None:
        self._store = store
        self._state = state
        self._trip_seconds = trip_seconds
        self._id = ""

    async def workers(self) -> list[Worker]:
        if not self._id:
            store = await attach_store(self._store)
            self._id = store.identity.cluster
            await store.close()
        state = await RedisState.open(
            self._state, cluster=self._id, rate=1, burst=1, trip_seconds=self._trip_seconds
        )
        try:
            return await state.workers()
        finally:
            await state.close()

    async def owners(self) -> dict[int, int]:
        """The pid that holds each partition."""
        return {
            holding.partition: worker.pid for worker in await self.workers() for holding in worker.holdings
        }
