"""The broker goes down and comes back: one log line for each, and the server reconnects at once."""

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imqtt.config import ServerConfig
from imqtt.errors import SetupError
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.server import connections
from imqtt.server.app import Server
from imqtt.serving import serving
from tests.broker.peers import Broker
from tests.broker.test_tls import openssl
from tests.services import WITHIN, eventually


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_loss_and_the_return_of_the_broker_are_each_logged_once(
    running: Server, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"{INTERNAL_HOST}:{broker.internal_port}"
    await broker.kill()
    await eventually(lambda: "Connection refused" in running.health().broker)
    assert address in running.health().broker
    assert running.health().status == "cut off"
    await broker.start()
    await eventually(lambda: len(running.health().partitions) == 16)
    await eventually(lambda: any("works again" in message for message in warnings(caplog)))
    first, *changed, last = warnings(caplog)
    assert first.startswith(f"no connection to the broker at {address}")
    assert all("Connection refused" in message for message in changed)
    assert len(changed) == 1  # first the connection was lost, then refused
    assert last.startswith(f"every connection to the broker at {address} works again, after")
    assert last.endswith("19 were affected")
    assert running.health().broker == "ok"


async def test_all_sessions_reconnect_as_soon_as_one_connection_succeeds(
    running: Server, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []

    def backoff(attempt: int, chance: float, **of_a_probe: float) -> float:
        if of_a_probe:
            return 0.05
        waiting.append(attempt)
        return 10 * WITHIN

    monkeypatch.setattr(connections, "backoff", backoff)
    await broker.kill()
    await eventually(lambda: len(waiting) >= 16)
    await broker.start()
    await eventually(lambda: len(running.health().partitions) == 16)


# --- TLS


class Authority:
    """A certificate authority and the files that a broker and a server use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    @property
    def ca(self) -> bytes:
        return (self.directory / "ca.pem").read_bytes()

    async def make(self) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        at = self.directory
        await openssl(
            "req", "-x509", *key, "-subj", f"/CN={at.name}", "-keyout", f"{at}/ca.key", "-out", f"{at}/ca.pem"
        )
        await openssl(
            "req", *key, "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", f"{at}/key.pem", "-out", f"{at}/request.pem",
        )  # fmt: skip
        await openssl(
            "x509", "-req", "-in", f"{at}/request.pem", "-CA", f"{at}/ca.pem", "-CAkey", f"{at}/ca.key",
            "-CAcreateserial", "-days", "2", "-copy_extensions", "copy", "-out", f"{at}/certificate.pem",
        )  # fmt: skip
        (at / "key.pem").chmod(0o644)  # Mosquitto started as root reads it as another user

    def use(self, place: Path) -> None:
        for name in ("certificate.pem", "key.pem"):
            (place / name).write_bytes((self.directory / name).read_bytes())


@pytest.fixture
async def authorities(tmp_path: Path) -> list[Authority]:
    made = [Authority(tmp_path / "old"), Authority(tmp_path / "new")]
    for authority in made:
        await authority.make()
    return made


@pytest.fixture
async def tls_broker(tmp_path: Path, authorities: list[Authority], stack: AsyncExitStack) -> Broker:
    place = tmp_path / "broker-tls"
    place.mkdir()
    authorities[0].use(place)
    more = f"certfile {place / 'certificate.pem'}\nkeyfile {place / 'key.pem'}\nuser root"
    return await stack.enter_async_context(Broker(place, more))


def config(broker: Broker, folder: Path, **settings: object) -> ServerConfig:
    given = {"broker_port": broker.port, "store": f"sqlite:///{folder / 'imqtt.db'}", **settings}
    return ServerConfig.from_environment({}, **given)


async def test_new_authorities_are_read_from_their_file_without_a_restart(
    tls_broker: Broker,
    authorities: list[Authority],
    tmp_path: Path,
    stack: AsyncExitStack,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = authorities
    ca = tmp_path / "authorities.pem"
    ca.write_bytes(old.ca)
    server = await stack.enter_async_context(serving(config(tls_broker, tmp_path, broker_ca=ca)))

    ca.write_bytes(b"not yet written")  # does not matter while it is connected
    await tls_broker.kill()
    await eventually(lambda: "no certificates in PEM form" in server.health().broker)
    assert str(ca) in server.health().broker
    new.use(tmp_path / "broker-tls")
    await tls_broker.start()
    ca.write_bytes(old.ca)
    await eventually(lambda: "the broker's certificate is not trusted" in server.health().broker)
    assert str(ca) in server.health().broker
    assert any(
        ": the broker's certificate is not trusted" in message and str(ca) in message
        for message in warnings(caplog)
    )

    ca.write_bytes(new.ca)
    await eventually(lambda: server.health().status == "ok")
    await eventually(lambda: len(server.health().partitions) == 16)


async def test_the_servers_own_certificate_is_read_again_when_it_changes(
    authorities: list[Authority], tmp_path: Path, stack: AsyncExitStack
) -> None:
    """The broker starts to require a certificate that a new authority has signed."""
    old, new = authorities
    place = tmp_path / "broker-tls"
    place.mkdir()
    old.use(place)
    (place / "clients.pem").write_bytes(old.ca)
    more = (
        f"certfile {place / 'certificate.pem'}\nkeyfile {place / 'key.pem'}\nuser root\n"
        f"cafile {place / 'clients.pem'}\nrequire_certificate true"
    )
    broker = await stack.enter_async_context(Broker(place, more))
    ca, own = tmp_path / "authorities.pem", tmp_path / "own"
    ca.write_bytes(old.ca)
    own.mkdir()
    old.use(own)
    settings = {"broker_ca": ca, "broker_certificate": own / "certificate.pem", "broker_key": own / "key.pem"}
    server = await stack.enter_async_context(serving(config(broker, tmp_path, **settings)))

    await broker.kill()
    (place / "clients.pem").write_bytes(new.ca)
    (own / "certificate.pem").write_bytes((new.directory / "certificate.pem").read_bytes())
    await broker.start()
    await eventually(lambda: f"{own / 'certificate.pem'} and {own / 'key.pem'}" in server.health().broker)
    new.use(own)
    await eventually(lambda: len(server.health().partitions) == 16)


async def test_a_missing_certificate_file_is_named_at_the_start(broker: Mosquitto, tmp_path: Path) -> None:
    missing = tmp_path / "no-such.pem"
    given = ServerConfig.from_environment(
        {}, broker_port=broker.internal_port, broker_ca=missing, store=f"sqlite:///{tmp_path / 'imqtt.db'}"
    )
    with pytest.raises(SetupError, match=f"{missing}: No such file or directory"):
        async with serving(given):
            pass


async def test_a_broker_that_is_down_at_the_start_is_logged_with_its_address(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.stop()
    given = ServerConfig.from_environment(
        {}, broker_port=broker.internal_port, broker_password=broker.server_password,
        store=f"sqlite:///{tmp_path / 'imqtt.db'}",
    )  # fmt: skip

    async def serve() -> None:
        async with serving(given):
            pass

    server = asyncio.create_task(serve())
    await eventually(lambda: warnings(caplog))
    assert f"127.0.0.1:{broker.internal_port}" in warnings(caplog)[0]
    assert "Connection refused" in warnings(caplog)[0]
    await broker.start()
    await asyncio.wait_for(server, WITHIN)
