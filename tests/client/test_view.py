"""A conversation as a program displays it, from what the device holds."""

from imqtt.client import Hole, Message, Refused
from imqtt.model import Marks, Rejected, Send
from tests.client.conftest import Devices
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK, take
from tests.services import eventually


async def test_a_view_has_messages_with_receipts_and_pending_messages(
    fake: FakeServer, device: Devices
) -> None:
    async with device(stored=True) as alice:
        await alice.send(TALK, "one")
        await alice.send(TALK, "two")
        await fake.send("alice@phone", Marks(TALK, "bob", 2, 1))

        async def is_marked() -> bool:
            return "bob" in await alice.marks(TALK)

        await eventually(is_marked)
        fake.silent = True
        waiting = await alice.post(TALK, "three")
        await alice.post("d:alice:carol", "elsewhere")
        view = await alice.view("bob")
        assert [
            (message.content.text, message.delivered, message.read) for message in messages(view.items)
        ] == [
            ("one", ("bob",), ("bob",)),
            ("two", ("bob",), ()),
        ]
        assert [(entry.client_msg_id, entry.refused) for entry in view.pending] == [(waiting, "")]
    async with device(stored=True, wait=0, brokers="127.0.0.1:1") as offline:
        assert await offline.view(TALK) == view
        assert [message.content.text for message in messages((await offline.view(TALK, 1)).items)] == ["two"]
        assert (await offline.view(TALK, 1)).first == 2


async def test_a_refused_message_stays_in_the_view(fake: FakeServer, device: Devices) -> None:
    def refuse(command: object) -> Rejected | None:
        if not isinstance(command, Send):
            return None
        return Rejected("not_allowed", "no", False, "send", command.conversation, command.client_msg_id)

    fake.refuse = refuse
    async with device() as alice:
        notices = alice.notices()
        await alice.post(TALK, "hi")
        assert isinstance(await anext(notices), Refused)
        view = await alice.view(TALK)
        assert (view.first, view.items) == (1, ())
        assert [(entry.content.text, entry.refused) for entry in view.pending] == [("hi", "not_allowed")]


async def test_events_ahead_of_a_missing_one_are_behind_a_hole(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        events = alice.events()
        stored = [fake.store(TALK, text) for text in ("one", "two", "three")]
        fake.silent = True  # nobody answers for the missing event
        await fake.send("alice@phone", stored[0], stored[2])
        await take(events, 1)
        await eventually(lambda: alice._parts.replica.logs[TALK].order.buffered)
        first, hole, third = (await alice.view(TALK)).items
        assert hole == Hole(2, 2)
        assert [message.content.text for message in messages((first, third))] == ["one", "three"]
        await fake.send("alice@phone", stored[1])
        assert await take(events, 2) == stored[1:]
        assert [message.content.text for message in messages((await alice.view(TALK)).items)] == [
            "one",
            "two",
            "three",
        ]


async def test_a_conversation_without_events_has_an_empty_view(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        view = await alice.view("carol")
        assert (view.conversation, view.first, view.items, view.pending) == ("d:alice:carol", 1, (), ())


def messages(items: "tuple[Message | Hole, ...]") -> list[Message]:
    return [message for message in items if isinstance(message, Message)]
