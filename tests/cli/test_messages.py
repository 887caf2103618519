"""`imqtt send`, `recall`, `tail` and `history` on a running broker and server."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imqtt.mosquitto.broker import Mosquitto
from tests.certificates import Authority, TlsMosquitto
from tests.cli.commands import environment, imqtt, imqtt_process
from tests.services import WITHIN, ServerProcess, eventually


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
    async with asyncio.timeout(WITHIN):
        line = await process.stdout.readline()
    event = json.loads(line)
    assert isinstance(event, dict)
    return event


async def test_a_sent_message_is_stored_and_in_the_history(data: Path) -> None:
    sent = await imqtt("send", "bob", "hello", "bob", "--user", "alice", "--data", data)
    assert (sent.status, sent.out, sent.err) == (0, "stored: d:alice:bob 1\n", "")
    history = await imqtt("history", "alice", "--user", "bob", "--data", data)
    assert history.out.endswith("d:alice:bob 1  alice: hello bob\n")


async def test_json_is_the_frame_of_the_wire(data: Path) -> None:
    sent = (await imqtt("send", "bob", "hi", "--user", "alice", "--data", data, "--json")).json
    assert (sent["type"], sent["conversation"], sent["seq"]) == ("accepted", "d:alice:bob", 1)
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).rows
    assert [(event["type"], event["id"], event["content"]) for event in history] == [
        ("event", sent["id"], {"text": "hi"})
    ]


async def test_a_message_is_recalled_once_by_its_seq(data: Path) -> None:
    as_alice = ("--user", "alice", "--data", data)
    for text in ("one", "two"):
        await imqtt("send", "bob", text, *as_alice)
    recalled = await imqtt("recall", "bob", "1", *as_alice)
    assert (recalled.status, recalled.out, recalled.err) == (0, "recalled: d:alice:bob 1\n", "")
    history = await imqtt("history", "alice", "--user", "bob", "--data", data)
    assert [line.partition("alice: ")[2] for line in history.out.splitlines()] == [
        "[recalled]",
        "two",
        "[recalls message 1]",
    ]
    as_json = (await imqtt("recall", "d:alice:bob", "2", *as_alice, "--json")).json
    assert (as_json["type"], as_json["conversation"], as_json["seq"]) == ("accepted", "d:alice:bob", 4)


@pytest.mark.parametrize(
    ("user", "seq", "said"),
    [
        ("alice", "1", "the message was recalled at seq 2"),
        ("alice", "2", "d:alice:bob 2 is not a message: [recalls message 1]"),
        ("alice", "9", "d:alice:bob has no message 9; `imqtt history` shows each one's seq"),
        ("bob", "1", "only alice may recall this message"),
    ],
)
async def test_what_cannot_be_recalled_is_refused_in_one_line(
    data: Path, user: str, seq: str, said: str
) -> None:
    await imqtt("send", "bob", "hi", "--user", "alice", "--data", data)
    await imqtt("recall", "bob", "1", "--user", "alice", "--data", data)
    refused = await imqtt("recall", "d:alice:bob", seq, "--user", user, "--data", data)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith(f"imqtt: {said}")
    assert refused.err.count("\n") == 1


async def test_a_recall_without_a_broker_stays_in_the_outbox(data: Path) -> None:
    as_alice = ("--user", "alice", "--data", data)
    await imqtt("send", "bob", "hi", *as_alice)
    nowhere = await imqtt("recall", "bob", "1", "--broker", "127.0.0.1:1", "--wait", "1", *as_alice)
    assert nowhere.status == 1
    assert "not known to be stored after 1 s" in nowhere.err
    assert "it stays in the outbox, and the next command of alice@phone sends it" in nowhere.err
    unknown = await imqtt("recall", "bob", "2", "--broker", "127.0.0.1:1", "--wait", "1", *as_alice)
    assert unknown.status == 1
    assert "alice@phone does not hold message 2: mqtt://127.0.0.1:1: " in unknown.err
    assert "[recalls message 1]" in (await imqtt("outbox", *as_alice)).out
    assert (await imqtt("recall", "bob", "1", *as_alice)).err.startswith("imqtt: the message was recalled")


async def test_a_seq_beyond_all_is_wrong_use(data: Path) -> None:
    for command in (("history", "bob", "--before", 1 << 53), ("recall", "bob", 1 << 53)):
        assert (await imqtt(*command, "--user", "alice", "--data", data)).status == 2


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
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).rows
    assert [event["content"] for event in history] == [
        {"text": "from\nstdin"},
        {"text": "one"},
        {"text": "two"},
        {"json": {"a": [1, 2]}},
        {"data": "iVBORw==", "content_type": "image/png"},
    ]


async def test_tail_prints_incoming_messages_until_ctrl_c(data: Path) -> None:
    await imqtt("history", "alice", "--user", "bob", "--data", data)  # registers bob's device
    async with tailing(data, "--user", "bob", "--resume") as tail:
        await imqtt("send", "bob", "one", "--user", "alice", "--data", data)
        assert (await next_event(tail))["content"] == {"text": "one"}
        await imqtt("send", "bob", "two", "--user", "alice", "--data", data)
        assert (await next_event(tail))["content"] == {"text": "two"}
        tail.send_signal(signal.SIGINT)
        assert await tail.wait() == 0


async def test_tail_resumes_after_the_last_printed_event(data: Path) -> None:
    await imqtt("history", "alice", "--user", "bob", "--data", data)
    for text in ("one", "two"):
        async with tailing(data, "--user", "bob", "--resume", "--count", "1") as tail:
            await imqtt("send", "bob", text, "--user", "alice", "--data", data)
            assert (await next_event(tail))["content"] == {"text": text}
            assert await tail.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bob", "x", "--user", "carol"), "imqtt: --device is needed: no credential of carol is saved in"),
        (
            ("bob", "x"),
            "imqtt: which device are you? Choose with --user and --device: alice@phone, bob@laptop",
        ),
        (("d:bob:carol", "x", "--user", "alice"), "imqtt: alice is not in this conversation"),
        (("g:team", "x", "--user", "alice"), "imqtt: this server has no groups"),
        (("b ob", "x", "--user", "alice"), "imqtt: 'b ob' is neither a user nor a conversation"),
        (("bob", "--user", "alice"), "imqtt: content is empty"),
        (
            ("bob", "{a", "--user", "alice", "--content-type", "application/json"),
            "imqtt: the content is not valid JSON: ",
        ),
        (("bob", "x" * 70_000, "--user", "alice"), "imqtt: content of 70000 bytes; at most 65536"),
    ],
)
async def test_invalid_messages_are_refused_in_one_line(
    data: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = await imqtt("send", *arguments, "--data", data)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1


async def test_a_wrong_password_is_reported(data: Path) -> None:
    outcome = await imqtt(
        "send", "bob", "x", "--user", "alice", "--device", "phone", "--data", data, IMQTT_PASSWORD="wrong"
    )
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: no broker accepts the password of alice@phone")


async def test_without_a_broker_a_message_waits_for_the_next_time(data: Path, broker: Mosquitto) -> None:
    to_bob = ("send", "bob", "--user", "alice", "--data", data)
    nowhere = await imqtt(*to_bob, "later", "--broker", "127.0.0.1:1", "--wait", "1")
    assert nowhere.status == 1
    lost, unknown = nowhere.err.splitlines()
    assert lost.startswith("imqtt: no connection, trying again: mqtt://127.0.0.1:1")
    assert unknown.startswith("imqtt: not known to be stored after 1 s")
    assert "it stays in the outbox, and the next command of alice@phone sends it" in unknown
    await imqtt(*to_bob, "now")
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).rows
    assert [event["content"]["text"] for event in history] == ["later", "now"]


async def test_a_chat_needs_a_terminal(data: Path) -> None:
    outcome = await imqtt_process("chat", "bob", "--user", "alice", "--data", data)
    assert outcome.status == 1
    assert outcome.err == "imqtt: a chat needs a terminal; `imqtt send` and `imqtt tail` do not\n"


# --- a server that does not answer, and interrupted commands


async def test_commands_report_that_the_server_behind_the_broker_does_not_answer(
    data: Path, server: ServerProcess
) -> None:
    silence = "imqtt: connected to the broker; the imqtt server does not answer; trying again\n"
    await imqtt("device", "add", "carol@pc", "--save", "--data", data)
    assert server.pid is not None
    async with tailing(data, "--user", "carol") as tail:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            send, history = await asyncio.gather(
                imqtt_process("send", "bob", "hi", "--wait", "20", "--user", "alice", "--data", data),
                imqtt_process("history", "alice", "--wait", "20", "--user", "bob", "--data", data),
            )
            assert tail.stderr is not None
            async with asyncio.timeout(WITHIN):
                assert (await tail.stderr.readline()).decode() == silence
        finally:
            os.kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(WITHIN):
            assert b"the imqtt server answers again" in await tail.stderr.readline()
    assert (send.status, send.out) == (1, "")
    assert send.err.startswith(silence + "imqtt: not known to be stored after 20 s (connected to the broker;")
    assert (history.status, history.out) == (1, "")
    assert history.err.startswith(silence + "imqtt: no answer within 20 s: connected to the broker;")


@asynccontextmanager
async def sending(data: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "send", "bob", "--user", "alice", "--data", str(data), *arguments,
        env=environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_lines_are_sent_as_they_arrive_and_ctrl_c_ends_the_command_at_once(data: Path) -> None:
    async with sending(data, "--lines") as process, asyncio.timeout(WITHIN):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n\n  \r\ntwo\nthr")
        assert await process.stdout.readline() == b"stored: d:alice:bob 1\n"
        assert await process.stdout.readline() == b"stored: d:alice:bob 2\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        out, err = await process.communicate()
        assert (out, err) == (b"", b"")
    history = (await imqtt("history", "bob", "--user", "alice", "--data", data, "--json")).rows
    assert [event["content"]["text"] for event in history] == ["one", "two"]


async def test_an_invalid_line_is_reported_with_its_number(data: Path) -> None:
    long = "x" * 70_000
    outcome = await imqtt(
        "send", "bob", "--lines", "--user", "alice", "--data", data, stdin=f"one\n\n{long}\nthree\n"
    )
    assert (outcome.status, outcome.out) == (1, "stored: d:alice:bob 1\n")
    assert outcome.err == "imqtt: line 3: content of 70000 bytes; at most 65536\n"


async def interrupted_send(data: Path, text: str, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Sends without a broker, interrupted when the message is in the outbox. Returns status and stderr."""
    log = data / "devices" / "alice@phone.db-wal"
    async with sending(data, text, "--broker", "127.0.0.1:1") as process, asyncio.timeout(WITHIN):
        await eventually(lambda: log.exists() and text.encode() in log.read_bytes())
        process.send_signal(how)
        _, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, err.decode()


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_the_message_of_an_interrupted_send_stays_in_the_outbox_and_can_be_discarded(
    data: Path, how: signal.Signals, status: int
) -> None:
    as_alice = ("--user", "alice", "--data", data)
    ended, err = await interrupted_send(data, "taken-back", how)
    assert ended == status
    hint = err.splitlines()[-1]
    assert "interrupted: not known to be stored; it stays in the outbox, and the next command of" in hint
    (entry,) = (await imqtt("outbox", "list", *as_alice, "--json")).rows
    assert (entry["conversation"], entry["content"]) == ("d:alice:bob", {"text": "taken-back"})
    listed = await imqtt("outbox", "list", *as_alice)
    assert "taken-back" in listed.out
    found = re.search("`imqtt (.*)` removes it", hint)
    assert found is not None
    discarded = await imqtt(*shlex.split(found[1]))  # two credentials are saved
    assert discarded.out == f"discarded: d:alice:bob {entry['client_msg_id']}\n"
    await imqtt("send", "bob", "now", *as_alice)
    history = (await imqtt("history", "bob", *as_alice, "--json")).rows
    assert [event["content"]["text"] for event in history] == ["now"]


