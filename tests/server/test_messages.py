"""One message, end to end, between devices that know only the wire format."""

from collections.abc import Awaitable, Callable

import pytest

from imqtt.model import Accepted, Content, Event, Id, JsonText, Position, Rejected, Send
from imqtt.protocol import Format
from imqtt.server import partition
from imqtt.server.app import Server
from tests.device import RawDevice

Make = Callable[..., Awaitable[RawDevice]]


async def test_a_message_is_accepted_and_reaches_all_other_devices(running: Server, device: Make) -> None:
    phone, tablet = await device("alice@phone"), await device("alice@tablet")
    laptop = await device("bob@laptop", format=Format.PROTOBUF)
    for client in (phone, tablet, laptop):
        await client.hello()
    answer = await phone.send("d:alice:bob", "m1", "hello bob")
    assert isinstance(answer, Accepted)
    assert answer.seq == 1
    for client in (tablet, laptop):
        event = await client.frame(Event)
        assert (event.seq, event.id, event.sender, event.device) == (1, answer.id, "alice", "phone")
        assert event.content.text == "hello bob"
        assert event.time == answer.time == answer.id.time
    assert phone.events("d:alice:bob") == []


async def test_every_kind_of_content_arrives_as_it_was_sent(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop", format=Format.PROTOBUF)
    await bob.hello()
    contents = [
        Content(text="Grüße\u0000 👋", mentions=("bob",), reply_to=Position(1, Id(7))),
        Content(data=b"\x00\xff", content_type="application/octet-stream"),
        Content(json=JsonText('{"a":[1,2.5,null,"é"]}')),
    ]
    for number, content in enumerate(contents):
        await alice.command(Send("d:alice:bob", f"m{number}", content, client_time=99))
        assert isinstance(await alice.answer(f"m{number}"), Accepted)
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == 3)
    assert [event.content for event in bob.events("d:alice:bob")] == contents
    assert bob.events("d:alice:bob")[0].client_time == 99


async def test_a_resent_message_keeps_its_position_and_reaches_no_device_again(
    running: Server, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Just after a takeover, a stored message is published again: its previous owner may not have done it.
    monkeypatch.setattr(partition, "TAKEOVER_SECONDS", 0.0)
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await bob.hello()
    first = await alice.send("d:alice:bob", "m1")
    again = await alice.send("d:alice:bob", "m1")
    assert again == first
    last = await alice.send("d:alice:bob", "m2")
    assert isinstance(last, Accepted)
    assert last.seq == 2
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == 2)
    assert [event.client_msg_id for event in bob.events("d:alice:bob")] == ["m1", "m2"]


async def test_a_client_msg_id_used_for_other_content_is_a_conflict(running: Server, device: Make) -> None:
    alice = await device("alice@phone")
    await alice.send("u:alice", "m1", "one")
    answer = await alice.send("u:alice", "m1", "two")
    assert isinstance(answer, Rejected)
    assert (answer.code, answer.retryable) == ("conflict", False)


async def test_two_users_talking_at_once_see_one_order(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    watcher = await device("alice@watcher")
    for client in (alice, bob, watcher):
        await client.hello()
    count = 300
    for number in range(count):
        await alice.command(Send("d:alice:bob", f"a{number}", Content(text=str(number))))
        await bob.command(Send("d:alice:bob", f"b{number}", Content(text=str(number))))
    await watcher.until(lambda frame: isinstance(frame, Event) and frame.seq == 2 * count)
    events = watcher.events("d:alice:bob")
    assert [event.seq for event in events] == list(range(1, 2 * count + 1))
    for sender in ("alice", "bob"):
        own = [event.content.text for event in events if event.sender == sender]
        assert own == [str(number) for number in range(count)]


@pytest.mark.parametrize("format", list(Format))
async def test_commands_published_to_partition_0_are_forwarded_in_order(
    running: Server, device: Make, format: Format
) -> None:
    alice, bob = await device("alice@phone", format=format), await device("bob@laptop")
    await bob.hello()
    for number in range(20):
        await alice.command(Send("d:alice:bob", f"m{number}", Content(text="hi")), to=0)
    answer = await alice.answer("m19")
    assert isinstance(answer, Accepted)
    assert answer.seq == 20
    await bob.until(lambda frame: isinstance(frame, Event) and frame.seq == 20)
    assert [event.client_msg_id for event in bob.events("d:alice:bob")] == [f"m{n}" for n in range(20)]


async def test_any_first_command_registers_a_device(running: Server, device: Make) -> None:
    tablet = await device("alice@tablet", format=Format.PROTOBUF)
    await tablet.send("u:alice", "note", "to self")
    phone = await device("alice@phone")
    await phone.send("u:alice", "reply", "seen")
    event = await tablet.frame(Event)
    assert event.content.text == "seen"


async def test_an_unregistered_device_can_write_to_a_user_without_devices(
    running: Server, device: Make
) -> None:
    alice = await device("alice@phone")
    assert isinstance(await alice.send("d:alice:zoe", "m1", "for later"), Accepted)
    zoe = await device("zoe@phone")
    _, page = await zoe.hello()
    assert [head.conversation for head in page.heads] == ["d:alice:zoe"]
    assert page.slices[0].events[0].content.text == "for later"


async def test_a_device_receives_frames_in_order_of_seq(running: Server, device: Make) -> None:
    alice, bob = await device("alice@phone"), await device("bob@laptop")
    await alice.hello()
    await bob.hello()
    for number in range(200):
        await alice.command(Send("d:alice:bob", f"a{number}", Content(text="hi")))
        await bob.command(Send("d:alice:bob", f"b{number}", Content(text="hi")))
    for client in (alice, bob):
        await client.until(lambda frame: isinstance(frame, Accepted | Event) and frame.seq == 400)
        seqs = [frame.seq for frame in client.frames if isinstance(frame, Accepted | Event)]
        assert seqs == list(range(1, 401))
