"""The owners of the partitions, seen from outside all workers."""

from imqtt.state.base import Worker
from imqtt.state.redis.connection import TRIP_SECONDS
from imqtt.state.redis.state import RedisState
from imqtt.stores import attach_store


class Overseer:
    """The view of `imqtt workers`. `trip_seconds`: see `RedisState.open`."""

    def __init__(self, store: str, state: str, trip_seconds: float = TRIP_SECONDS) -> None:
        self._store = store
        self._state = state
        self._trip_seconds = trip_seconds
        self._cluster = ""

    async def workers(self) -> list[Worker]:
        if not self._cluster:
            store = await attach_store(self._store)
            self._cluster = store.identity.cluster
            await store.close()
        state = await RedisState.open(
            self._state, cluster=self._cluster, rate=1, burst=1, trip_seconds=self._trip_seconds
        )
        try:
            return await state.workers()
        finally:
            await state.close()

    async def owners(self) -> dict[int, int]:
        """The pid of the owner of each partition."""
        return {held.partition: worker.pid for worker in await self.workers() for held in worker.holdings}
