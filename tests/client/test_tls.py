"""A request for TLS results in TLS or in an error that names the cause."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imqtt.client import Client, Phase
from imqtt.client.settings import Address, parse_address, parse_addresses
from imqtt.errors import CredentialsRefused, SetupError, TlsFailed
from imqtt.tls_files import files_context
from tests.certificates import Authority, TlsMosquitto
from tests.client.conftest import PATIENT
from tests.client.fake_server import FakeServer
from tests.client.test_messages import TALK
from tests.services import WITHIN, eventually


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def tls(tmp_path: Path, authority: Authority) -> AsyncIterator[TlsMosquitto]:
    certificate = authority.issue("broker", hosts="IP:127.0.0.1")
    async with TlsMosquitto(tmp_path / "broker", authority, certificate) as broker:
        broker.passwords.add("alice@phone", "secret")
        yield broker


def alice(broker: str, **settings: Any) -> Client:
    given: dict[str, Any] = {"password": "secret", "timing": PATIENT, "wait": WITHIN, **settings}
    return Client(user="alice", device="phone", brokers=broker, **given)


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.file)


class Listener:
    """Accepts connections and records the received bytes."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""

    async def __aenter__(self) -> "Listener":
        self._server = await asyncio.start_server(self._listen, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received += await reader.read(4_096)
        writer.close()


# --- a request for TLS


async def test_messages_are_sent_over_tls(tls: TlsMosquitto, authority: Authority) -> None:
    async with FakeServer(tls):
        for address in (
            f"127.0.0.1:{tls.tls_port}",
            f"mqtts://127.0.0.1:{tls.tls_port}",
            f"wss://127.0.0.1:{tls.wss_port}",
        ):
            async with alice(address, tls=trusting(authority)) as client:
                await client.send(TALK, "hi")
                assert client.state.address.startswith(("mqtts://", "wss://"))


async def test_a_client_certificate_replaces_the_password(tls: TlsMosquitto, authority: Authority) -> None:
    files = authority.issue("alice@phone")
    async with FakeServer(tls) as fake:
        address = f"mqtts://127.0.0.1:{tls.certified_port}"
        async with alice(address, password="", tls=lambda: files_context(authority.file, *files)) as client:
            assert (await client.send(TALK, "hi")).seq == 1
        assert {str(device) for device, _, _ in fake.received} == {"alice@phone"}


async def test_a_certificate_of_another_device_is_named_as_the_cause(
    tls: TlsMosquitto, authority: Authority
) -> None:
    files = authority.issue("bob@phone")
    async with FakeServer(tls):
        context = files_context(authority.file, *files)
        async with alice(f"mqtts://127.0.0.1:{tls.certified_port}", tls=context) as client:
            assert "0x87, not authorized" in client.state.reason
            assert "common name" in client.state.reason


async def test_with_tls_an_address_without_a_scheme_is_encrypted(authority: Authority) -> None:
    async with Listener() as listener:
        async with alice(f"127.0.0.1:{listener.port}", tls=trusting(authority)) as client:
            assert client.state.address == f"mqtts://127.0.0.1:{listener.port}"
        await eventually(lambda: listener.received)
    assert listener.received[0] == 0x16  # a TLS handshake
    assert b"secret" not in listener.received


@pytest.mark.parametrize(
    "brokers",
    [
        "mqtt://127.0.0.1:{}",
        "ws://127.0.0.1:{}",
        ["mqtts://127.0.0.1:{}", "mqtt://127.0.0.1:{}"],
        ["127.0.0.1:{}", "ws://127.0.0.1:{}"],
    ],
)
async def test_tls_and_an_address_without_it_contradict_each_other(
    brokers: str | list[str], authority: Authority
) -> None:
    async with Listener() as listener:
        many = [
            address.format(listener.port) for address in ([brokers] if isinstance(brokers, str) else brokers)
        ]
        with pytest.raises(SetupError, match=r"TLS is asked for, but .* would send the password unencrypted"):
            async with alice(many, tls=trusting(authority)):  # type: ignore[arg-type]
                pass
        assert listener.received == b""


@pytest.mark.parametrize("plain", ["mqtt://b:1883", "b:1883", "b", "ws://b"])
def test_of_several_brokers_all_use_tls_or_none_does(plain: str) -> None:
    for brokers in (["mqtts://a", plain], [plain, "mqtts://a"], [plain, "wss://a"]):
        with pytest.raises(SetupError, match="would send the password unencrypted"):
            parse_addresses(brokers)


def test_the_port_of_mqtt_over_tls_asks_for_tls() -> None:
    assert parse_address("broker:8883") == Address("broker", 8883, "mqtts")
    assert parse_address("broker", encrypted=True) == Address("broker", 8883, "mqtts")
    assert parse_address("mqtt://broker:8883").is_encrypted is False  # explicitly


@pytest.mark.parametrize(
    "address",
    [
        "mqtt://broker?tls=true",
        "mqtt://broker/tls",
        "broker:1883?ssl",
        "mqtt://alice:pw@broker",
        "mqtt://b#tls",
    ],
)
def test_no_part_of_an_address_is_ignored(address: str) -> None:
    with pytest.raises(SetupError, match="address"):
        parse_address(address)


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        (unverified(), "verifies no certificate"),
        (unverified, "verifies no certificate"),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "for servers"),
        (True, "neither an ssl.SSLContext"),
        (dict, "neither an ssl.SSLContext"),
    ],
)
def test_a_context_that_protects_nothing_is_refused(tls: Any, why: str) -> None:
    with pytest.raises(SetupError, match=why):
        alice("127.0.0.1", tls=tls)