async def test_the_whole_outbox_can_be_discarded(data: Path) -> None:
    as_alice = ("--user", "alice", "--data", data)
    empty = await imqtt("outbox", "discard", "--all", *as_alice)
    assert (empty.status, empty.out, empty.err) == (0, "", "imqtt: the outbox is empty\n")
    for text in ("first-one", "second-one"):
        await interrupted_send(data, text)
    unknown = await imqtt("outbox", "discard", "nothing", *as_alice)
    assert (unknown.status, unknown.err) == (1, "imqtt: not in the outbox of alice@phone: nothing\n")
    assert (await imqtt("outbox", "discard", *as_alice)).status == 2
    listed = await imqtt("outbox", *as_alice, "--json")
    assert [event["content"]["text"] for event in listed.rows] == ["first-one", "second-one"]
    assert (await imqtt("outbox", *as_alice, "list")).status == 2
    discarded = await imqtt("outbox", "discard", "--all", "--json", *as_alice)
    assert [row["discarded"] for row in discarded.rows] == [True, True]
    assert (await imqtt("outbox", "list", "--json", *as_alice)).out == ""


async def test_history_without_a_server_says_that_it_shows_only_what_the_device_holds(
    data: Path, server: ServerProcess
) -> None:
    as_alice = ("--user", "alice", "--data", data)
    await imqtt("send", "bob", "held here", *as_alice)
    connected = await imqtt("history", "bob", "--limit", "1", *as_alice)
    assert (connected.status, connected.err) == (0, "")
    await server.stop()
    alone = await imqtt("history", "bob", "--limit", "1", "--wait", "1", *as_alice)
    assert (alone.status, alone.out) == (0, connected.out)
    assert (
        "imqtt: no answer from the server: alice@phone has these messages; there may be more\n" in alone.err
    )


