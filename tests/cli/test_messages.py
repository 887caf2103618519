"""`imqtt send`, `tail` and `history`, on a broker and a server that run."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imqtt.cli.mosquitto import Mosquitto
from tests.cli.commands import environment, imqtt, imqtt_process
from tests.services import ServerProcess


@pytest.fixture
async def data(broker: Mosquitto, server: ServerProcess) -> Path:
    """The data directory of a running broker, with the credentials of alice@phone and bob@laptop saved."""
    assert server.pid is not None
    added = await imqtt("device", "add", "alice@phone", "bob@laptop", "--save", "--data", broker.directory)
    assert added.status == 0, added.err
    return broker.directory


@asynccontextmanager
async def tailing(data: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`imqtt tail --json`, connected."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "tail", "--json", "--data", str(data), *arguments,
        env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def next_event(process: asyncio.subprocess.Process) -> dict[str, object]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = await process.stdout.readline()
    event = json.loads(line)
    assert isinstance(event, dict)
    return event


async def test_what_is_sent_is_stored_and_in_the_history(data: Path) -> None:
    sent = await imqtt("send", "bob", "hello", "bob", "--user", "alice", "--data", data)
    assert (sent.status, sent.out, sent.err) == (0, "stored: d:alice:bob 1\n", "")
    history = await imqtt("history", "alice", "--user", "bob", "--data", data)
    assert history.out.endswith("d:alice:bob 1  alice: hello bob\n")


async def test_json_is_the_frame_of_the_wire(data: Path) -> None:
    sent = (await imqtt("send", "bob", "hi", "--user", "alice", "--data", data, "--json")).json
    assert (sent["type"], sent["conversation"], sent["seq"]) == ("accepted", "d:alice:bob", 1)
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).json
    assert [(it["type"], it["id"], it["content"]) for it in history] == [
        ("event", sent["id"], {"text": "hi"})
    ]


async def test_the_same_message_id_is_the_same_message(data: Path) -> None:
    again = [
        (
            await imqtt(
                "send", "bob", "hi", "--message-id", "m1", "--user", "alice", "--data", data, "--json"
            )
        ).json
        for _ in range(2)
    ]
    assert again[0] == again[1]
    other = await imqtt("send", "bob", "else", "--message-id", "m1", "--user", "alice", "--data", data)
    assert other.status == 1
    assert other.err.count("\n") == 1


async def test_stdin_lines_json_and_files_can_be_sent(data: Path, tmp_path: Path) -> None:
    to_bob = ("send", "bob", "--user", "alice", "--data", data)
    (tmp_path / "picture").write_bytes(b"\x89PNG")
    await imqtt(*to_bob, stdin="from\nstdin")
    lines = await imqtt(*to_bob, "--lines", stdin="one\ntwo\n")
    assert lines.out.count("stored") == 2
    await imqtt(*to_bob, "--content-type", "application/json", stdin='{"a": [1, 2]}')
    await imqtt(*to_bob, "--file", tmp_path / "picture", "--content-type", "image/png")
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).json
    assert [it["content"] for it in history] == [
        {"text": "from\nstdin"},
        {"text": "one"},
        {"text": "two"},
        {"json": {"a": [1, 2]}},
        {"data": "iVBORw==", "content_type": "image/png"},
    ]


async def test_tail_prints_what_comes_until_ctrl_c(data: Path) -> None:
    await imqtt("history", "alice", "--user", "bob", "--data", data)  # so that bob's device has been here
    async with tailing(data, "--user", "bob", "--resume") as tail:
        await imqtt("send", "bob", "one", "--user", "alice", "--data", data)
        assert (await next_event(tail))["content"] == {"text": "one"}
        await imqtt("send", "bob", "two", "--user", "alice", "--data", data)
        assert (await next_event(tail))["content"] == {"text": "two"}
        tail.send_signal(signal.SIGINT)
        assert await tail.wait() == 0


async def test_tail_goes_on_where_it_ended(data: Path) -> None:
    await imqtt("history", "alice", "--user", "bob", "--data", data)
    for text in ("one", "two"):
        async with tailing(data, "--user", "bob", "--resume", "--count", "1") as tail:
            await imqtt("send", "bob", text, "--user", "alice", "--data", data)
            assert (await next_event(tail))["content"] == {"text": text}
            assert await tail.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bob", "x", "--user", "carol"), "imqtt: --device is needed: no credential that fits is saved in"),
        (("bob", "x"), "imqtt: which one are you? --user and --device choose from alice@phone, bob@laptop"),
        (("d:bob:carol", "x", "--user", "alice"), "imqtt: alice is not in this conversation"),
        (("g:team", "x", "--user", "alice"), "imqtt: this server has no groups"),
        (("b ob", "x", "--user", "alice"), "imqtt: 'b ob' is neither a user nor a conversation"),
        (("bob", "--user", "alice"), "imqtt: content is empty"),
        (("bob", "x" * 70_000, "--user", "alice"), "imqtt: content of 70000 bytes; at most 65536"),
    ],
)
async def test_what_cannot_be_sent_is_refused_in_one_line(
    data: Path, arguments: tuple[str, ...], said: str
) -> None:
    outcome = await imqtt("send", *arguments, "--data", data)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith(said)
    assert outcome.err.count("\n") == 1


async def test_a_wrong_password_is_told(data: Path) -> None:
    outcome = await imqtt(
        "send", "bob", "x", "--user", "alice", "--device", "phone", "--data", data, IMQTT_PASSWORD="wrong"
    )
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: no broker takes the password of alice@phone")


async def test_without_a_broker_a_message_waits_for_the_next_time(data: Path, broker: Mosquitto) -> None:
    to_bob = ("send", "bob", "--user", "alice", "--data", data)
    nowhere = await imqtt(*to_bob, "later", "--broker", "127.0.0.1:1", "--wait", "1")
    assert nowhere.status == 1
    assert nowhere.err.startswith("imqtt: not known to be stored after 1 s")
    assert nowhere.err.endswith("it is sent when this device connects again\n")
    await imqtt(*to_bob, "now")
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).json
    assert [it["content"]["text"] for it in history] == ["later", "now"]


async def test_a_chat_needs_a_terminal(data: Path) -> None:
    outcome = await imqtt_process("chat", "bob", "--user", "alice", "--data", data)
    assert outcome.status == 1
    assert outcome.err == "imqtt: a chat needs a terminal; `imqtt send` and `imqtt tail` do without\n"
