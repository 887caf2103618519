"""`imqtt send`, `tail` and `history`: one device of one user, from scripts and by hand."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imqtt.cli import completion
from imqtt.cli.connection import Brokers, Connection, DeviceName, DeviceStore, Password, User, resolve
from imqtt.cli.data import DEFAULT, Data
from imqtt.cli.output import Json, complain, print_json, print_line
from imqtt.errors import Invalid, NotConnected, SetupError

if TYPE_CHECKING:
    from imqtt.client import Client
    from imqtt.model import Content, Event

To = Annotated[
    str,
    typer.Argument(
        metavar="TO",
        help="A user, or a conversation such as `d:alice:bob`; yourself for notes.",
        autocompletion=completion.peers,
    ),
]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0.1, help="How long to wait at most.")]


def send(
    to: To,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to say; without it, stdin.")
    ] = None,
    *,
    file: Annotated[Path | None, typer.Option("--file", help="Send a file's content; `-` is stdin.")] = None,
    content_type: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="What it is. Without one it is text; `application/json` is sent as the value it spells,"
            " anything else as bytes.",
        ),
    ] = "",
    lines: Annotated[bool, typer.Option("--lines", help="Each line of stdin is a message.")] = False,
    message_id: Annotated[
        str,
        typer.Option(
            metavar="ID", help="The message's client_msg_id: sending it again with the same one adds nothing."
        ),
    ] = "",
    wait: Wait = 30.0,
    as_json: Json = False,
    user: User = "",
    device: DeviceName = "",
    password: Password = "",
    brokers: Brokers = None,
    device_store: DeviceStore = None,
    data: Data = DEFAULT,
) -> None:
    """Send a message, and return when it is stored.

    From then on it cannot get lost. Status 1 says that it was refused, or is not known to be stored.
    """
    import asyncio

    from imqtt.cli.wording import conversation_with

    if lines and (text or file or message_id):
        raise typer.BadParameter("--lines reads messages from stdin: no TEXT, --file or --message-id with it")
    if text and file:
        raise typer.BadParameter("TEXT or --file, not both")
    connection = resolve(
        data=data, user=user, device=device, password=password, brokers=brokers, store=device_store
    )
    bodies = (line.rstrip(b"\r\n") for line in sys.stdin.buffer) if lines else iter((_body(text, file),))
    contents = (_content(body, content_type) for body in bodies)
    conversation = conversation_with(connection.device.user, to)

    async def main() -> None:
        async with _client(connection, wait) as client:
            for content in contents:
                try:
                    async with asyncio.timeout(wait):
                        accepted = await client.send(conversation, content, client_msg_id=message_id or None)
                except TimeoutError:
                    why = client.state.reason or "no answer"
                    raise NotConnected(
                        f"not known to be stored after {wait:g} s ({why})"
                        + ("; it is sent when this device connects again" if connection.store else "")
                    ) from None
                if as_json:
                    print_json(accepted)
                else:
                    print_line(f"stored: {accepted.conversation} {accepted.seq}")

    asyncio.run(main())


def tail(
    to: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TO]...",
            help="Users or conversations; without any, everything you get.",
            autocompletion=completion.peers,
        ),
    ] = None,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many; 0: never.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Begin where the last `tail --resume` of this device ended.")
    ] = False,
    read: Annotated[bool, typer.Option("--read", help="Tell the senders that it is read.")] = False,
    as_json: Json = False,
    user: User = "",
    device: DeviceName = "",
    password: Password = "",
    brokers: Brokers = None,
    device_store: DeviceStore = None,
    data: Data = DEFAULT,
) -> None:
    """Print messages as they arrive, each conversation's in order, until Ctrl-C.

    What becomes of the connection is told on stderr. With `--json`, each line is an event as it is on the
    wire.
    """
    from imqtt.cli import running
    from imqtt.cli.wording import conversation_with

    connection = resolve(
        data=data, user=user, device=device, password=password, brokers=brokers, store=device_store
    )
    if resume and connection.store is None:
        raise SetupError("--resume needs a place to remember where it ended: --device-store FILE")
    wanted = {conversation_with(connection.device.user, it) for it in to or ()}

    async def main() -> None:
        left = count
        async with _client(connection) as client, _told_states(client):
            events = client.events("tail" if resume else None)
            async for event in events:
                if wanted and event.conversation not in wanted:
                    continue
                _print_event(event, as_json=as_json)
                if read:
                    await client.mark_read(event.conversation, event.seq)
                left -= 1
                if left == 0:
                    await events.finish()
                    return

    running.run(main)


def history(
    to: To,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many messages at most.")] = 50,
    before: Annotated[
        int, typer.Option(metavar="SEQ", min=0, help="Only those before this one. 0: the newest.")
    ] = 0,
    wait: Wait = 10.0,
    as_json: Json = False,
    user: User = "",
    device: DeviceName = "",
    password: Password = "",
    brokers: Brokers = None,
    device_store: DeviceStore = None,
    data: Data = DEFAULT,
) -> None:
    """Print a conversation's messages, the oldest first."""
    import asyncio

    from imqtt.cli.wording import conversation_with

    connection = resolve(
        data=data, user=user, device=device, password=password, brokers=brokers, store=device_store
    )
    conversation = conversation_with(connection.device.user, to)

    async def main() -> "list[Event]":
        async with _client(connection, wait) as client:
            try:
                async with asyncio.timeout(wait):
                    return await client.history(conversation, before or None, limit)
            except TimeoutError:
                raise NotConnected(
                    f"no answer within {wait:g} s: {client.state.reason or 'is it up?'}"
                ) from None

    events = asyncio.run(main())
    if as_json:
        print_json(events)
        return
    for event in events:
        _print_event(event, as_json=False)
    if not events:
        print_line(f"Nothing in {conversation} yet.")