async def test_a_message_to_a_user_without_devices_is_stored_with_a_warning(data: Path) -> None:
    as_alice = ("--user", "alice", "--data", data)
    sent = await imqtt("send", "bbo", "hi", *as_alice)
    assert (sent.status, sent.out) == (0, "stored: d:alice:bbo 1\n")
    assert sent.err == "imqtt: no device of bbo has a credential on this broker; did you mean bob?\n"
    assert "no device of d" in (await imqtt("history", "d", *as_alice)).err
    assert (await imqtt("send", "alice", "a note", *as_alice)).err == ""


async def test_users_of_another_broker_cause_no_warning(data: Path, broker: Mosquitto) -> None:
    as_alice = ("--user", "alice", "--data", data)
    other = await imqtt("send", "bbo", "hi", *as_alice, "--broker", f"localhost:{broker.port}")
    assert (other.status, other.err) == (0, "")
    same = await imqtt("send", "bbo", "hi", *as_alice, IMQTT_BROKER=f"{broker.host}:{broker.port}")
    assert same.err == "imqtt: no device of bbo has a credential on this broker; did you mean bob?\n"


# --- stdout


async def test_an_empty_history_prints_nothing_on_stdout(data: Path) -> None:
    for more in ((), ("--json",)):
        empty = await imqtt("history", "bob", "--user", "alice", "--data", data, *more)
        assert (empty.status, empty.out, empty.err) == (0, "", "imqtt: nothing in d:alice:bob yet\n")


