"""`imqtt device`: changes of credentials are in effect when the command returns."""

import asyncio
import contextlib
import os
import pty
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.core.partitions import home_of, partition_of
from imqtt.model import Accepted, AnyFrame, Device, Hello, Presence, Registration, Status
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.login import log_in
from imqtt.mosquitto.passwords import Passwords
from imqtt.mosquitto.system_user import broker_user
from imqtt.server.app import Server
from imqtt.serving import serving
from imqtt.stores.base import Identity
from imqtt.stores.sqlite.store import SqliteStore
from tests.cli.commands import environment, imqtt
from tests.device import RawDevice
from tests.ports import free_port
from tests.server.conftest import config_for
from tests.services import WITHIN, eventually


async def test_an_added_device_can_log_in(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "alice@tablet", "--data", broker.directory, "--json")
    assert added.status == 0
    for row in added.rows:
        assert log_in(broker.host, broker.port, row["device"], row["password"])


async def test_the_list_shows_the_devices_with_credentials(broker: Mosquitto) -> None:
    empty = await imqtt("device", "list", "--data", broker.directory)
    assert "No device has a credential yet" in empty.out
    await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory)
    await imqtt("device", "add", "bob@phone", "--data", broker.directory)
    listed = await imqtt("device", "list", "--data", broker.directory, "--json")
    assert listed.rows == [{"device": "alice@phone", "saved": True}, {"device": "bob@phone", "saved": False}]
    table = await imqtt("device", "list", "--data", broker.directory)
    assert "alice@phone" in table.out
    assert "imqtt-server" not in table.out


async def test_a_revoked_device_is_refused_and_forgotten(broker: Mosquitto) -> None:
    added = await imqtt("device", "add", "alice@phone", "--save", "--data", broker.directory, "--json")
    password = added.rows[0]["password"]
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory, "--json")
    assert revoked.rows == [{"device": "alice@phone", "revoked": True, "server_told": False}]
    assert not log_in(broker.host, broker.port, "alice@phone", password)
    assert not list((broker.directory / "credentials").iterdir())


async def test_a_device_that_exists_gets_a_new_password_only_on_request(broker: Mosquitto) -> None:
    await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    again = await imqtt("device", "add", "alice@phone", "--data", broker.directory)
    assert (again.status, again.out) == (1, "")
    assert again.err == "imqtt: alice@phone has a credential already; --replace gives it a new one\n"
    replaced = await imqtt("device", "add", "alice@phone", "--replace", "--json", "--data", broker.directory)
    assert log_in(broker.host, broker.port, "alice@phone", replaced.rows[0]["password"])


async def test_a_password_can_be_given_without_showing_it_to_other_processes(broker: Mosquitto) -> None:
    for form in ([], ["--json", "--replace"]):
        added = await imqtt(
            "device", "add", "alice@phone", "--password-from", "-", "--data", broker.directory, *form,
            stdin="s3cret\n",
        )  # fmt: skip
        assert added.status == 0
        assert "alice@phone" in added.out
        assert "s3cret" not in added.out
        assert log_in(broker.host, broker.port, "alice@phone", "s3cret")


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_a_password_that_is_typed_is_not_shown(tmp_path: Path, source: str) -> None:
    (tmp_path / "passwords").touch()
    command = ["device", "add", "alice@phone", "--passwords", str(tmp_path / "passwords")]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "imqtt", *command, "--password-from", source, "--pid-file", "/nowhere"],
            environment(),
        )
    shown = b""
    while b"Password: " not in shown:
        shown += os.read(terminal, 1_024)
    os.write(terminal, b"s3cret\n")
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while chunk := os.read(terminal, 1_024):
            shown += chunk
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert status == 0, shown
    assert b"s3cret" not in shown
    assert Passwords(tmp_path / "passwords", tmp_path / "pid").holds("alice@phone", "s3cret")


