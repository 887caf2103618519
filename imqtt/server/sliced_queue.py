"""A queue of background work, done in slices so that long work does not delay short work."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import Generic, TypeVar

from imqtt.core.backoff import backoff
from imqtt.errors import Unavailable
from imqtt.problems import Problem, explain
from imqtt.state.base import StateAway

log = logging.getLogger(__name__)

K = TypeVar("K")


Slice = tuple[K, str]
"""A key, and where its work goes on ("": at the beginning)."""


def alone(do: Callable[[K, str], Awaitable[str]]) -> Callable[[Sequence[Slice[K]]], Awaitable[Sequence[str]]]:
    """For work that does one slice at a time: takes a slice, and returns where it ended."""

    async def do_one(slices: Sequence[Slice[K]]) -> Sequence[str]:
        return [await do(key, after) for key, after in slices]

    return do_one


class SlicedQueue(Generic[K]):
    """Keys whose work `do` carries out in slices, in turn. No key waits for all the work of another one.

    `do` takes slices, and returns where each ended, or "" after a key's last one. First slices are done up to
    `together` at a time, later ones alone. While the store or the state is away, everything waits. The log
    calls the work `what`.
    """

    def __init__(
        self,
        what: str,
        do: Callable[[Sequence[Slice[K]]], Awaitable[Sequence[str]]],
        *,
        together: int = 1,
    ) -> None:
        self._what = what
        self._do = do
        self._together = together
        self._problem = Problem(log, f"{what} has to wait", f"{what} goes on")
        self._waiting: OrderedDict[K, str] = OrderedDict()  # where each goes on; oldest first
        self._again: set[K] = set()  # keys whose work begins anew after their last slice
        self._current: Sequence[Slice[K]] = ()
        self._wake = asyncio.Event()

    def put(self, key: K) -> None:
        """Has all the work of `key` done after this call. Work that is half done is finished first."""
        if self._waiting.setdefault(key, ""):
            self._again.add(key)
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._current

    async def run(self) -> None:
        attempt = 0
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            self._current = slices = self._take()
            try:
                ended = await self._carry_out(slices)
                attempt = 0
                self._problem.end()
            except (Unavailable, StateAway) as error:
                for key, after in reversed(slices):
                    self._put_back(key, after)
                    self._waiting.move_to_end(key, last=False)
                attempt += 1
                self._problem.start(explain(error))
                await asyncio.sleep(backoff(attempt, random()))
            else:
                for (key, _), end in zip(slices, ended, strict=True):
                    if end:
                        self._put_back(key, end)
                    else:
                        self._end(key)
            finally:
                self._current = ()

    def _take(self) -> list[Slice[K]]:
        slices = [self._waiting.popitem(last=False)]
        while len(slices) < self._together and self._waiting and not slices[0][1]:
            key, after = self._waiting.popitem(last=False)
            if after:
                self._waiting[key] = after
                self._waiting.move_to_end(key, last=False)
                break
            slices.append((key, after))
        return slices

    async def _carry_out(self, slices: Sequence[Slice[K]]) -> Sequence[str]:
        """Where the slices ended. A key that fails ends, and fails no other."""
        try:
            return await self._do(slices)
        except (Unavailable, StateAway):
            raise
        except Exception:
            if len(slices) > 1:
                return [end for one in slices for end in await self._carry_out([one])]
            log.exception("%s failed for %s", self._what, slices[0][0])
            return [""]

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
