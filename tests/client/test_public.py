"""The public members of the SDK, and their errors while the client is not open."""

import contextlib
import inspect
from collections.abc import Awaitable, Callable

import pytest

import imqtt.client
from imqtt.client import Client, Format, Notice, Phase
from imqtt.errors import ClientError
from imqtt.model import Id, Position
from tests.client.conftest import Devices
from tests.client.fake_server import FakeServer

TALK = "d:alice:bob"

NEED_AN_OPEN_CLIENT: dict[str, Callable[[Client], object]] = {
    "caught_up": lambda client: client.caught_up(),
    "conversation": lambda client: client.conversation(TALK),
    "conversations": lambda client: client.conversations(),
    "counts": lambda client: client.counts,
    "discard": lambda client: client.discard(TALK, "m1"),
    "events": lambda client: client.events(),
    "history": lambda client: client.history(TALK),
    "mark_read": lambda client: client.mark_read(TALK),
    "marks": lambda client: client.marks(TALK),
    "outbox": lambda client: client.outbox(),
    "post": lambda client: client.post(TALK, "hi"),
    "presence_of": lambda client: client.presence_of("bob"),
    "recall": lambda client: client.recall(TALK, Position(1, Id(1))),
    "send": lambda client: client.send(TALK, "hi"),
    "set_status": lambda client: client.set_status("away"),
    "typing": lambda client: client.typing(TALK),
    "view": lambda client: client.view(TALK),
    "unread": lambda client: client.unread(TALK),
}
ALWAYS_AVAILABLE = {"close", "direct", "notices", "state", "states"}


async def use(client: Client, member: str) -> object:
    result = NEED_AN_OPEN_CLIENT[member](client)
    return await result if isinstance(result, Awaitable) else result


def test_every_public_member_of_the_client_is_listed_here() -> None:
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == NEED_AN_OPEN_CLIENT.keys() | ALWAYS_AVAILABLE


@pytest.mark.parametrize("member", NEED_AN_OPEN_CLIENT)
async def test_a_member_of_a_client_that_was_not_entered_raises_client_error(member: str) -> None:
    client = Client(user="alice", device="phone", password="secret")
    with pytest.raises(ClientError, match="the client is not open"):
        await use(client, member)


async def test_a_client_that_was_not_entered_has_a_state_and_may_be_closed() -> None:
    client = Client(user="alice", device="phone", password="secret")
    assert client.direct("bob") == TALK
    assert client.state.phase is Phase.IDLE
    assert (await anext(client.states())) == client.state
    client.notices().close()
    await client.close()


async def test_a_closed_client_raises_nothing_but_client_errors(fake: FakeServer, device: Devices) -> None:
    async with device() as client:
        pass
    for member in NEED_AN_OPEN_CLIENT:
        with contextlib.suppress(ClientError):
            await use(client, member)
    with pytest.raises(StopAsyncIteration):
        await anext(client.events())
    await client.close()


def test_the_exported_members_are_all_that_the_package_imports() -> None:
    imported = {
        name
        for name, value in vars(imqtt.client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported == set(imqtt.client.__all__)
    assert sorted(imqtt.client.__all__) == imqtt.client.__all__


def test_everything_public_has_a_docstring() -> None:
    for name in imqtt.client.__all__:
        value = getattr(imqtt.client, name)
        if value is Notice:
            continue  # a union, whose members are exported or in `imqtt.model`
        assert value.__doc__, name
        methods = () if value in (Format, Phase) else vars(value).items()
        for member, function in methods:
            if not member.startswith("_") and (
                inspect.isfunction(function) or isinstance(function, property)
            ):
                assert function.__doc__, f"{name}.{member}"