async def test_a_device_without_a_credential_cannot_be_revoked(broker: Mosquitto) -> None:
    outcome = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory)
    assert outcome.status == 1
    assert outcome.err == "imqtt: alice@phone has no credential; `imqtt device list` shows all devices\n"


async def test_a_name_that_is_not_a_device_is_refused(broker: Mosquitto) -> None:
    outcome = await imqtt("device", "add", "alice", "--data", broker.directory)
    assert outcome.status == 1
    assert outcome.err.startswith("imqtt: 'alice' is not a device: write USER@DEVICE")


async def test_names_of_dots_stay_in_the_data_directory(broker: Mosquitto) -> None:
    await imqtt("device", "add", "../..", "--save", "--data", broker.directory)
    assert [path.name for path in (broker.directory / "credentials").iterdir()] == ["..@.."]
    listed = await imqtt("device", "list", "--data", broker.directory, "--json")
    assert listed.rows == [{"device": "..@..", "saved": True}]


async def test_devices_can_be_added_while_nothing_runs(broker: Mosquitto) -> None:
    await broker.stop()
    added = await imqtt("device", "add", "alice@phone", "--data", broker.directory, "--json")
    await broker.start()
    assert log_in(broker.host, broker.port, "alice@phone", added.rows[0]["password"])


async def test_a_directory_without_data_is_refused_with_a_hint(tmp_path: Path) -> None:
    outcome = await imqtt("device", "list", "--data", tmp_path / "nowhere")
    assert outcome.status == 1
    assert "nowhere is not a data directory of `imqtt up`: `imqtt up --data " in outcome.err
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").touch()
    other = await imqtt("device", "list", "--data", tmp_path)
    assert other.err == f"imqtt: {tmp_path} is not a data directory of `imqtt up`\n"


async def test_accounts_of_a_separate_broker_are_managed_through_its_password_file(broker: Mosquitto) -> None:
    where = ("--passwords", broker.passwords.path)
    pid_file = ("--pid-file", broker.files.pid)
    added = await imqtt("device", "add", "alice@phone", "--json", *where, *pid_file)
    assert added.status == 0
    listed = await imqtt("device", "list", "--json", *where)
    assert [row["device"] for row in listed.rows] == ["alice@phone"]
    assert (await imqtt("device", "revoke", "alice@phone", *where, *pid_file)).status == 0


async def test_a_credential_is_revoked_though_the_broker_is_unreachable(tmp_path: Path) -> None:
    where = ("--passwords", tmp_path / "passwords", "--pid-file", tmp_path / "no.pid")
    await imqtt("device", "add", "alice@phone", *where)
    settings = ("--broker-port", free_port())
    revoked = await imqtt(
        "device", "revoke", "alice@phone", *where, *settings, IMQTT_BROKER_PASSWORD="secret"
    )
    assert (revoked.status, revoked.out) == (0, "alice@phone can no longer connect.\n")
    assert "the server was not told (the broker cannot be reached: " in revoked.err
    assert (tmp_path / "passwords").read_text() == ""


async def test_the_servers_own_account_is_added_with_its_password(tmp_path: Path) -> None:
    (tmp_path / "broker-password").write_text("0123abcd\n")
    where = ("--passwords", tmp_path / "passwords")
    options = (*where, "--pid-file", tmp_path / "no.pid")
    refused = await imqtt("device", "add", "imqtt-server", *options)  # the server must know the password
    assert refused.status == 1
    await imqtt("device", "add", "imqtt-server", *options, "--password-from", tmp_path / "broker-password")
    passwords = Passwords(tmp_path / "passwords", tmp_path / "no.pid")
    assert passwords.holds("imqtt-server", "0123abcd")
    assert (await imqtt("device", "list", *where, "--json")).out == ""


