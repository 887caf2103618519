"""Outgoing messages of `imqtt send`: their content, and sending them."""

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec

from imqtt.cli.client import SILENT
from imqtt.cli.connection import DeviceAccess
from imqtt.cli.output import complain, print_json, print_line
from imqtt.cli.stdin import stdin_bytes
from imqtt.client import Client
from imqtt.errors import Invalid, NotConnected, SetupError
from imqtt.model import Content, canonical_json


@dataclass
class Outgoing:
    """Sends messages, each after the one before it is stored. `where`: options that locate the outbox."""

    client: Client
    access: DeviceAccess
    conversation: str
    wait: float
    where: str
    as_json: bool

    async def send(self, content: Content, message_id: str = "", waited: float = 0.0) -> None:
        """Returns when it is stored. Raises `NotConnected` after `wait` seconds, or the server's refusal.

        `waited`: seconds of `wait` that were spent on connecting.
        """
        message_id = message_id or uuid4().hex
        try:
            async with asyncio.timeout(max(self.wait - waited, min(self.wait, 1.0))):
                accepted = await self.client.send(self.conversation, content, client_msg_id=message_id)
        except TimeoutError:
            state = self.client.state
            why = SILENT if state.silent else state.reason or "no answer"
            raise NotConnected(
                f"not known to be stored after {self.wait:g} s ({why}); {self._left(message_id)}"
            ) from None
        except asyncio.CancelledError:
            complain(f"interrupted: not known to be stored; {self._left(message_id)}")
            raise
        if self.as_json:
            print_json(accepted)
        else:
            print_line(f"stored: {accepted.conversation} {accepted.seq}")

    def _left(self, message_id: str) -> str:
        """What happens to a message without an answer."""
        if self.access.store is None:
            return "this device keeps no outbox (--device-store), so it is not sent again"
        device = self.access.device
        return (
            f"it stays in the outbox, and the next command of {device} sends it;"
            f" `imqtt outbox discard {shlex.quote(message_id)} --user {device.user} --device {device.device}"
            f"{self.where}` takes it back"
        )


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