def test_a_device_without_a_password_needs_tls() -> None:
    with pytest.raises(SetupError, match="needs its password"):
        alice("127.0.0.1", password="")


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("named")
    text = tmp_path / "text"
    text.write_text("no certificate")
    missing = tmp_path / "missing"
    for files, named in [
        ((missing, None, None), f"cannot read {missing}: No such file"),
        ((text, None, None), f"{text}: no certificates in PEM form"),
        (
            (authority.file, certificate, None),
            f"{certificate}, which has to hold its key as well: no certificate, or no private key",
        ),
        ((authority.file, certificate, text), f"{certificate} and {text}"),
        ((authority.file, None, key), f"{key} is given without a certificate"),
    ]:
        with pytest.raises(SetupError) as caught:
            files_context(*files)
        assert str(caught.value).startswith(named)


# --- connections that fail


async def failure(broker: str, caplog: pytest.LogCaptureFixture, **settings: Any) -> str:
    """The reason why this client does not connect, which must be logged once, and nothing else."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    async with alice(broker, **settings) as client:
        state = client.state
    assert state.phase is Phase.IDLE
    assert isinstance(state.error, TlsFailed)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert warning.endswith(f" is not connected yet, and keeps trying: {state.reason}")
    return state.reason


async def test_protocols_that_do_not_match_are_named(
    tls: TlsMosquitto,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    context = trusting(authority)
    encrypted, plain = f"127.0.0.1:{tls.tls_port}", f"127.0.0.1:{tls.port}"
    assert await failure(f"mqtt://{encrypted}", caplog) == f"{encrypted} speaks TLS: use mqtts://{encrypted}"
    web = f"127.0.0.1:{tls.wss_port}"
    assert await failure(f"ws://{web}", caplog) == f"{web} speaks TLS: use wss://{web}/"
    for scheme in ("mqtts", "wss"):
        reason = await failure(f"{scheme}://{plain}", caplog, tls=context)
        assert reason.startswith(f"{plain} speaks no TLS: give the port of a TLS listener")
    async with alice(f"ws://{plain}") as client:
        assert client.state.reason == f"{plain} speaks MQTT without WebSockets: use mqtt://{plain}"
    web = f"127.0.0.1:{tls.websocket_port}"
    async with alice(f"mqtt://{web}") as client:
        assert client.state.reason == f"{web} speaks HTTP or WebSockets: use ws://{web}, or the port for MQTT"
    assert capfd.readouterr() == ("", "")


async def test_an_answer_that_is_not_mqtt_5_is_explained() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes((0x20, 2, 0, 1)))  # MQTT 3.1.1: no such version
        await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as old:
        place = f"127.0.0.1:{old.sockets[0].getsockname()[1]}"
        async with alice(place) as client:
            reason = client.state.reason
    assert reason.startswith(f"mqtt://{place}: ")
    assert not reason.removeprefix(f"mqtt://{place}: ").isdigit()


async def test_a_problem_of_the_brokers_certificate_is_named(
    tls: TlsMosquitto, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encrypted = f"127.0.0.1:{tls.tls_port}"
    assert "signed by an unknown authority: give the authority's file with --ca" in await failure(
        f"mqtts://{encrypted}", caplog
    )
    local = await failure(f"mqtts://localhost:{tls.tls_port}", caplog, tls=trusting(authority))
    assert "is for another host (Hostname mismatch, certificate is not valid for 'localhost')" in local
    expired = authority.issue("expired", hosts="IP:127.0.0.1", days=-1)
    async with TlsMosquitto(tmp_path / "expired", authority, expired) as old:
        reason = await failure(f"mqtts://127.0.0.1:{old.tls_port}", caplog, tls=trusting(authority))
    assert reason == f"mqtts://127.0.0.1:{old.tls_port}: the broker's certificate has expired"


async def test_a_problem_of_the_devices_certificate_is_named(
    tls: TlsMosquitto, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"mqtts://127.0.0.1:{tls.certified_port}"
    reason = await failure(address, caplog, tls=trusting(authority))
    assert "the broker asks for a client certificate: give --cert and --key" in reason
    stranger = Authority(tmp_path / "stranger").issue("alice@phone")
    reason = await failure(address, caplog, tls=files_context(authority.file, *stranger))
    assert "does not know the authority that signed this device's certificate" in reason
    old = authority.issue("alice@phone", days=-1, file="old")
    reason = await failure(address, caplog, tls=files_context(authority.file, *old))
    assert "this device's certificate has expired" in reason


async def test_a_wrong_password_is_refused_over_tls_too(tls: TlsMosquitto, authority: Authority) -> None:
    with pytest.raises(CredentialsRefused):
        async with alice(f"127.0.0.1:{tls.tls_port}", password="wrong", tls=trusting(authority)):
            pass


async def test_renewed_files_are_read_for_the_next_connection(
    tls: TlsMosquitto, authority: Authority, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Authority(tmp_path / "old", "old").file.read_bytes())
    address = f"127.0.0.1:{tls.tls_port}"
    async with FakeServer(tls), alice(address, tls=lambda: files_context(trusted, None, None)) as client:
        assert isinstance(client.state.error, TlsFailed)
        trusted.write_bytes(trusted.read_bytes() + authority.file.read_bytes())
        await asyncio.wait_for(client.caught_up(), WITHIN)
        assert client.state.error is None
