"""The client of `send`, `tail` and `history`, which reports changes of its connection on stderr."""

import asyncio
import contextlib
import difflib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

from imqtt.cli.connection import Connection
from imqtt.cli.data import data_option
from imqtt.cli.formatting import peer_of
from imqtt.cli.output import complain
from imqtt.client import Client, ConnectionState, Phase, Timing
from imqtt.errors import DeviceStoreInUse, TakenOver, TlsFailed
from imqtt.model import Device

TIMING = replace(Timing(), answer=3.0, idle=5.0)
"""A person waits: the server's silence is noticed in 3 seconds if something is asked, else in 8."""

_UNHEARD = logging.NullHandler()

ACT = {TakenOver: "takeover", TlsFailed: "tls"}
"""Errors that pass only if somebody does something, and what `StateNews` calls them."""

SILENT = "connected to the broker; the imqtt server does not answer"


@contextlib.asynccontextmanager
async def open_client(connection: Connection, *, wait: float, patient: bool = False) -> AsyncIterator[Client]:
    """A client that has caught up, or has not within `wait` seconds. Raises as `Client` does.

    Unless it is `patient`, it raises `TlsFailed` at once: waiting does not mend a certificate or an option.
    """
    client = make_client(connection, platform="imqtt command line", wait=wait)
    telling = asyncio.create_task(_tell_states(client, patient=patient), name="states")
    try:
        async with contextlib.AsyncExitStack() as stack:
            with naming_the_holder(connection.device, connection.data):
                await stack.enter_async_context(client)
            if isinstance(client.state.error, TlsFailed) and not patient:
                raise client.state.error
            yield client
    finally:
        telling.cancel()


def make_client(connection: Connection, *, platform: str, wait: float) -> Client:
    # Errors are told in our own words. Without any handler, `logging` would print those of libraries as well.
    logging.getLogger().addHandler(_UNHEARD)
    return Client(
        user=connection.device.user,
        device=connection.device.device,
        password=connection.password,
        brokers=connection.brokers,
        store=connection.store,
        tls=connection.tls,
        platform=platform,
        wait=wait,
        timing=TIMING,
    )


@contextlib.contextmanager
def naming_the_holder(device: Device, data: Path) -> Iterator[None]:
    """Adds what to do if another process has the device's store open."""
    try:
        yield
    except DeviceStoreInUse as error:
        raise DeviceStoreInUse(
            f"{error.reason}; end it, or be another device:"
            f" `imqtt device add {device.user}@NAME --save{data_option(data)}`, then --device NAME"
        ) from error


def stranger(connection: Connection, conversation: str) -> str:
    """What to say of a conversation with a user who has no device here; empty if there is one, or unknown."""
    peer = peer_of(connection.device.user, conversation)
    if not peer or connection.users is None or peer in connection.users:
        return ""
    similar = difflib.get_close_matches(peer, sorted(connection.users), 1)
    return f"no device of {peer} has a credential on this broker" + (
        f"; did you mean {similar[0]}?" if similar else ""
    )


class StateNews:
    """What there is to say when the connection's state changes. Says each thing once."""

    def __init__(self) -> None:
        self._trouble = ""

    def of(self, state: ConnectionState) -> str:
        """Empty if there is nothing new."""
        before = self._trouble
        if state.silent:
            self._trouble = "silence"
            return "" if before == "silence" else f"{SILENT}; trying again"
        # Of a takeover it is known only when the broker has accepted the next connection.
        is_told = state.phase is Phase.IDLE or (
            state.phase is Phase.CONNECTING and isinstance(state.error, TakenOver)
        )
        if is_told and state.reason:
            # One trouble has many reasons in a row. These two are told also in the middle of another one.
            special = next((name for kind, name in ACT.items() if isinstance(state.error, kind)), "")
            is_known = before == special if special else bool(before)
            self._trouble = special or before or "connection"
            return "" if is_known else f"no connection, trying again: {state.reason}"
        if state.phase is Phase.ESTABLISHED:
            if isinstance(state.error, TakenOver):
                return ""  # for how long, the other process decides
            self._trouble = ""
            return {"": "", "silence": "the imqtt server answers again"}.get(before, "connected again")
        return ""


async def _tell_states(client: Client, *, patient: bool) -> None:
    news = StateNews()
    async for state in client.states():
        is_raised = isinstance(state.error, TlsFailed) and not patient
        if not is_raised and (said := news.of(state)):
            complain(said)
