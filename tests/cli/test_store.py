"""`imqtt store copy`."""

import asyncio
import os
import pty
import signal
import sqlite3
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from imqtt.model import Marks
from imqtt.stores import open_store
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.cli.commands import environment, imqtt, imqtt_process
from tests.contract.stores import log, record
from tests.mongodb import database_url
from tests.services import WITHIN
from tests.verification.chaos.proxy import Proxy

D = "d:alice:bob"
IDENTITY = Identity(7, "0123456789abcdef")


async def make_store(path: Path, events: int = 3, identity: Identity = IDENTITY) -> str:
    store = await SqliteStore.open(path, identity)
    await store.put_members([("alice", D), ("bob", D)])
    for first in range(1, events + 1, 1_000):
        await store.append(log(D, first, min(events, first + 999)))
    await store.raise_marks([Marks(D, "bob", 2, 1)])
    await store.close()
    return f"sqlite:///{path}"


async def test_a_copy_is_reported_in_numbers(tmp_path: Path) -> None:
    source, target = await make_store(tmp_path / "a.db"), f"sqlite:///{tmp_path / 'b.db'}"
    outcome = await imqtt("store", "copy", source, target)
    assert outcome.status == 0, outcome.err
    assert f"{target} holds what {source} does: 1 conversations with 3 events (3 of them new)" in outcome.out
    assert "2 members, 1 marks and 0 devices" in outcome.out
    assert "copying: 0 of 1 conversations, 0 of 3 events" in outcome.err
    again = await imqtt("store", "copy", source, target, "--quiet")
    assert "(0 of them new)" in again.out
    assert again.err == ""
    assert again.out.split("digest")[1] == outcome.out.split("digest")[1]


async def test_a_copy_is_private(tmp_path: Path) -> None:
    source = await make_store(tmp_path / "a.db")
    (tmp_path / "a.db").chmod(0o644)
    umask = os.umask(0o022)
    try:
        for live in ((), ("--live",)):
            assert (await imqtt("store", "copy", *live, source, f"sqlite:///{tmp_path / 'b.db'}")).status == 0
    finally:
        os.umask(umask)
    assert (tmp_path / "b.db").stat().st_mode & 0o777 == 0o600


async def test_json_prints_the_result_on_stdout_and_each_step_on_stderr(tmp_path: Path) -> None:
    source, target = await make_store(tmp_path / "a.db"), f"sqlite:///{tmp_path / 'b.db'}"
    outcome = await imqtt("store", "copy", source, target, "--json")
    last = outcome.json
    steps = [line.partition(":")[0] for line in outcome.err.splitlines()]
    assert steps == ["comparing", "copying", "verifying"]
    assert (last["done"], last["events"], last["added"], last["live"]) == (True, 3, 3, False)
    assert len(last["digest"]) == 32
    assert (await imqtt("store", "copy", source, target, "--json", "--quiet")).json["events"] == 3


async def test_a_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    source, target = await make_store(tmp_path / "a.db", 20_000), f"sqlite:///{tmp_path / 'b.db'}"
    terminal, child_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imqtt", "store", "copy", source, target,
        env=environment(TERM="xterm"), stdout=asyncio.subprocess.PIPE, stderr=child_end,
    )  # fmt: skip
    os.close(child_end)
    shown_bytes = await asyncio.to_thread(_read_all, terminal)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"verifying" in shown_bytes
    assert b"conversations," in shown_bytes
    assert b"20,000 events" in out


def _read_all(terminal: int) -> bytes:
    output = b""
    while True:
        try:
            some = os.read(terminal, 4_096)
        except OSError:  # the other end is closed
            return output
        if not some:
            return output
        output += some


async def test_an_impossible_copy_prints_the_reason_in_one_line(tmp_path: Path) -> None:
    source = await make_store(tmp_path / "a.db")
    other = await make_store(tmp_path / "other.db", identity=Identity(3, "fedcba9876543210"))
    for arguments, why in (
        ((source, source), "are the same store"),
        ((f"sqlite:///{tmp_path / 'none.db'}", source), "there is no store at"),
        (
            (source, other),
            "fedcba9876543210 of 3 partitions, but the source is store 0123456789abcdef of 7 partitions",
        ),
        ((source, f"sqlite:///{tmp_path / 'no' / 'b.db'}"), "is not a directory"),
        ((source, "http://x"), "unknown kind of store"),
    ):
        outcome = await imqtt("store", "copy", *arguments)
        assert (outcome.status, outcome.out) == (1, "")
        assert why in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "none.db").exists()


