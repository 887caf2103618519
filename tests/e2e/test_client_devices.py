"""The SDK on the real server: several devices of two users, offline and online again."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.client import Client, Phase
from imqtt.errors import Conflict, CredentialsRefused, Invalid, NotAllowed, Unsupported
from imqtt.model import Event
from imqtt.mosquitto.broker import Mosquitto
from tests.client.conftest import Devices, device
from tests.client.test_messages import TALK, take, texts
from tests.services import WITHIN, ServerProcess, eventually

__all__ = ["device"]  # the fixture


async def all_history(client: Client, conversation: str = TALK) -> list[Event]:
    return await client.history(conversation, limit=100_000)


async def test_all_devices_hold_the_same_log(server: ServerProcess, device: Devices) -> None:
    names = ("alice@phone", "alice@laptop", "bob@phone", "bob@tablet")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(device(name, start="beginning")) for name in names]
        iterators = [client.events("all") for client in clients]
        await asyncio.gather(
            *(
                client.send(TALK, f"{number} of {place}")
                for place, client in enumerate(clients)
                for number in range(25)
            )
        )
        logs = [await take(iterator, 100) for iterator in iterators]
        assert [event.seq for event in logs[0]] == list(range(1, 101))
        assert logs[0] == logs[1] == logs[2] == logs[3]
        for place in range(4):
            own = [text for text in texts(logs[0]) if text and text.endswith(f"of {place}")]
            assert own == [f"{number} of {place}" for number in range(25)]
        await clients[3].mark_read(TALK)
        for client in clients[:3]:
            await eventually(lambda client=client: marked(client, "bob", 100))
        summary = await clients[2].conversation(TALK)
        assert summary is not None
        assert summary.unread == 0  # read on another device


async def marked(client: Client, user: str, read: int) -> bool:
    marks = (await client.marks(TALK)).get(user)
    return marks is not None and marks.read == read


async def test_a_device_that_comes_back_gets_everything_once(server: ServerProcess, device: Devices) -> None:
    async with device("bob@phone", stored=True):
        pass
    async with device("alice@phone") as alice:
        for conversation in (TALK, "u:alice"):
            await asyncio.gather(*(alice.send(conversation, str(number)) for number in range(230)))
        async with device("bob@phone", stored=True) as bob:
            assert texts(await take(bob.events("reader"), 230)) == [str(number) for number in range(230)]
            assert [summary.conversation for summary in await bob.conversations()] == [TALK]
            await alice.send(TALK, "last")
            assert texts(await take(bob.events("reader"), 2))[-1] == "last"
            assert await all_history(bob) == await all_history(alice)


async def test_a_new_device_reads_back_to_the_start(server: ServerProcess, device: Devices) -> None:
    async with device("alice@phone") as alice:
        await asyncio.gather(*(alice.send(TALK, str(number)) for number in range(250)))
        async with device("bob@new") as bob:
            summary = await bob.conversation(TALK)
            assert summary is not None
            assert (summary.head.seq, summary.unread, summary.unread_at_most) == (250, 100, 250)
            assert await bob.unread("alice") == 250
            assert texts(await bob.history(TALK, limit=3)) == ["247", "248", "249"]
            assert await all_history(bob) == await all_history(alice)


async def test_refusals_of_the_server_are_raised(server: ServerProcess, device: Devices) -> None:
    async with device("alice@phone") as alice:
        for conversation, error in (
            ("d:bob:carol", NotAllowed), ("d:bob:alice", Invalid), ("g:team", Unsupported), ("x:y", Invalid),
        ):  # fmt: skip
            with pytest.raises(error):
                await alice.send(conversation, "hi")
        await alice.send(TALK, "hi", client_msg_id="m1")
        with pytest.raises(Conflict):
            await alice.send(TALK, "other", client_msg_id="m1")
        with pytest.raises(NotAllowed):
            await alice.history("d:bob:carol")
        assert (await alice.send(TALK, "fine")).seq == 2


async def test_presence_and_typing_reach_the_other_user(
    broker: Mosquitto, device: Devices, tmp_path: Path
) -> None:
    # A long interval, so that no device repeats its status within the test.
    server = ServerProcess(broker, tmp_path, forked=True, presence_ttl=10 * int(WITHIN))
    async with server, device("alice@phone") as alice:
        await alice.send(TALK, "hi")
        async with device("bob@phone") as bob:
            await eventually(lambda: present(alice, "bob", "online"))
            await eventually(lambda: present(bob, "alice", "online"))
            notices = alice.notices()
            await bob.typing(TALK)
            async with asyncio.timeout(WITHIN):
                async for notice in notices:
                    if getattr(notice, "typing", False):
                        break
            await bob.set_status("away")
            await eventually(lambda: present(alice, "bob", "away"))
        await eventually(lambda: present(alice, "bob", "offline"))


def present(client: Client, user: str, state: str) -> bool:
    presence = client.presence_of(user)
    return presence is not None and presence.state == state


async def test_a_device_killed_in_mid_send_loses_nothing_that_it_posted(
    server: ServerProcess, device: Devices, broker: Mosquitto, tmp_path: Path
) -> None:
    password, store = broker.passwords.add("alice@phone"), tmp_path / "alice.db"
    arguments = (f"{broker.host}:{broker.port}", password, str(store), TALK)
    posted = -1
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.client.sending_process", *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        start = posted
        async for line in process.stdout:
            what, number = line.split()
            if what == b"posted":
                posted = int(number)
            if posted - start > 150:
                break
        process.kill()
        for line in (await process.stdout.read()).splitlines():
            if line.startswith(b"posted"):
                posted = int(line.split()[1])
        await process.wait()
    async with device("alice@phone", password=password, store=store) as alice:
        await eventually(lambda: nothing_unsent(alice))
        log = await all_history(alice)
        numbers = [int(text) for text in texts(log) if text is not None]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > posted
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
    async with device("bob@phone", start="beginning") as bob:
        assert await take(bob.events("all"), len(log)) == log


async def nothing_unsent(client: Client) -> bool:
    return not await client.outbox()


async def test_broker_and_server_are_killed_and_restarted_while_all_devices_send(
    server: ServerProcess, device: Devices, broker: Mosquitto
) -> None:
    async with device("alice@phone") as alice, device("bob@phone") as bob:
        alices, bobs = alice.events(), bob.events()

        async def send(client: Client, name: str) -> None:
            for number in range(120):
                await client.send(TALK, f"{name}{number}")

        sending = asyncio.gather(send(alice, "a"), send(bob, "b"))
        await eventually(lambda: seen(alice, 40))
        await broker.kill()
        await broker.start()
        await eventually(lambda: seen(alice, 100))
        await server.kill()
        await server.start()
        await asyncio.wait_for(sending, WITHIN)
        log = await take(alices, 240)
        assert log == await take(bobs, 240)
        for name in "ab":
            assert [text for text in texts(log) if text and text[0] == name] == [
                f"{name}{number}" for number in range(120)
            ]


async def seen(client: Client, seq: int) -> bool:
    summary = await client.conversation(TALK)
    return summary is not None and summary.head.seq >= seq


async def test_revoked_credentials_end_a_client_at_its_next_connection(
    server: ServerProcess, device: Devices, broker: Mosquitto
) -> None:
    async with device("alice@phone") as alice:
        broker.passwords.remove_all(["alice@phone"])
        await broker.kill()
        await broker.start()
        with pytest.raises(CredentialsRefused):
            await asyncio.wait_for(alice.send(TALK, "hi"), WITHIN)
        assert alice.state.phase is Phase.CLOSED


@pytest.fixture
async def program(broker: Mosquitto) -> AsyncIterator[object]:
    """Starts an example; stops it at the end."""
    running: list[asyncio.subprocess.Process] = []

    async def start(name: str, *arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"imqtt.client.examples.{name}", f"{broker.host}:{broker.port}", *arguments,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("name", ["bot", "send_and_wait", "two_devices"])
async def test_an_example_without_arguments_prints_its_usage(name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"imqtt.client.examples.{name}", stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), WITHIN)
    assert process.returncode == 1
    assert errors.startswith(f"usage: python -m imqtt.client.examples.{name} BROKER ".encode())
    assert errors.count(b"\n") == 1


async def test_the_bot_answers_and_continues_after_a_kill(
    server: ServerProcess, device: Devices, broker: Mosquitto, program: object, tmp_path: Path
) -> None:
    password, store = broker.passwords.add("echo@bot"), str(tmp_path / "echo.db")
    async with device("alice@phone") as alice:
        events = alice.events()
        talk = alice.direct("echo")
        await alice.send(talk, "before you came")
        bot = await program("bot", password, store)  # type: ignore[operator]
        assert texts(await take(events, 2)) == ["before you came", "You said: before you came"]
        bot.kill()
        await bot.wait()
        await alice.send(talk, "while you were away")
        await program("bot", password, store)  # type: ignore[operator]
        assert texts(await take(events, 2)) == ["while you were away", "You said: while you were away"]
        assert [event.seq for event in await all_history(alice, talk)] == [1, 2, 3, 4]


async def test_send_and_wait_prints_when_the_message_is_delivered_and_read(
    server: ServerProcess, device: Devices, broker: Mosquitto, program: object
) -> None:
    process = await program("send_and_wait", broker.passwords.add("alice@phone"), "bob", "Hi?")  # type: ignore[operator]
    assert (await process.stdout.readline()).startswith(b"stored at 1")
    async with device("bob@phone") as bob:
        assert (await process.stdout.readline()).strip() == b"delivered"
        await bob.mark_read(TALK)
        assert (await process.stdout.readline()).strip() == b"read"
    assert await process.wait() == 0


async def test_two_devices_of_one_user_share_messages_and_marks(
    server: ServerProcess, broker: Mosquitto, program: object
) -> None:
    passwords = [broker.passwords.add(f"alice@{name}") for name in ("phone", "laptop")]
    process = await program("two_devices", *passwords)  # type: ignore[operator]
    output, _ = await asyncio.wait_for(process.communicate(), WITHIN)
    assert output.decode().splitlines() == ["on the laptop: buy milk", "unread on the phone: 0"]
