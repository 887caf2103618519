"""The processes that have a store open: one alone, or several that share their state.

Each process writes a document into `servers` and renews its time while it lives:

    {_id: "6f0c…", host: "chat-1", machine: "…", pid: 4711, shared: true, open: true, seen: ISODate(…)}

Correctness does not depend on it, since the log's indexes refuse conflicting writes. It prevents an operator
from starting two servers that do not share a state, and from copying into a store that is in use.
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
LEASE_SECONDS = 6.0  # three renewals; after that the holder is considered dead
POLL_SECONDS = 0.25  # between two looks at a conflicting claim
RELEASE_SECONDS = 2.0  # for the removal of the document; otherwise it expires

_NOW = {"$currentDate": {"seen": True}}  # by the server's clock

_held: set[str] = set()  # this process's claims: its pid may be that of an earlier process


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
        """Returns when no claim conflicts. Raises `StoreInUse` if the holder of one is alive."""
        claim = cls(database, shared)
        _held.add(claim.id)
        try:
            with setting_up(database):
                # Write first, then read: of two processes that start at once, each sees the other.
                await claim._write()
                claim._renewing = asyncio.create_task(claim._renew(), name="mongodb-claim")
                await claim._wait_for_conflicts()
                claim._opened = True
                await claim._write()
        except BaseException:
            await claim.release()
            raise
        return claim

    async def release(self) -> None:
        """Removes the document, or lets it expire if MongoDB does not answer."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
            self._renewing = None
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._servers.delete_one({"_id": self.id})
        except (TimeoutError, PyMongoError):
            log.info("MongoDB does not answer; this process's claim on the store will expire by itself")
        finally:
            _held.discard(self.id)

    async def _write(self) -> None:
        fields = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "shared": self.shared,
            "open": self._opened,
        }
        await self._servers.update_one({"_id": self.id}, {"$set": fields, **_NOW}, upsert=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            try:
                # Not an upsert, which would restore a document that is being removed.
                known = (await self._servers.update_one({"_id": self.id}, _NOW)).matched_count
                raise_swallowed_cancellation()
                self._problem.end()
                if not known:
                    await self._write()
                    log.warning(
                        "this process was paused for so long that another one may have opened the store; "
                        "make sure that only one server runs, or that all share one Redis"
                    )
            except PyMongoError as error:
                self._problem.start(brief(error))

    async def _wait_for_conflicts(self) -> None:
        first_seen: dict[str, object] = {}
        since = asyncio.get_running_loop().time()
        while conflicts := [other for other in await self._others() if await self._conflicts(other)]:
            for other in conflicts:
                if other.get("open"):
                    seen = first_seen.setdefault(other["_id"], other.get("seen"))
                    alive = other["_id"] in _held or other.get("seen") != seen
                    if not alive and asyncio.get_running_loop().time() - since > LEASE_SECONDS:
                        # Its age never exceeds the lease if MongoDB's clock was ahead when it was written.
                        await self._remove(other)
                else:  # it is being opened too: one process gives up, and the other one waits for that
                    alive = other["_id"] < self.id and not _is_dead(other)
                if alive:
                    raise StoreInUse(self._in_use(other))
            await asyncio.sleep(POLL_SECONDS)

    async def _others(self) -> list[Document]:
        """The other processes' documents. `age`: in milliseconds, by MongoDB's clock."""
        age = {"$dateDiff": {"startDate": "$seen", "endDate": "$$NOW", "unit": "millisecond"}}
        return await aggregate(
            self._servers, [{"$match": {"_id": {"$ne": self.id}}}, {"$addFields": {"age": age}}]
        )

    async def _conflicts(self, other: Document) -> bool:
        """Whether both cannot have the store open. Removes the claim of a dead process."""
        if _is_dead(other) and await self._remove(other):
            return False
        return not (self.shared and other.get("shared"))

    async def _remove(self, other: Document) -> bool:
        """False if it was renewed since it was read."""
        removed = await self._servers.delete_one({"_id": other["_id"], "seen": other.get("seen")})
        return removed.deleted_count > 0

    def _in_use(self, other: Document) -> str:
        where = f"the store is in use by process {other.get('pid')} on {other.get('host')}"
        if self.shared:
            return (
                f"{where}, which does not share it; stop that process, or give all of them one Redis as state"
            )
        if other.get("shared"):
            return f"{where}, which shares it; stop that process, or give this one the same Redis as state"
        return f"{where}; stop that process: several can share a store only if they share a Redis"


def _is_dead(other: Document) -> bool:
    """Whether its lease has expired, or it ran on this machine and has ended."""
    pid = other.get("pid")
    if (other.get("age") or 0) > LEASE_SECONDS * 1_000:
        return True
    if other.get("machine") != _machine() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return other["_id"] not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's process
    return False


def _machine() -> str:
    """Within this scope a pid names one process: a boot of a machine, and a container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