async def test_a_store_that_is_open_is_refused_on_either_side(tmp_path: Path) -> None:
    source, target = await make_store(tmp_path / "a.db"), f"sqlite:///{tmp_path / 'b.db'}"
    async with AsyncExitStack() as stack:
        served = await SqliteStore.open(tmp_path / "a.db", IDENTITY)
        stack.push_async_callback(served.close)
        outcome = await imqtt("store", "copy", source, target)
        assert outcome.status == 1
        assert "in use by another imqtt server" in outcome.err
        assert "--live" in outcome.err
        assert not (tmp_path / "b.db").exists()
        outcome = await imqtt("store", "copy", target.replace("b.db", "c.db"), source)
        assert outcome.status == 1
        await make_store(tmp_path / "c.db")
        outcome = await imqtt("store", "copy", target.replace("b.db", "c.db"), source)
        assert "in use by another imqtt server" in outcome.err
        outcome = await imqtt("store", "copy", "--live", source, target)
        assert outcome.status == 0, outcome.err
        assert "later changes may be missing" in outcome.out


async def test_a_store_of_an_older_imqtt_is_upgraded_before_it_is_copied(tmp_path: Path) -> None:
    source, target = await make_store(tmp_path / "a.db"), f"sqlite:///{tmp_path / 'b.db'}"
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute("DELETE FROM meta WHERE name = 'cluster'")
        connection.execute("DROP INDEX members_by_conversation")
    outcome = await imqtt("store", "copy", "--live", source, target)
    assert outcome.status == 1
    assert "an older imqtt wrote" in outcome.err
    assert not (tmp_path / "b.db").exists()
    assert (await imqtt("store", "copy", source, target)).status == 0
    assert (await imqtt("store", "copy", "--live", source, target)).status == 0


async def test_a_difference_is_reported_and_the_target_is_not_served(tmp_path: Path) -> None:
    source = await make_store(tmp_path / "a.db")
    store = await SqliteStore.open(tmp_path / "b.db", IDENTITY)
    await store.append([record(D, 1), record(D, 2, message="other"), record(D, 3)])
    await store.close()
    target = f"sqlite:///{tmp_path / 'b.db'}"
    outcome = await imqtt("store", "copy", source, target, "--quiet", "--json")
    assert outcome.status == 1
    assert outcome.json | {"difference": ""} == {
        "done": False, "difference": "", "conversation": D, "seq": 2,
    }  # fmt: skip
    assert "event 2 of d:alice:bob differs between the stores" in outcome.err
    served = await imqtt_process("serve", "--store", target)
    assert served.status == 1
    assert "is an unfinished copy; run the same `imqtt store copy` again" in served.err


async def read_until(stream: asyncio.StreamReader, text: bytes) -> None:
    """Reads up to the line that contains the text."""
    async with asyncio.timeout(WITHIN):
        while text not in (line := await stream.readline()):
            assert line, "the process has ended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_copy_that_a_signal_ends_says_how_to_continue(tmp_path: Path, number: signal.Signals) -> None:
    source, target = await make_store(tmp_path / "a.db", 1_500), database_url()
    at = urlsplit(target)
    assert at.port is not None
    async with Proxy(at.port) as proxy:
        proxy.slow(0.0, 30_000.0)  # bytes a second: the copy would take a quarter of a minute
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "imqtt", "store", "copy",
            source, target.replace(at.netloc, f"127.0.0.1:{proxy.port}"),
            env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        await read_until(process.stderr, b"copying")
        proxy.slow(0.0, 2_000.0)  # however late the signal comes, the copy is not finished
        process.send_signal(number)
        await read_until(process.stderr, b"is not finished; run the same `imqtt store copy` again")
        proxy.repair()
        out, _ = await process.communicate()
    assert process.returncode == 128 + number
    assert out == b""
    assert (await imqtt("store", "copy", source, target, "--quiet")).status == 0
    store = await open_store(target, IDENTITY)
    assert (await store.heads([D]))[D].seq == 1_500
    await store.close()


async def test_no_secret_of_an_address_is_shown(tmp_path: Path) -> None:
    source = await make_store(tmp_path / "a.db")
    target = f"{database_url()}&authMechanismProperties=SERVICE_NAME:hidden"
    for named, message in (
        (target, "&authMechanismProperties=*** holds what"),
        (target.replace("?", ".?"), "names no MongoDB database"),
        (target.replace("mongodb", "mongo"), "unknown kind of store"),
        ("mongodb:/imqtt:hidden@host/imqtt", "unknown kind of store"),
        ("imqtt:hidden@host/imqtt", "unknown kind of store"),
    ):
        outcome = await imqtt("store", "copy", source, named)
        assert message in outcome.out + outcome.err
        assert "hidden" not in outcome.out + outcome.err
