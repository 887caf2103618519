"""Another client that takes over a server's session."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import ClassVar

from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link, LinkSettings, connect
from imqtt.server.app import SESSION_EXPIRY
from tests.verification.chaos.faults import WORKER_CONNECTIONS, WORKERS, Fault, Shape, wait_for_effect

TAKES = 4  # takeovers; the server doubles its wait after each
CLEAN = "clean rival"


class Rival(Fault):
    """`rival`: connects with a partition's client id, reads its messages and acks none; reconnects when cut
    off.

    `clean rival`: the same with `clean_start`, which discards the session's queue and subscriptions. Repaired
    by disconnecting the rival.
    """

    loses_state: ClassVar[Collection[str]] = (CLEAN,)
    hold: ClassVar[float] = 1.0

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        return [f"session {session}" for session in shape.sessions]

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        return {"broker", WORKERS, WORKER_CONNECTIONS}  # a worker holds the session

    async def fire(self) -> str:
        broker = self.stack.broker
        client = f"imqtt-server-{self.target.split()[1]}"
        self._client = client
        self.taken = 0  # commands
        self.ports: set[int] = set()  # its own ends of its connections
        since = broker.log_size
        self._task = asyncio.create_task(self._compete(), name=f"rival-{client}")
        try:
            await wait_for_effect(
                lambda: broker.has_logged_takeover(client, since),
                f"the takeover of {client}'s connection",
            )
        except AssertionError:
            await self.repair()
            raise
        return f"{client}'s connection was taken over"

    async def repair(self) -> str:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        return f"{self.taken} commands read and not acked"

    async def _compete(self) -> None:
        clean = self.kind == CLEAN
        settings = LinkSettings(
            **self.stack.internal(),  # type: ignore[arg-type]  # names are LinkSettings' own
            client_id=self._client,
            clean_start=clean,
            session_expiry=0 if clean else SESSION_EXPIRY,
        )
        for _ in range(TAKES):
            link: Link | None = None
            try:
                link = await connect(settings)
                assert link._transport is not None
                self.ports.add(link._transport.get_extra_info("sockname")[1])
                while True:
                    self.taken += len(await link.receive(100))
            except (LinkError, OSError, TimeoutError):
                await asyncio.sleep(self.rng.uniform(0.05, 0.5))
            finally:
                if link is not None:
                    link.abort()