async def test_a_directory_of_imqtt_0_1_is_refused_until_it_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "listeners.json").write_text("{}")
    (tmp_path / "passwords").write_text("alice/phone:$7$101$salt$hash\n")
    for command in (("list",), ("add", "bob@phone"), ("revoke", "alice@phone")):
        refused = await imqtt("device", *command, "--data", tmp_path)
        assert refused.status == 1
        assert f"(re)start `imqtt up --data {tmp_path}`, which migrates it" in refused.err
    assert (tmp_path / "passwords").read_text() == "alice/phone:$7$101$salt$hash\n"


async def test_an_operators_password_file_of_imqtt_0_1_is_migrated_on_request(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    passwords = Passwords(file, tmp_path / "pid")
    passwords.add("alice@phone", "secret")
    file.write_text(file.read_text().replace("@", "/") + "bridge:$7$101$salt$hash\n")
    file.chmod(0o640)
    added = await imqtt("device", "add", "bob@phone", "--passwords", file, "--pid-file", tmp_path / "pid")
    assert added.status == 0
    assert f"(alice/phone): `imqtt device migrate --passwords {file}` renames them" in added.err
    migrated = await imqtt("device", "migrate", "--passwords", file)
    assert migrated.out == "Renamed: alice@phone. Restart Mosquitto now.\n"
    assert passwords.usernames() == ["alice@phone", "bob@phone", "bridge"]
    assert passwords.holds("alice@phone", "secret")
    assert file.stat().st_mode & 0o777 == 0o640  # the broker's group still reads it
    again = await imqtt("device", "migrate", "--passwords", file)
    assert "has no device of imqtt 0.1" in again.out


async def test_a_password_file_that_root_creates_belongs_to_the_brokers_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    await imqtt("device", "add", "alice@phone", "--passwords", tmp_path / "passwords", "--pid-file", "/none")
    user = broker_user()
    assert user is not None
    created = (tmp_path / "passwords").stat()
    assert (created.st_uid, created.st_gid, created.st_mode & 0o777) == (user.uid, user.gid, 0o640)


# --- with a server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def running(broker: Mosquitto, stack: AsyncExitStack) -> Server:
    """A server on the broker's data directory, as `imqtt up` has it."""
    return await stack.enter_async_context(serving(config_for(broker, broker.directory)))


async def talking(broker: Mosquitto, stack: AsyncExitStack) -> tuple[RawDevice, RawDevice]:
    """Alice's phone and Bob's laptop, which see each other online."""
    alice = await stack.enter_async_context(RawDevice(broker, "alice@phone"))
    bob = await stack.enter_async_context(RawDevice(broker, "bob@laptop"))
    await alice.hello(nonce="a", platform="android 16")
    await bob.hello(nonce="b")
    await alice.send("d:alice:bob", "m1")
    await sees_alice(bob, "online")
    return alice, bob


async def sees_alice(bob: RawDevice, state: str) -> None:
    def matches(frame: AnyFrame) -> bool:
        return isinstance(frame, Presence) and (frame.user, frame.state) == ("alice", state)

    await bob.until(matches)


async def devices_of_alice(server: Server) -> tuple[str, ...]:
    return tuple(str(one.device) for one in (await server._store.devices(["alice"]))["alice"])


async def test_a_revoked_device_is_forgotten_by_the_server_and_offline_for_its_peers(
    broker: Mosquitto, running: Server, stack: AsyncExitStack
) -> None:
    _, bob = await talking(broker, stack)
    tablet = await stack.enter_async_context(RawDevice(broker, "alice@tablet"))
    await tablet.hello(nonce="t")
    await tablet.command(Status("away", "t"))
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory, "--json")
    assert revoked.rows == [{"device": "alice@phone", "revoked": True, "server_told": True}]
    async with asyncio.timeout(WITHIN):
        await sees_alice(bob, "away")
    assert await devices_of_alice(running) == ("alice@tablet",)
    packets = running.counters.packets
    await bob.send("d:alice:bob", "m2")
    assert running.counters.packets == packets + 2  # bob's `Accepted`, and the tablet's event
    await tablet.command(Status("offline", "t"))
    await sees_alice(bob, "offline")
    assert (running.counters.devices_revoked, running.counters.failures) == (1, 0)