# --- what they have in common


def _client(connection: Connection, wait: float = 10.0) -> "Client":
    from imqtt.client import Client

    return Client(
        user=connection.device.user,
        device=connection.device.device,
        password=connection.password,
        brokers=connection.brokers,
        store=connection.store,
        platform="imqtt command line",
        wait=min(wait, 10.0),
    )


@contextlib.asynccontextmanager
async def _told_states(client: "Client") -> AsyncIterator[None]:
    """Says on stderr when the connection is lost, and when it is there again."""
    import asyncio

    from imqtt.client import Phase

    async def tell() -> None:
        lost = False
        async for state in client.states():
            if state.phase is Phase.ESTABLISHED and lost:
                complain("connected again")
            elif state.phase is Phase.IDLE and state.reason and not lost:
                complain(f"no connection, trying again: {state.reason}")
            lost = state.phase is not Phase.ESTABLISHED and (lost or bool(state.reason))

    task = asyncio.create_task(tell(), name="states")
    try:
        yield
    finally:
        task.cancel()


def _body(text: list[str] | None, file: Path | None) -> bytes:
    if text:
        return " ".join(text).encode(errors="surrogateescape")
    if file is None or str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {file}: {error.strerror}") from error


def _content(body: bytes, content_type: str) -> "Content":
    """Text, a JSON value, or bytes with their type."""
    import msgspec

    from imqtt.model import Content, canonical_json

    if content_type in ("", "text/plain"):
        try:
            return Content(text=body.decode())
        except UnicodeDecodeError:
            raise Invalid("this is not text in UTF-8: say what it is with --content-type") from None
    if content_type == "application/json":
        try:
            return Content(json=canonical_json(msgspec.json.decode(body)))
        except ValueError as error:
            raise Invalid(f"this is no JSON: {error}") from None
    return Content(data=body, content_type=content_type)


def _print_event(event: "Event", *, as_json: bool) -> None:
    from imqtt.cli.wording import local, words_of

    if as_json:
        print_json(event)
        return
    head = f"{local(event.time):%Y-%m-%d %H:%M:%S}  {event.conversation} {event.seq}  {event.sender}: "
    print_line(head + words_of(event).replace("\n", "\n" + " " * len(head)))
