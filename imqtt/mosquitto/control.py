"""Requests to the server and its broker, sent with the server's account."""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, LinkError, describe
from imqtt.broker.link import Link, LinkSettings, Packet, connect
from imqtt.config import ServerConfig
from imqtt.errors import ImqttError, SetupError
from imqtt.mosquitto.login import log_in
from imqtt.tls_files import TlsFileError, TlsFiles

if TYPE_CHECKING:
    # Most commands do not need it, and it loads the server.
    from imqtt.server.control import PresenceReport

TIMEOUT = 5.0  # seconds, for connecting
ANSWER_SECONDS = 3.0

T = TypeVar("T")


class ServerUnreachable(ImqttError):
    """The server or its broker does not answer, or the broker refuses the server's account."""

    code = "server_unreachable"
    retryable = True


@dataclass(frozen=True, slots=True)
class Access:
    """The broker's internal listener and the server's account on it.

    Every method blocks, and except `login` raises `ServerUnreachable`.
    """

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def of(cls, config: ServerConfig) -> "Access | None":
        """The access to an `imqtt serve` with these settings; None without the server's credentials."""
        if not (config.broker_password or config.broker_certificate):
            return None
        host, port, username = config.broker_host, config.broker_port, config.broker_username
        return cls(host, port, username, config.broker_password, _tls(config))

    def login(self, username: str, password: str) -> bool:
        """Whether the broker accepts these credentials. Raises `OSError`."""
        return log_in(self.host, self.port, username, password, self.tls)

    def end_sessions(self, usernames: Iterable[str]) -> None:
        """Ends devices' connections and drops their sessions with everything queued in them.

        On the public listener, the client id of a session is the username. On the internal listener the
        server may use any client id, so it takes over these sessions with a clean start.
        """

        async def end() -> None:
            for username in usernames:
                link = await self._connect(username)
                await link.close()

        _run(end())

    def try_end_sessions(self, usernames: Iterable[str]) -> None:
        """`end_sessions` for a broker that may stop in the meantime, which ends its sessions as well."""
        with contextlib.suppress(ServerUnreachable):
            self.end_sessions(usernames)

    def revoke(self, usernames: Sequence[str]) -> None:
        """Makes the server forget devices, at once or when it starts again."""
        from imqtt.server import control

        async def tell() -> None:
            link = await self._connect()
            try:
                order = Packet(control.TOPIC, control.encode(control.Revoke(tuple(usernames))))
                (code,) = await link.publish([order])
            finally:
                await link.close()
            if code == NO_MATCHING_SUBSCRIBERS:
                raise ServerUnreachable("no server has ever run on this broker")
            if code:
                raise ServerUnreachable(f"the broker refuses the request: {describe(code)}")

        _run(tell())

    def ask(self, user: str) -> "PresenceReport":
        """The presence of the user's devices."""
        from imqtt.server import control

        async def ask() -> "PresenceReport":
            link = await self._connect()
            reply = secrets.token_hex(8)
            try:
                await link.subscribe(control.REPLIES + reply)
                order = Packet(control.TOPIC, control.encode(control.Ask(user, reply)))
                if await link.publish([order]) == [NO_MATCHING_SUBSCRIBERS]:
                    raise ServerUnreachable("no server runs on this broker")
                async with asyncio.timeout(ANSWER_SECONDS):
                    (received, *_) = await link.receive(1)
            except TimeoutError:
                raise ServerUnreachable("the server does not answer") from None
            finally:
                await link.close()
            return control.parse_answer(received.payload)

        return _run(ask())

    async def _connect(self, client_id: str = "") -> Link:
        return await connect(
            LinkSettings(
                self.host,
                self.port,
                client_id,
                self.username,
                self.password,
                clean_start=True,
                tls=self.tls,
                timeout=TIMEOUT,
            )
        )


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except (OSError, LinkError) as error:
        raise ServerUnreachable(f"the broker cannot be reached: {error}") from error


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if not config.broker_ca:
        return None
    try:
        return TlsFiles(config.broker_ca, config.broker_certificate, config.broker_key).context()
    except TlsFileError as error:
        raise SetupError(f"TLS to the broker: {error}") from error
