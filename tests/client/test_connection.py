"""A client keeps itself connected, and reports its state and errors."""

import asyncio
import contextlib
import socket
import sqlite3
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from imqtt.client import Client, Phase
from imqtt.client.settings import parse_address
from imqtt.client.store import LocalStore
from imqtt.errors import ClientError, CredentialsRefused, DeviceStoreError, SetupError
from imqtt.model import Device, Hello, History, Page, Rejected, Status, Sync
from imqtt.mosquitto.broker import Mosquitto
from tests.client import fake_server
from tests.client.conftest import LONG, PATIENT, QUICK, Devices, after
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK, take
from tests.ports import free_port
from tests.services import WITHIN, eventually


def cut(client: Client) -> None:
    """Cuts the client's connection, as networks do."""
    client._parts.uplink.mqtt._client._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


async def test_states_are_reported_in_their_order(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    alice = device()
    phases = []

    async def watch() -> None:
        async for state in alice.states():
            phases.append(state.phase)  # noqa: PERF401 - read while it grows

    async with alice:
        watching = asyncio.create_task(watch())
        await eventually(lambda: phases)
        assert phases == [Phase.ESTABLISHED]
        await fake.disconnect()
        await broker.kill()
        await eventually(lambda: Phase.IDLE in phases)
        await broker.start()
        await fake.connect()
        await eventually(lambda: phases[-1] is Phase.ESTABLISHED)
    await asyncio.wait_for(watching, WITHIN)
    assert phases[-1] is Phase.CLOSED
    assert Phase.CONNECTING in phases


async def test_a_message_survives_a_kill_of_the_broker(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    async with device() as alice:
        await fake.disconnect()
        await broker.kill()
        sending = asyncio.create_task(alice.send(TALK, "hi"))
        await eventually(lambda: alice.state.phase is not Phase.ESTABLISHED)
        await broker.start()
        await fake.connect()
        assert (await asyncio.wait_for(sending, WITHIN)).seq == 1


async def test_a_wrong_password_raises_on_entering(device: Devices, fake: FakeServer) -> None:
    with pytest.raises(CredentialsRefused, match="alice@phone"):
        async with device(password="wrong"):
            pass


async def test_revoked_credentials_end_the_client_and_all_waiting_calls(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    async with device(stored=True) as alice:
        waiting = asyncio.create_task(anext(alice.events()))
        fake.silent = True
        sending = asyncio.create_task(alice.send(TALK, "hi"))
        await eventually(alice.outbox)
        broker.passwords.remove_all(["alice@phone"])
        await fake.disconnect()
        await broker.kill()
        await broker.start()
        for task in (sending, waiting):
            with pytest.raises(CredentialsRefused):
                await asyncio.wait_for(task, WITHIN)
        assert alice.state.phase is Phase.CLOSED
        with pytest.raises(CredentialsRefused):
            await alice.send(TALK, "more")
        assert len(await alice.outbox()) == 1


async def test_another_broker_is_tried_when_one_is_unreachable(
    fake: FakeServer, device: Devices, broker: Mosquitto
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{unused.getsockname()[1]}"
        async with device(brokers=[away, f"mqtt://{broker.host}:{broker.port}"], wait=0) as alice:
            await asyncio.wait_for(alice.caught_up(), WITHIN)
            assert alice.state.address == f"mqtt://{broker.host}:{broker.port}"


async def test_websockets_work_too(fake: FakeServer, device: Devices, broker: Mosquitto) -> None:
    async with device(brokers=f"ws://{broker.host}:{broker.websocket_port}") as alice:
        assert (await alice.send(TALK, "hi")).seq == 1


async def test_a_client_works_without_a_connection_and_ends_at_once(device: Devices) -> None:
    async with asyncio.timeout(WITHIN), device(brokers="127.0.0.1:1", stored=True, wait=LONG) as alice:
        assert alice.state.phase is not Phase.ESTABLISHED
        assert alice.state.reason
        await alice.post(TALK, "later")
        await alice.typing(TALK)
        await alice.set_status("away")
        assert await alice.conversations() == []


async def test_a_connection_to_a_broker_that_never_answers_times_out(device: Devices) -> None:
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(LONG), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timing = replace(PATIENT, connect=0.5)
    async with (
        asyncio.timeout(WITHIN),
        device(brokers=f"127.0.0.1:{port}", timing=timing, wait=LONG) as alice,
    ):
        assert "no answer within 0.5 s" in alice.state.reason
    server.close()


async def test_hello_is_repeated_until_it_is_answered(fake: FakeServer, device: Devices) -> None:
    fake.silent = True
    async with device(wait=0, timing=QUICK) as alice:
        await eventually(lambda: len(fake.commands(Hello)) >= 2)
        assert alice.state.phase is Phase.CONNECTING
        fake.silent = False
        await asyncio.wait_for(alice.caught_up(), WITHIN)
    partitions = {partition for _, partition, command in fake.received if isinstance(command, Hello)}
    assert partitions == {0}  # until the server has reported the number
    assert len({hello.nonce for hello in fake.commands(Hello)}) == 1  # type: ignore[union-attr]


async def test_a_hello_that_is_rejected_for_good_is_retried_on_another_connection(
    fake: FakeServer, device: Devices
) -> None:
    refused = [1]

    def refuse(command: object) -> Rejected | None:
        if isinstance(command, Hello) and refused[0]:
            refused[0] -= 1
            return Rejected("invalid", "no such platform", False, "hello", ref=command.ref)
        return None

    fake.refuse = refuse
    async with device() as alice:
        await asyncio.wait_for(alice.caught_up(), WITHIN)
        assert len({hello.nonce for hello in fake.commands(Hello)}) == 2  # type: ignore[union-attr]


async def test_a_broker_without_a_server_is_left_for_another(
    fake: FakeServer, device: Devices, broker: Mosquitto, tmp_path: Path
) -> None:
    async with Mosquitto(tmp_path / "lonely") as lonely:
        for server in (lonely, broker):
            server.passwords.add("alice@phone", "secret")
        brokers = [f"mqtt://{server.host}:{server.port}" for server in (lonely, broker)]
        timing = replace(PATIENT, answer=0.2, silence=1.0)
        async with device(brokers=brokers, password="secret", timing=timing, wait=0) as alice:
            await eventually(lambda: alice.state.address == brokers[0])
            await asyncio.wait_for(alice.caught_up(), WITHIN)
            assert alice.state.address == brokers[1]


async def test_a_client_reconnects_when_the_server_falls_silent(fake: FakeServer, device: Devices) -> None:
    async with device(timing=replace(PATIENT, answer=0.2, silence=1.0, sync=0.3)) as alice:
        fake.silent = True  # as if the subscription were lost
        await eventually(lambda: len({hello.nonce for hello in fake.commands(Hello)}) >= 2)  # type: ignore[union-attr]
        fake.silent = False
        await asyncio.wait_for(alice.caught_up(), WITHIN)


async def test_a_server_that_sends_retry_after_is_not_silent(fake: FakeServer, device: Devices) -> None:
    def refuse(command: object) -> Rejected | None:
        if isinstance(command, Sync):
            return Rejected("unavailable", "not now", True, "sync", ref=command.ref, retry_after=6_500)
        return None

    # Silence ends a connection after 5 to 6 s: later than an answer comes, and before the next question.
    async with device(timing=replace(PATIENT, silence=5.0, sync=0.1)):
        fake.refuse = refuse
        await eventually(lambda: len(fake.commands(Sync)) >= 2)
        assert len({hello.nonce for hello in fake.commands(Hello)}) == 1  # type: ignore[union-attr]


async def test_the_silence_and_the_return_of_the_server_behind_a_broker_are_reported(
    fake: FakeServer, device: Devices
) -> None:
    async with device(timing=replace(QUICK, idle=0.2)) as alice:
        assert alice.state.phase is Phase.ESTABLISHED
        await eventually(lambda: not alice.state.silent)
        for _ in range(2):
            fake.silent = True
            await eventually(lambda: alice.state.silent)
            assert alice.state.phase is Phase.ESTABLISHED
            fake.silent = False
            await eventually(lambda: not alice.state.silent)


async def test_a_device_without_an_idle_interval_sends_no_periodic_requests(
    fake: FakeServer, device: Devices
) -> None:
    async with device(timing=replace(PATIENT, idle=0.1)), device("bob@phone") as bob:
        await bob.caught_up()
        asked = len(fake.commands(Sync, "bob@phone"))
        await eventually(lambda: len(fake.commands(Sync, "alice@phone")) > 3)
        assert len(fake.commands(Sync, "bob@phone")) == asked


async def test_without_any_server_entering_returns_and_the_state_says_why(
    broker: Mosquitto, device: Devices, fake: FakeServer
) -> None:
    fake.silent = True
    alice = device(wait=0.1, timing=QUICK)
    states = alice.states()  # before entering, so that a program can show them while it waits
    async with alice, asyncio.timeout(WITHIN):
        async for state in states:
            if state.silent:
                assert state.phase is Phase.CONNECTING
                break
        fake.silent = False
        async for state in states:
            if state.phase is Phase.ESTABLISHED:
                assert not state.silent
                break


async def test_a_request_on_a_lost_connection_is_repeated_at_once_on_the_next(
    fake: FakeServer, device: Devices
) -> None:
    async with device() as alice:
        event = fake.store(TALK, "hi")
        fake.lose = lambda _, frame: isinstance(frame, Page) and any(part.history for part in frame.slices)
        reading = asyncio.create_task(alice.history(TALK))
        await eventually(lambda: fake.commands(History))
        fake.lose = lambda _device, _frame: False
        cut(alice)
        assert await asyncio.wait_for(reading, WITHIN) == [event]


@pytest.mark.parametrize("ticks", range(10))
async def test_closing_ends_though_the_connection_is_lost_just_then(
    fake: FakeServer, device: Devices, ticks: int
) -> None:
    alice = device()
    await alice.__aenter__()
    paho = alice._parts.uplink.mqtt._client._client  # type: ignore[union-attr]
    closing: list[asyncio.Task[None]] = []
    hear = paho.on_disconnect

    def lost(*given: object) -> None:
        hear(*given)  # type: ignore[misc]
        after(ticks, lambda: closing.append(asyncio.create_task(alice.close())))

    paho.on_disconnect = lost  # type: ignore[assignment]
    cut(alice)
    await eventually(lambda: closing)
    await asyncio.wait(closing, timeout=WITHIN)
    assert closing[0].done()
    assert alice.state.phase is Phase.CLOSED


async def test_a_clean_end_publishes_offline_and_otherwise_the_will_does(
    fake: FakeServer, device: Devices
) -> None:
    async with device():
        pass
    await eventually(lambda: fake.commands(Status))
    async with device() as alice:
        nonce = fake.commands(Hello)[-1].nonce  # type: ignore[union-attr]
        cut(alice)
        await eventually(lambda: len(fake.commands(Status)) >= 2)
        assert fake.commands(Status)[1] == Status("offline", nonce)
        await eventually(lambda: len(fake.commands(Hello)) == 3)


async def test_a_status_is_reported_again_on_the_next_connection(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        await alice.set_status("background", network="wifi", battery=80)
        cut(alice)
        await eventually(lambda: len(fake.commands(Hello)) == 2)
        nonce = fake.commands(Hello)[-1].nonce  # type: ignore[union-attr]
        await eventually(lambda: Status("background", nonce, "wifi", 80) in fake.commands(Status))


async def test_a_device_that_only_listens_keeps_itself_present(
    fake: FakeServer, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_server, "LIMITS", msgspec.structs.replace(fake_server.LIMITS, presence=1))
    async with device():
        await eventually(lambda: len(fake.commands(Status)) >= 3)


async def test_two_clients_cannot_have_one_store(fake: FakeServer, device: Devices) -> None:
    async with device(stored=True):
        with pytest.raises(DeviceStoreError, match="in use"):
            async with device(stored=True):
                pass


async def test_iterators_stop_when_the_client_is_closed(fake: FakeServer, device: Devices) -> None:
    async with device() as alice:
        events, notices = alice.events(), alice.notices()
        waiting = [asyncio.create_task(take(stream, 1)) for stream in (events, notices)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == [[], []]


@pytest.mark.parametrize("name", ["alice@ph one", "a+b@phone", "@phone", "a" * 60 + "@phone"])
def test_invalid_user_and_device_names_are_refused(name: str) -> None:
    user, device = name.split("@")
    with pytest.raises(SetupError, match="user and device"):
        Client(user=user, device=device, password="x")


@pytest.mark.parametrize("address", ["", "http://host", "host:port", "mqtt://", "host:99999"])
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(SetupError, match="address"):
        Client(user="alice", device="phone", password="x", brokers=address)


def test_a_password_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Client(user="alice", device="phone", password="secret").settings)


# --- entering that fails


async def test_a_client_that_cannot_be_entered_releases_its_store(
    device: Devices, fake: FakeServer, tmp_path: Path
) -> None:
    with pytest.raises(CredentialsRefused):
        async with device(stored=True, password="wrong"):
            pass
    with pytest.raises(DeviceStoreError, match="belongs to alice@phone"):
        async with device("bob@phone", store=tmp_path / "alice-phone.db"):
            pass
    await _is_free(tmp_path / "alice-phone.db")


async def test_a_client_that_finds_a_damaged_store_releases_it(device: Devices, tmp_path: Path) -> None:
    path = tmp_path / "alice-phone.db"
    async with device(stored=True, brokers="127.0.0.1:1"):
        pass
    with contextlib.closing(sqlite3.connect(path)) as damaged, damaged:
        damaged.execute("DROP TABLE marks")
    with pytest.raises(DeviceStoreError, match="marks"):
        async with device(stored=True, brokers="127.0.0.1:1"):
            pass
    await _is_free(path)


@pytest.mark.parametrize("ticks", range(0, 24, 2))
async def test_cancelling_the_entry_releases_the_store(device: Devices, tmp_path: Path, ticks: int) -> None:
    """At any moment: while the file is opened or read, and while the client connects."""
    entering = asyncio.create_task(device(stored=True, brokers="127.0.0.1:1").__aenter__())
    for _ in range(ticks):
        await asyncio.sleep(0.0005)
    entering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await entering).close()
    await _is_free(tmp_path / "alice-phone.db")


async def test_cancelling_close_releases_the_store(fake: FakeServer, device: Devices, tmp_path: Path) -> None:
    alice = device(stored=True)
    await alice.__aenter__()
    closing = asyncio.create_task(alice.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await _is_free(tmp_path / "alice-phone.db")


async def test_a_client_is_entered_once(device: Devices) -> None:
    alice = device(brokers="127.0.0.1:1", stored=True)
    async with alice:
        with pytest.raises(ClientError, match="entered once"):
            await alice.__aenter__()
        assert await alice.conversations() == []


async def _is_free(path: Path) -> None:
    """Waits until another client could open the store. A cancelled thread may take a moment."""

    async def opens() -> bool:
        try:
            store = await LocalStore.open(path, Device("alice", "phone"))
        except DeviceStoreError:
            return False
        await store.close()
        return True

    await eventually(opens)


# --- addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[::1]:1883", "mqtt://[::1]:1883"),
        ("mqtts://[fe80::1]", "mqtts://[fe80::1]:8883"),
        ("ws://[::1]:8083/mqtt", "ws://[::1]:8083/mqtt"),
        ("Broker", "mqtt://broker:1883"),
    ],
)
def test_addresses_are_shown_in_a_form_that_can_be_parsed(text: str, shown: str) -> None:
    address = parse_address(text)
    assert str(address) == shown
    assert parse_address(shown) == address


@pytest.mark.parametrize("text", ["::1", "::1:1883", "mqtt://fe80::1:1883"])
def test_an_ipv6_address_without_brackets_is_ambiguous(text: str) -> None:
    with pytest.raises(SetupError, match=r"in brackets: \[::1\]:1883"):
        parse_address(text)


async def test_an_ipv6_address_appears_in_states_and_errors_as_given(device: Devices) -> None:
    async with device(brokers="[::1]:1") as alice:
        assert alice.state.address == "mqtt://[::1]:1"
        assert alice.state.reason.startswith("mqtt://[::1]:1: ")


async def test_a_program_that_follows_no_states_gets_a_warning_with_the_reason(
    broker: Mosquitto, device: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    unused = f"127.0.0.1:{free_port()}"
    async with device(brokers=unused):
        pass
    assert caplog.messages == [
        f"alice@phone is not connected yet, and keeps trying: mqtt://{unused}: Connection refused"
    ]
    caplog.clear()
    async with device(wait=0.3):  # a broker without a server
        pass
    (warning,) = caplog.messages
    assert warning.startswith("alice@phone is not connected yet, and keeps trying: ")
    assert "no imqtt server has" in warning
    caplog.clear()
    alice = device("alice@tablet", wait=0.3)
    states = alice.states()
    async with alice:
        assert states
    assert caplog.messages == []