async def test_a_device_revoked_while_no_server_runs_is_forgotten_when_the_server_is_back(
    broker: Mosquitto, stack: AsyncExitStack
) -> None:
    async with serving(config_for(broker, broker.directory)):
        await talking(broker, stack)
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory, "--json")
    assert revoked.rows[0]["server_told"]
    async with serving(config_for(broker, broker.directory)) as server:
        await eventually(lambda: server.counters.devices_revoked)
        assert await devices_of_alice(server) == ()


async def test_commands_that_a_revoked_device_sent_before_do_not_register_it_again(
    broker: Mosquitto, stack: AsyncExitStack
) -> None:
    config = config_for(broker, broker.directory, max_batch=10)
    async with serving(config):
        phone, bob = await talking(broker, stack)
    home = partition_of(home_of("alice"), 16)
    assert home != 0
    for number in range(300):  # processed long after the revocation, which does not wait for them
        await phone.command(Hello(f"late-{number}"))
    await imqtt("device", "revoke", "alice@phone", "--data", broker.directory)
    async with serving(config) as server:
        await eventually(lambda: server.counters.reads == 300)

        async def forgotten() -> bool:
            known = await server._state.presence(["alice"])
            states = [presence.state for presence in known["alice"]]
            return await devices_of_alice(server) == () and states == ["offline"]

        await eventually(forgotten)
        assert server.counters.devices_revoked == 1
        assert isinstance(await bob.send("d:alice:bob", "m2"), Accepted)


async def test_a_device_revoked_while_nothing_runs_is_removed_from_the_store(broker: Mosquitto) -> None:
    broker.passwords.add("alice@phone")
    await broker.stop()
    store = await SqliteStore.open(broker.directory / "imqtt.db", Identity.draw(16))
    await store.put_devices([Registration(Device("alice", "phone"), "json")])
    await store.close()
    revoked = await imqtt("device", "revoke", "alice@phone", "--data", broker.directory)
    assert (revoked.status, revoked.err) == (0, "")
    store = await SqliteStore.open(broker.directory / "imqtt.db", Identity.draw(16))
    assert await store.devices(["alice"]) == {"alice": ()}
    await store.close()


async def test_all_devices_of_a_user_are_revoked_after_a_confirmation(broker: Mosquitto) -> None:
    names = ("alice@phone", "alice@tablet", "alice2@phone")
    await imqtt("device", "add", *names, "--data", broker.directory)
    where = ("--data", broker.directory)
    for answer in ("n\n", ""):
        refused = await imqtt("device", "revoke", "alice", *where, stdin=answer)
        assert refused.status == 1
        assert "Revoke alice@phone, alice@tablet?" in refused.err
        assert "imqtt: nothing was revoked\n" in refused.err
    assert len((await imqtt("device", "list", "--json", *where)).rows) == 3
    assert (await imqtt("device", "revoke", "alice", *where, stdin="y\n")).status == 0
    assert [row["device"] for row in (await imqtt("device", "list", "--json", *where)).rows] == [
        "alice2@phone"
    ]
    again = await imqtt("device", "revoke", "alice", "--yes", *where)
    assert again.err == "imqtt: alice has no credential; `imqtt device list` shows all devices\n"
    one = await imqtt("device", "revoke", "alice2/phone", "--json", *where)
    assert one.rows[0]["device"] == "alice2@phone"


