"""The commands of `imqtt send` and `imqtt recall`: the content of messages, and waiting for answers."""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec

from imqtt.cli.client import fetch, open_client, seconds_left, why_unanswered
from imqtt.cli.connection import ConnectionOptions, DeviceAccess
from imqtt.cli.data import data_option
from imqtt.cli.formatting import words_of
from imqtt.cli.output import complain, print_result
from imqtt.cli.stdin import stdin_bytes
from imqtt.client import Client, Phase
from imqtt.errors import Invalid, NotConnected, NotFound, SetupError
from imqtt.model import Accepted, Content, canonical_json


@dataclass
class Outgoing:
    """Sends commands, and prints that they are stored. `where`: options that locate the outbox.

    The methods raise `NotConnected` when `wait` seconds have passed since `begun`, and the server's refusal.
    """

    client: Client
    access: DeviceAccess
    conversation: str
    wait: float
    where: str
    as_json: bool

    async def send(self, content: Content, begun: float, message_id: str = "") -> None:
        message_id = message_id or uuid4().hex
        sent = self.client.send(self.conversation, content, client_msg_id=message_id)
        accepted = await self._answer(sent, begun, message_id)
        print_result(accepted, f"stored: {self.conversation} {accepted.seq}", as_json=self.as_json)

    async def recall(self, seq: int, begun: float) -> None:
        found = await fetch(self.client, self.conversation, seq + 1, 1, wait=self.wait, begun=begun)
        if not found or found[0].seq != seq:
            if self.client.state.silent or self.client.state.phase is not Phase.ESTABLISHED:
                why = why_unanswered(self.client)
                raise NotConnected(f"{self.access.device} does not hold message {seq}: {why}")
            raise NotFound(f"{self.conversation} has no message {seq}; `imqtt history` shows each one's seq")
        if found[0].kind != "message":
            raise NotFound(f"{self.conversation} {seq} is not a message: {words_of(found[0])}")
        message_id = uuid4().hex
        sent = self.client.recall(self.conversation, found[0].position, client_msg_id=message_id)
        accepted = await self._answer(sent, begun, message_id)
        print_result(accepted, f"recalled: {self.conversation} {seq}", as_json=self.as_json)

    async def _answer(self, sent: Awaitable[Accepted], begun: float, message_id: str) -> Accepted:
        try:
            async with asyncio.timeout(seconds_left(self.wait, begun)):
                return await sent
        except TimeoutError:
            why = why_unanswered(self.client)
            raise NotConnected(
                f"not known to be stored after {self.wait:g} s ({why}); {self._left(message_id)}"
            ) from None
        except asyncio.CancelledError:
            complain(f"interrupted: not known to be stored; {self._left(message_id)}")
            raise

    def _left(self, message_id: str) -> str:
        """What happens to a command without an answer."""
        if self.access.store is None:
            return "this device keeps no outbox (--device-store), so it is not sent again"
        device = self.access.device
        return (
            f"it stays in the outbox, and the next command of {device} sends it;"
            f" `imqtt outbox discard {shlex.quote(message_id)} --user {device.user} --device {device.device}"
            f"{self.where}` removes it"
        )


@contextlib.asynccontextmanager
async def connected(
    access: DeviceAccess, options: ConnectionOptions, conversation: str, wait: float, *, as_json: bool
) -> AsyncIterator[Outgoing]:
    """Connects, for at most three seconds, and yields an `Outgoing` for this conversation."""
    where = data_option(options.data)
    if options.device_store is not None:
        where += f" --device-store {shlex.quote(str(options.device_store))}"
    async with contextlib.AsyncExitStack() as stack:
        opening = open_client(access, {conversation}, wait=min(wait, 3.0))
        try:
            client = await stack.enter_async_context(opening)
        except asyncio.CancelledError:
            complain("interrupted: not sent, and not put into the outbox")
            raise
        yield Outgoing(client, access, conversation, wait, where, as_json)


def body_of(text: list[str] | None, file: Path | None) -> bytes:
    """The text of the arguments, or the content of a file or stdin. Raises `SetupError`."""
    if text:
        return " ".join(text).encode(errors="surrogateescape")
    if file is None or str(file) == "-":
        return stdin_bytes()
    try:
        return file.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {file}: {error.strerror}") from error


def content_of(body: bytes, content_type: str) -> Content:
    """Text, a JSON value, or bytes with their type. Raises `Invalid`."""
    if content_type in ("", "text/plain"):
        try:
            return Content(text=body.decode())
        except UnicodeDecodeError:
            raise Invalid("this is not text in UTF-8: give its type with --content-type") from None
    if content_type == "application/json":
        try:
            return Content(json=canonical_json(msgspec.json.decode(body)))
        except ValueError as error:
            reason = str(error).removeprefix("JSON is malformed: ")
            raise Invalid(f"the content is not valid JSON: {reason}") from None
    return Content(data=body, content_type=content_type)
