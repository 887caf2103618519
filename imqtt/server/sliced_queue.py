"""A queue of background work, done in slices so that long work does not delay short work."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from random import random
from typing import Generic, TypeVar

from imqtt.core.backoff import backoff
from imqtt.errors import Unavailable
from imqtt.problems import Problem, explain
from imqtt.state.base import StateAway

log = logging.getLogger(__name__)

K = TypeVar("K")


class SlicedQueue(Generic[K]):
    """Keys whose work `do` carries out in slices, in turn. No key waits for all the work of another one.

    `do(key, after)` does the slice that follows `after` ("": the first one) and returns where it ended, or ""
    after the last one. While the store or the state is away, everything waits. The log calls the work `what`.
    """

    def __init__(self, what: str, do: Callable[[K, str], Awaitable[str]]) -> None:
        self._what = what
        self._do = do
        self._problem = Problem(log, f"{what} has to wait", f"{what} goes on")
        self._waiting: OrderedDict[K, str] = OrderedDict()  # where each goes on; oldest first
        self._again: set[K] = set()  # keys whose work begins anew after their last slice
        self._current: K | None = None
        self._wake = asyncio.Event()

    def put(self, key: K) -> None:
        """Has all the work of `key` done after this call. Work that is half done is finished first."""
        if self._waiting.setdefault(key, ""):
            self._again.add(key)
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not self._waiting and self._current is None

    async def run(self) -> None:
        attempt = 0
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            key, after = self._waiting.popitem(last=False)
            self._current = key
            try:
                ended = await self._do(key, after)
                attempt = 0
                self._problem.end()
            except (Unavailable, StateAway) as error:
                self._put_back(key, after)
                self._waiting.move_to_end(key, last=False)
                attempt += 1
                self._problem.start(explain(error))
                await asyncio.sleep(backoff(attempt, random()))
            except Exception:
                log.exception("%s failed for %s", self._what, key)
                self._end(key)
            else:
                if ended:
                    self._put_back(key, ended)
                else:
                    self._end(key)
            finally:
                self._current = None

    def _put_back(self, key: K, after: str) -> None:
        """`key` goes on at `after`. If it was put meanwhile, it also begins anew afterwards."""
        if key in self._waiting and after:
            self._again.add(key)
        self._waiting[key] = after

    def _end(self, key: K) -> None:
        """The work of `key` is over. If it was put meanwhile, it begins anew."""
        if key in self._again:
            self._again.discard(key)
            self._waiting.setdefault(key, "")