async def test_printed_messages_of_others_cannot_control_the_terminal(data: Path) -> None:
    text = "\x1b]0;owned\x07\x9b2J\u202e\x7f"
    await imqtt("send", "alice", "--user", "bob", "--data", data, stdin=text)
    for more in ((), ("--json",)):
        history = await imqtt("history", "bob", "--user", "alice", "--data", data, *more)
        assert history.out.replace("\n", "").isprintable()
    assert history.rows[0]["content"]["text"] == text


@pytest.mark.parametrize("command", ["history", "list", "help"])
async def test_a_closed_pipe_ends_the_command_quietly(data: Path, command: str) -> None:
    await imqtt("send", "alice", "hi", "--user", "bob", "--data", data)
    arguments = {
        "history": ("history", "bob", "--user", "alice", "--data", str(data)),
        "list": ("device", "list", "--data", str(data)),
        "help": ("--help",),
    }[command]
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", *arguments,
        env=environment(), stdout=writing, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_is_reported(data: Path) -> None:
    await imqtt("send", "alice", "hi", "--user", "bob", "--data", data)
    with Path("/dev/full").open("w") as full:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "imqtt", "history", "bob", "--user", "alice", "--data", str(data),
            env=environment(), stdout=full, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"imqtt: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("more", [(), ("--json",)])
async def test_characters_that_the_terminal_cannot_encode_are_replaced(
    data: Path, more: tuple[str, ...]
) -> None:
    await imqtt("send", "alice", "grüße 👩", "--user", "bob", "--data", data)
    history = await imqtt_process(
        "history", "bob", "--user", "alice", "--data", data, *more, PYTHONIOENCODING="ascii"
    )
    assert (history.status, history.err) == (0, "")
    if more:
        assert history.rows[0]["content"]["text"] == "grüße 👩"


