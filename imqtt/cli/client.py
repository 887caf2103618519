"""The SDK client of the commands, and reports on stderr about changes of its connection."""

import asyncio
import contextlib
import difflib
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from imqtt.cli.connection import DeviceAccess
from imqtt.cli.data import data_option
from imqtt.cli.formatting import peer_of
from imqtt.cli.output import complain
from imqtt.cli.signals import beside
from imqtt.client import Client, ConnectionState, Phase, Timing
from imqtt.errors import DeviceStoreInUse, NotConnected, TakenOver, TlsFailed
from imqtt.model import Device, Event

TIMING = replace(Timing(), answer=3.0, idle=5.0)
"""Shorter than the default, because a person waits: a silent server is noticed after 3 to 8 seconds."""

_NO_LOG = logging.NullHandler()

SILENT = "connected to the broker; the imqtt server does not answer"


@contextlib.asynccontextmanager
async def open_client(
    access: DeviceAccess, conversations: Collection[str], *, wait: float, patient: bool = False
) -> AsyncIterator[Client]:
    """Yields a client that has caught up, or has tried for `wait` seconds. Raises like `Client`.

    Unless `patient`, raises `TlsFailed` at once, because waiting does not help. Warns of strangers.
    """
    for conversation in sorted(conversations):
        if warning := stranger(access, conversation):
            complain(warning)
    client = make_client(access, platform="imqtt command line", wait=wait)
    with naming_the_holder(access.device, access.data):
        async with beside(_tell_states(client, patient=patient), "states"), client:
            if isinstance(client.state.error, TlsFailed) and not patient:
                raise client.state.error
            yield client


def make_client(access: DeviceAccess, *, platform: str, wait: float) -> Client:
    # Without a handler, `logging` would also print the warnings of libraries to stderr.
    logging.getLogger().addHandler(_NO_LOG)
    return Client(
        user=access.device.user,
        device=access.device.device,
        password=access.password,
        brokers=access.brokers,
        store=access.store,
        tls=access.tls,
        platform=platform,
        wait=wait,
        timing=TIMING,
    )


async def fetch(
    client: Client, conversation: str, before: int | None, limit: int, *, wait: float, begun: float
) -> list[Event]:
    """`Client.history`. Raises `NotConnected` when `wait` seconds have passed since `begun`."""
    try:
        async with asyncio.timeout(seconds_left(wait, begun)):
            return await client.history(conversation, before, limit)
    except TimeoutError:
        raise NotConnected(f"no answer within {wait:g} s: {why_unanswered(client)}") from None


def seconds_left(wait: float, begun: float) -> float:
    """The rest of `wait` seconds since `begun`, but at least one second, for the device's own store."""
    return max(begun + wait - time.monotonic(), min(wait, 1.0))


def why_unanswered(client: Client) -> str:
    return SILENT if client.state.silent else client.state.reason or "is the server running?"


@contextlib.contextmanager
def naming_the_holder(device: Device, data: Path) -> Iterator[None]:
    """Adds advice to the error if another process has the device's store open."""
    try:
        yield
    except DeviceStoreInUse as error:
        raise DeviceStoreInUse(
            f"{error.reason}; end it, or use another device:"
            f" `imqtt device add {device.user}@NAME --save{data_option(data)}`, then --device NAME"
        ) from error


def stranger(access: DeviceAccess, conversation: str) -> str:
    """A warning if the peer has no device on this broker; empty if it has one, or if that is unknown."""
    peer = peer_of(access.device.user, conversation)
    if not peer or access.users is None or peer in access.users:
        return ""
    similar = difflib.get_close_matches(peer, sorted(access.users), 1)
    return f"no device of {peer} has a credential on this broker" + (
        f"; did you mean {similar[0]}?" if similar else ""
    )


class StateNews:
    """Reports changes of the connection's state, each only once."""

    def __init__(self) -> None:
        self._trouble = ""

    def of(self, state: ConnectionState) -> str:
        """The report about a state; empty without news."""
        before = self._trouble
        if state.silent:
            self._trouble = "silence"
            return "" if before == "silence" else f"{SILENT}; trying again"
        # A takeover is detected only once the broker has accepted the next connection.
        is_reported = state.phase is Phase.IDLE or (
            state.phase is Phase.CONNECTING and isinstance(state.error, TakenOver)
        )
        if is_reported and state.reason:
            # One trouble may have a series of reasons. What lasts until a person acts is always reported.
            special = state.error.code if isinstance(state.error, TakenOver | TlsFailed) else ""
            is_known = before == special if special else bool(before)
            self._trouble = special or before or "connection"
            return "" if is_known else f"no connection, trying again: {state.reason}"
        if state.phase is Phase.ESTABLISHED:
            if isinstance(state.error, TakenOver):
                return ""  # the other process may take it over again
            self._trouble = ""
            return {"": "", "silence": "the imqtt server answers again"}.get(before, "connected again")
        return ""


async def _tell_states(client: Client, *, patient: bool) -> None:
    news = StateNews()
    async for state in client.states():
        is_raised = isinstance(state.error, TlsFailed) and not patient
        if not is_raised and (report := news.of(state)):
            complain(report)
