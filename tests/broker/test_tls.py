"""TLS, with a certificate made for the test."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imqtt.broker import Packet, connect
from tests.broker.peers import Broker


async def openssl(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "openssl", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@pytest.fixture
async def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1. Its key is in the same directory."""
    await openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem"),
    )  # fmt: skip
    (tmp_path / "key.pem").chmod(0o644)  # Mosquitto started by root reads it as another user
    return tmp_path / "certificate.pem"


@pytest.fixture
async def tls_broker(tmp_path: Path, certificate: Path) -> AsyncIterator[Broker]:
    more = f"certfile {certificate}\nkeyfile {tmp_path / 'key.pem'}\nuser root"
    async with Broker(tmp_path, more) as broker:
        yield broker


async def test_a_link_works_over_tls(tls_broker: Broker, certificate: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    link = await connect(tls_broker.settings("one", tls=context))
    await link.subscribe("t")

    assert await link.publish([Packet("t", bytes(1_000_000)), Packet("t", b"x")]) == [0, 0]

    received = await link.receive(1)
    assert len(received[0].payload) == 1_000_000
    await link.close()


async def test_an_untrusted_certificate_is_refused(tls_broker: Broker) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(tls_broker.settings("one", tls=ssl.create_default_context()))