async def test_the_list_of_a_user_shows_data_of_the_store_and_the_server(
    broker: Mosquitto, running: Server, stack: AsyncExitStack
) -> None:
    await talking(broker, stack)
    broker.passwords.add("alice@unused")
    where = ("alice", "--data", broker.directory)
    listed = await imqtt("device", "list", *where, "--json")
    phone, unused = listed.rows
    assert (listed.status, listed.err) == (0, "")
    seen = phone.pop("last_seen")
    assert abs(seen / 1_000 - time.time()) < WITHIN
    assert phone == {
        "device": "alice@phone", "credential": True, "saved": False, "platform": "android 16",
        "state": "online", "exact": True,
    }  # fmt: skip
    assert (unused["device"], unused["state"], unused["last_seen"]) == ("alice@unused", "offline", 0)
    table = await imqtt("device", "list", *where)
    assert "android 16" in table.out


async def test_the_list_of_a_user_says_which_data_are_unavailable(broker: Mosquitto) -> None:
    broker.passwords.add("alice@phone")
    listed = await imqtt("device", "list", "alice", "--data", broker.directory)
    assert listed.status == 0
    assert "not known" in listed.out
    assert "there is no store at" in listed.err
    assert "states are not shown: no server runs on this broker" in listed.err


async def test_commands_on_a_separate_broker_reach_the_server_by_its_settings(
    broker: Mosquitto, running: Server, stack: AsyncExitStack, tmp_path: Path
) -> None:
    _, bob = await talking(broker, stack)
    where = ("--passwords", broker.passwords.path, "--pid-file", broker.directory / "mosquitto.pid")
    broker.passwords.add("alice@tablet")
    revoked = await imqtt("device", "revoke", "alice@tablet", *where)
    assert revoked.status == 0
    assert "the server was not told" in revoked.err
    assert "`imqtt device forget alice@tablet` tells it" in revoked.err
    settings = tmp_path / "imqtt.toml"
    settings.write_text(
        f'broker_port = {broker.internal_port}\nbroker_password_file = "{broker.directory}/server-password"\n'
        f'store = "sqlite:///{broker.directory}/imqtt.db"\n'
    )
    listed = await imqtt("device", "list", "alice", *where[:2], "--config", settings, "--json")
    assert [row["state"] for row in listed.rows] == ["online"]
    revoked = await imqtt("device", "revoke", "alice@phone", *where, "--config", settings)
    assert (revoked.status, revoked.err) == (0, "")
    await sees_alice(bob, "offline")
    assert await devices_of_alice(running) == ()
    forgotten = await imqtt("device", "forget", "bob@laptop", "--config", settings, "--data", tmp_path)
    assert forgotten.out == "The server forgets bob@laptop.\n"
    await eventually(lambda: running.counters.devices_revoked == 2)


@pytest.mark.parametrize("change", [("revoke",), ("add", "--replace")], ids=["revoked", "replaced"])
@pytest.mark.parametrize("connected", [True, False])
async def test_the_broker_survives_when_devices_with_sessions_lose_their_passwords(
    tmp_path: Path,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, ...],
    connected: bool,
) -> None:
    """Mosquitto 2.0.11 expired such a session twice, and used it after it was freed."""
    monkeypatch.setenv("MALLOC_PERTURB_", "165")  # makes a use after free crash
    broker = await stack.enter_async_context(Mosquitto(tmp_path / "broker"))
    names = [f"alice@phone{number}" for number in range(4)]
    for name in [*names, "bob@phone"]:
        device = RawDevice(broker, name)
        await device.connect(clean_start=False, session_expiry=1)
        stack.push_async_callback(device.disconnect)
        if name == "bob@phone" or not connected:
            await device.disconnect()
    changed = await imqtt("device", *change, *names, "--data", broker.directory, "--json")
    await imqtt("device", "add", "carol@phone", "--data", broker.directory)
    for row in changed.rows if change != ("revoke",) else ():
        assert log_in(broker.host, broker.port, row["device"], row["password"])
    expired = "Expiring client bob@phone"
    await eventually(lambda: not broker.running() or expired in broker.log.read_text())
    await imqtt("device", "add", "dave@phone", "--data", broker.directory)
    assert broker.running()
