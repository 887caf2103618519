"""Who has a store open: one process alone, or several that share their state.

Each writes a document into `servers`, and shows that it lives by setting its time again and again:

    {_id: "6f0c…", host: "chat-1", machine: "…", pid: 4711, shared: true, open: true, seen: ISODate(…)}

Nothing rests on it, as the log's indexes refuse what two owners would both write. It keeps an operator from
starting two servers that do not know of each other, and a copy from running into a store that is served.
"""

import asyncio
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Self

from imqtt.errors import StoreInUse
from imqtt.problems import Problem
from imqtt.stores.mongo.client import (
    Database,
    Document,
    PyMongoError,
    aggregate,
    brief,
    raise_swallowed_cancellation,
)
from imqtt.stores.mongo.opening import setting_up

log = logging.getLogger(__name__)

RENEWAL_SECONDS = 2.0
LEASE_SECONDS = 6.0  # three renewals; from then on the holder is taken for dead
LOOK_SECONDS = 0.25  # how often a claim that is in the way is looked at
RELEASE_SECONDS = 2.0  # for the document to be removed; it runs out by itself otherwise

_NOW = {"$currentDate": {"seen": True}}  # by the server's clock

_held: set[str] = set()  # what this process holds: its pid alone may be that of an earlier process


class Claim:
    """This process's document, from `take` until `release`."""

    def __init__(self, database: Database, shared: bool) -> None:
        self.id = secrets.token_hex(8)
        self.shared = shared
        self._database = database
        self._servers = database.get_collection("servers")
        self._opened = False
        self._renewing: asyncio.Task[None] | None = None
        self._problem = Problem(
            log,
            "this process cannot renew its claim on the store",
            "this process renews its claim on the store again",
        )

    @classmethod
    async def take(cls, database: Database, *, shared: bool) -> Self:
        """Returns when nobody is in the way. Raises `StoreInUse` if somebody is, and is alive."""
        claim = cls(database, shared)
        _held.add(claim.id)
        try:
            with setting_up(database):
                # First one's own, then the others': of two who start at once, each sees the other.
                await claim._show()
                claim._renewing = asyncio.create_task(claim._renew(), name="mongodb-claim")
                await claim._wait_for_the_others()
                claim._opened = True
                await claim._show()
        except BaseException:
            await claim.release()
            raise
        return claim

    async def release(self) -> None:
        """Removes the document, or leaves it to run out if the server does not answer."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
            self._renewing = None
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._servers.delete_one({"_id": self.id})
        except (TimeoutError, PyMongoError):
            log.info("the store's server does not answer; what it knows of this process runs out by itself")
        finally:
            _held.discard(self.id)

    async def _show(self) -> None:
        """Writes the document."""
        mine = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "shared": self.shared,
            "open": self._opened,
        }
        await self._servers.update_one({"_id": self.id}, {"$set": mine, **_NOW}, upsert=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            try:
                # Not an upsert: one that is overtaken by the removal would bring the document back.
                known = (await self._servers.update_one({"_id": self.id}, _NOW)).matched_count
                raise_swallowed_cancellation()
                self._problem.end()
                if not known:
                    await self._show()
                    log.warning(
                        "this process stood still for so long that another one may have opened the store; "
                        "see that only one server runs, or that all share one Redis"
                    )
            except PyMongoError as error:
                self._problem.start(brief(error))

    async def _wait_for_the_others(self) -> None:
        first_seen: dict[str, object] = {}
        since = asyncio.get_running_loop().time()
        while in_the_way := [it for it in await self._others() if await self._is_in_the_way(it)]:
            for other in in_the_way:
                if other.get("open"):
                    seen = first_seen.setdefault(other["_id"], other.get("seen"))
                    alive = other["_id"] in _held or other.get("seen") != seen
                    if not alive and asyncio.get_running_loop().time() - since > LEASE_SECONDS:
                        # The age of a claim never exceeds the lease if the clock that dated it was ahead.
                        await self._remove(other)
                else:  # it is opening as well: one of the two steps back, and the other waits for that
                    alive = other["_id"] < self.id and not _is_dead(other)
                if alive:
                    raise StoreInUse(self._in_use(other))
            await asyncio.sleep(LOOK_SECONDS)

    async def _others(self) -> list[Document]:
        """Their documents. `age` in milliseconds, by the server's clock alone."""
        age = {"$dateDiff": {"startDate": "$seen", "endDate": "$$NOW", "unit": "millisecond"}}
        return await aggregate(
            self._servers, [{"$match": {"_id": {"$ne": self.id}}}, {"$addFields": {"age": age}}]
        )

    async def _is_in_the_way(self, other: Document) -> bool:
        """Removes what a dead process has left, and no more: it may have shown itself since it was read."""
        if _is_dead(other) and await self._remove(other):
            return False
        return not (self.shared and other.get("shared"))

    async def _remove(self, other: Document) -> bool:
        removed = await self._servers.delete_one({"_id": other["_id"], "seen": other.get("seen")})
        return removed.deleted_count > 0

    def _in_use(self, other: Document) -> str:
        where = f"the store is in use by process {other.get('pid')} on {other.get('host')}"
        if self.shared:
            return f"{where}, which has it for itself; end that one, or give all of them one Redis as state"
        if other.get("shared"):
            return f"{where}, which shares it; end that one, or give this one the same Redis as state"
        return f"{where}; end that one: several processes can share a store only if they share a Redis"


def _is_dead(other: Document) -> bool:
    return _is_gone(other) or (other.get("age") or 0) > LEASE_SECONDS * 1_000


def _is_gone(other: Document) -> bool:
    """Whether it is known here and now that the holder has ended: its lease need not run out."""
    pid = other.get("pid")
    if other.get("machine") != _machine() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return other["_id"] not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> str:
    """Where a pid means the same process: a boot of a machine, and within it a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
