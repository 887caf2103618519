"""Opening the state in Redis: every problem that the operator has to fix is stated in one clear sentence."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imqtt.errors import SetupError
from imqtt.state import open_state
from imqtt.state.base import State
from imqtt.state.redis import address as redis_address
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.services import WITHIN

CLUSTER = "0123456789abcdef"


@pytest.fixture(autouse=True)
def timeouts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    later, silent = ("later" in request.node.name), ("never_answers" in request.node.name)
    monkeypatch.setattr(redis_address, "OPEN_SECONDS", WITHIN if later else 0.5)
    monkeypatch.setattr(redis_address, "CONNECT_SECONDS", 0.5 if silent else WITHIN)


async def open_at(url: str, password: str = "") -> State:
    return await open_state(url, cluster=CLUSTER, rate=10, burst=20, password=password)


async def refusal(url: str, password: str = "") -> str:
    """The reason that the operator is given; it contains no password."""
    with pytest.raises(SetupError) as caught:
        await open_at(url, password)
    reason = str(caught.value)
    assert "secret" not in reason
    assert "secret" not in repr(caught.value)
    return reason


@asynccontextmanager
async def listener(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a server that is not quite a Redis."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_address_without_a_listener_is_refused() -> None:
    port = free_port()
    reason = await refusal(f"redis://alice:secret@127.0.0.1:{port}/3")
    assert f"127.0.0.1:{port}, database 3" in reason
    assert "Start one" in reason


async def test_a_host_that_does_not_exist_is_named() -> None:
    assert "nowhere.invalid" in await refusal("redis://nowhere.invalid:6379")


async def test_a_redis_that_starts_a_little_later_is_used(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    opening = asyncio.create_task(open_at(server.url))
    await asyncio.sleep(0)
    async with server:
        state = await opening
        assert state.trouble == ""
        await state.close()


async def test_wrong_passwords_are_refused_and_the_setting_overrides_the_address(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, password="secret") as server:
        for password in ("", "secretly wrong"):
            assert "refuses this user and password" in await refusal(server.url, password)
        with_wrong = server.url.replace("redis://", "redis://:secret-no@")
        assert "refuses this user and password" in await refusal(with_wrong)
        state = await open_at(with_wrong, "secret")  # the setting overrides the address's
        assert "secret" not in repr(state)
        await state.close()
        state = await open_at(server.url.replace("redis://", "redis://default:secret@"))
        await state.close()


async def test_a_password_for_a_redis_without_one_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        assert "refuses this user and password" in await refusal(server.url, "secret")


@pytest.mark.parametrize(
    "rules",
    [
        "~imqtt:* +@read +@write +@connection +info +time",  # no scripts
        "~imqtt:* +@read +@scripting +@connection +info +time",  # nothing written
        "~imqtt:* +@read +@write +@scripting +@connection +time",  # no INFO
        "~other:* +@read +@write +@scripting +@connection +info +time",  # other keys
    ],
)
async def test_a_user_with_too_few_permissions_is_refused(tmp_path: Path, rules: str) -> None:
    async with RedisServer(tmp_path) as server:
        server.command("ACL", "SETUSER", "chat", "on", ">secret", *rules.split())
        reason = await refusal(server.url.replace("redis://", "redis://chat:secret@"))
        assert "does not give this user enough permissions" in reason
        assert "~imqtt:* +@read +@write +@scripting +@connection +info +time" in reason


async def test_the_permissions_named_in_the_error_suffice(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        rules = "~imqtt:* +@read +@write +@scripting +@connection +info +time"
        server.command("ACL", "SETUSER", "chat", "on", ">secret", *rules.split())
        state = await open_at(server.url.replace("redis://", "redis://chat:secret@"))
        await state.forget_devices(["alice"])
        assert await state.workers() == []
        assert state.trouble == ""
        await state.close()


async def test_a_redis_cluster_is_refused(tmp_path: Path) -> None:
    bus = str(free_port())  # else the port + 10,000, which may be none
    async with RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", bus) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        assert "Redis Cluster" in await refusal(server.url)


async def test_a_replica_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(free_port())) as server:
        assert "read only replica" in await refusal(server.url)


async def test_a_database_number_out_of_range_is_refused(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        assert "out of range" in await refusal(server.url.removesuffix("0") + "99")


async def test_a_redis_that_is_too_old_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if b"\r\nINFO\r\n" in data:
                text = b"redis_version:6.0.16\r\ncluster_enabled:0\r\n"
                writer.write(b"$%d\r\n%s\r\n" % (len(text), text))
            else:
                writer.write(b"+OK\r\n" * data.count(b"*"))

    async with listener(answer) as url:
        reason = await refusal(url)
    assert "6.0.16" in reason
    assert "6.2" in reason


async def test_a_server_that_is_not_redis_is_refused() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listener(http) as url:
        assert "is not a Redis" in await refusal(url)


async def test_a_server_that_hangs_up_is_refused() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with listener(hang_up) as url:
        assert "closed" in await refusal(url)


async def test_a_server_that_never_answers_is_refused() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    async with listener(listen) as url:
        assert "no answer in time" in await refusal(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:secret/with/slash@127.0.0.1:6379/0", "redis://user@host:port/number"),
        ("redis://127.0.0.1:99999", "redis://user@host:port/number"),
        ("redis://[::1/0", "redis://user@host:port/number"),
        ("redis://127.0.0.1/zero", "/zero"),
        ("redis://127.0.0.1/0?password=secret&timeout=3", "timeout"),
    ],
)
async def test_malformed_addresses_are_refused(url: str, expected: str) -> None:
    assert expected in await refusal(url)


def test_a_missing_redis_client_is_reported_with_the_extra_to_install() -> None:
    script = "import sys; sys.modules['redis'] = None; import imqtt.state.redis.state"
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "imqtt.errors.SetupError" in ended.stderr
    assert "pip install '.[redis]' in a checkout" in ended.stderr


async def test_the_state_works_over_a_unix_socket(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, "--unixsocket", str(tmp_path / "redis.sock")):
        state = await open_at(f"unix://{tmp_path}/redis.sock")
        assert await state.workers() == []
        await state.close()


async def test_the_state_works_over_tls(tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2", "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", key, "-out", certificate,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key]
    async with RedisServer(tmp_path, *options, "--tls-auth-clients", "no"):
        url = f"rediss://127.0.0.1:{port}/0"
        state = await open_at(f"{url}?ssl_ca_certs={certificate}")
        assert await state.workers() == []
        await state.close()
        assert "certificate verify failed" in await refusal(url)
        assert "No such file" in await refusal(f"{url}?ssl_ca_certs={tmp_path}/nothing.pem")


@pytest.mark.parametrize("scheme", ["redis://127.0.0.1:6379/0", "unix:///run/redis.sock"])
def test_options_for_tls_need_an_address_with_tls(scheme: str) -> None:
    with pytest.raises(SetupError, match=r"ssl_ca_certs asks for TLS, .* use rediss://"):
        redis_address.Address(f"{scheme}?ssl_ca_certs=/etc/ssl/ca.pem")
    assert (
        str(redis_address.Address("rediss://[::1]/0?ssl_ca_certs=/etc/ssl/ca.pem"))
        == "[::1]:6379, database 0"
    )