@pytest.mark.parametrize(
    ("closed", "status", "message"), [("<&-", 1, "imqtt: stdin is closed\n"), (">&-", 0, ""), ("2>&-", 0, "")]
)
async def test_a_closed_standard_stream_causes_no_crash(
    closed: str, status: int, message: str, data: Path
) -> None:
    command = f"{sys.executable} -m imqtt send bob --lines --user alice --data {data}"
    shell = f"printf 'one\\n' | sh -c 'exec {command} {closed}'"
    process = await asyncio.create_subprocess_shell(
        shell, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (status, message)


# --- TLS


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[TlsMosquitto]:
    authority = Authority(tmp_path / "certificates")
    certificate = authority.issue("broker", hosts="IP:127.0.0.1")
    async with TlsMosquitto(tmp_path / "broker", authority, certificate) as broker:
        broker.passwords.add("alice@phone", "secret")
        yield broker


async def test_messages_are_sent_over_tls_with_a_password_or_a_certificate(
    tls: TlsMosquitto, tmp_path: Path
) -> None:
    authority = tls._authority
    certificate, key = authority.issue("bob@phone")
    encrypted = {"IMQTT_PASSWORD": "secret", "IMQTT_CA": str(authority.file)}
    async with ServerProcess(tls, tmp_path):
        sent = await imqtt(
            "send", "bob", "hi", "--user", "alice/phone", "--broker", f"127.0.0.1:{tls.tls_port}", **encrypted
        )
        assert (sent.status, sent.out, sent.err) == (0, "stored: d:alice:bob 1\n", "")
        read = await imqtt(
            "history", "alice", "-u", "bob@phone", "-b", f"mqtts://127.0.0.1:{tls.certified_port}",
            "--ca", authority.file, "--cert", certificate, "--key", key,
        )  # fmt: skip
        assert (read.status, read.err) == (0, "")
        assert read.out.endswith("d:alice:bob 1  alice: hi\n")


async def test_tls_problems_are_reported_at_once_in_one_line(tls: TlsMosquitto) -> None:
    authority, encrypted = tls._authority, f"127.0.0.1:{tls.tls_port}"
    for options, message in [
        (("--broker", f"mqtts://{encrypted}"), "unknown authority: give the authority's file with --ca"),
        (("--broker", f"mqtt://{encrypted}"), f"{encrypted} speaks TLS: use mqtts://{encrypted}"),
        (
            ("--broker", f"mqtt://{encrypted}", "--ca", authority.file),
            f"TLS is asked for, but mqtt://{encrypted} would send the password unencrypted: use mqtts://",
        ),
        (
            ("--broker", encrypted, "--ca", "missing.pem"),
            "cannot read missing.pem: No such file or directory",
        ),
        (("--broker", encrypted, "--key", authority.file), "is given without a certificate"),
        (("--ca", authority.file), "ask for TLS: name a broker with --broker"),
    ]:
        for command in (("send", "bob", "hi"), ("history", "bob")):
            async with asyncio.timeout(WITHIN):
                refused = await imqtt(
                    *command, "-u", "alice/phone", *options, "--wait", 10 * WITHIN, IMQTT_PASSWORD="secret"
                )
            assert refused.status == 1
            assert message in refused.err
            assert refused.err.count("\n") == 1, refused.err


async def test_tail_reports_another_process_on_the_same_device(data: Path, tmp_path: Path) -> None:
    """Each process has its own store, so only the broker can detect that there are two."""
    stores = [("--device-store", str(tmp_path / name)) for name in ("one.db", "two.db")]
    async with (
        tailing(data, "--user", "alice", *stores[0]) as one,
        tailing(data, "--user", "alice", *stores[1]) as two,
    ):

        async def lines_of(process: asyncio.subprocess.Process) -> list[str]:
            assert process.stderr is not None
            lines: list[str] = []
            while not lines or "connected as alice@phone" not in lines[-1]:
                lines.append((await process.stderr.readline()).decode())
            return lines

        async with asyncio.timeout(WITHIN):
            for lines in await asyncio.gather(lines_of(one), lines_of(two)):
                assert all(line.startswith(("imqtt: ", "connected", "no connection")) for line in lines), (
                    lines
                )
