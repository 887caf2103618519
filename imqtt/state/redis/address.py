"""The address of Redis, and checked connections to it.

Neither the address as text nor any error contains a password.
"""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from imqtt.addresses import host_port
from imqtt.distribution import how_to_install
from imqtt.errors import SetupError
from imqtt.state.redis.keys import Keys
from imqtt.state.redis.scripts import CHECK, PROBE

try:
    import hiredis
    from redis.asyncio.connection import AbstractConnection, Connection, parse_url
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        ClusterDownError,
        InvalidResponse,
        NoPermissionError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
except ImportError as error:
    raise SetupError(f"Redis's client is not installed ({error}): {how_to_install('redis')}") from error

OPEN_SECONDS = 5.0  # services of a machine start together, and Redis first loads its data
CONNECT_SECONDS = 5.0  # for several round trips on a busy machine
OLDEST = (6, 2)  # ZADD GT

# Errors that last until Redis or its operator has recovered. Any other error is a bug. redis-py has classes
# for some of them, and only the text of the others.
_CANNOT = (ClusterDownError, NoPermissionError, OutOfMemoryError, ReadOnlyError)
_CANNOT_TEXTS = ("BUSY ", "MISCONF ", "NOREPLICAS ", "OOM ", "READONLY ", "NOPERM ")


def is_away(error: Exception) -> bool:
    """Whether the error means that Redis does not answer, or refuses everything for now."""
    if isinstance(error, ResponseError):
        text = str(error)
        # Redis 6.2 wraps the error in a script: "Error running script (...): @user_script:1: -OOM command
        # ...".
        known = any(text.startswith(prefix) or f"-{prefix}" in text for prefix in _CANNOT_TEXTS)
        return isinstance(error, _CANNOT) or known or _is_forbidden(error)
    return isinstance(error, RedisError | OSError | TimeoutError)


def _is_forbidden(error: Exception) -> bool:
    # In a script, Redis 7 says: "ERR The user executing the script can't run this command".
    return isinstance(error, NoPermissionError) or "The user executing the script can't" in str(error)


def pack(command: tuple[str | bytes | int, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # typed as a pair of one
    return packed


class Address:
    """`password` replaces the one in the URL. Raises `SetupError` if the URL is malformed."""

    def __init__(self, url: str, password: str = "") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            parsed = parse_url(url)
        except ValueError:  # which may quote a part of the password
            raise SetupError("the state's address is malformed: use redis://user@host:port/number") from None
        number = parts.path.strip("/")
        if parts.scheme != "unix" and number and not number.isdecimal():
            raise SetupError(f"redis: /{number} is not the number of a database: use redis://host:port/0")
        self._connection = parsed.get("connection_class", Connection)
        arguments = {name: value for name, value in parsed.items() if name != "connection_class"}
        own = {"username", "password", "host", "port", "path", "db"}
        unknown = [name for name in arguments if name not in own and not name.startswith("ssl_")]
        if unknown:
            raise SetupError(f"redis: the address has options that imqtt does not know: {', '.join(unknown)}")
        if parts.scheme != "rediss" and (options := [name for name in arguments if name.startswith("ssl_")]):
            raise SetupError(
                f"redis: {options[0]} asks for TLS, but {parts.scheme}:// does not use it: use rediss://"
            )
        if password:
            arguments["password"] = password
        self._arguments: Mapping[str, Any] = arguments
        where = host_port(parts.hostname or "localhost", port or 6379)
        where = parts.path if parts.scheme == "unix" else where
        self._text = f"{where}, database {arguments.get('db', 0)}"

    def __str__(self) -> str:
        return self._text

    async def connect(self, keys: Keys, *, first: bool = False) -> AbstractConnection:
        """A connection to a Redis that accepts writes. Raises redis-py's errors or `TimeoutError`.

        For the `first` one, also checks the server and raises `SetupError` if it cannot be used.
        """
        # Without redis-py's timeouts, which cost a task each; the caller's timeout covers everything.
        connection: AbstractConnection = self._connection(
            **self._arguments, protocol=2, socket_timeout=None, socket_connect_timeout=CONNECT_SECONDS
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has no types here
                if first:
                    await _check(connection, self, keys)
                await ask(connection, "EVAL", PROBE, 1, keys.probe)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


async def ask(connection: AbstractConnection, *command: str | bytes | int) -> object:
    await connection.send_packed_command(pack(command), check_health=False)
    answer: object = await connection.read_response()
    return answer


async def open_first(address: Address, keys: Keys) -> AbstractConnection:
    """A server's first connection. Raises `SetupError`, which tells the operator what to do."""
    deadline = asyncio.get_running_loop().time() + OPEN_SECONDS
    while True:
        try:
            return await address.connect(keys, first=True)
        except (RedisError, OSError, TimeoutError) as error:
            problem = _problem(error, address)
            if not problem and asyncio.get_running_loop().time() > deadline:
                why = str(error).rstrip(".") or "no answer in time"
                problem = f"no usable Redis at {address}: {why}. Start one, or correct the address"
            if problem:
                raise SetupError(problem) from error
            await asyncio.sleep(0.1)


def _problem(error: Exception, address: Address) -> str:
    """The error's text for the operator, or "" if it may pass, such as while Redis is starting."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return f"the Redis at {address} refuses this user and password: {error}"
    if _is_forbidden(error):
        return (
            f"the Redis at {address} does not give this user enough permissions: {error}. imqtt needs "
            "~imqtt:* +@read +@write +@scripting +@connection +info +time"
        )
    if isinstance(error, ResponseError) and not is_away(error):
        return f"the Redis at {address} refuses a command: {error}"
    return f"the server at {address} is not a Redis" if isinstance(error, InvalidResponse) else ""


async def _check(connection: AbstractConnection, address: Address, keys: Keys) -> None:
    """Raises `SetupError` for a Redis that is too old or one of a Redis Cluster."""
    answer = await ask(connection, "INFO")
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    about = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    version = about.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise SetupError(f"the Redis at {address} is version {version or 'unknown'}; imqtt needs {oldest}")
    if about.get("cluster_enabled") == "1":
        raise SetupError(
            f"the Redis at {address} belongs to a Redis Cluster, where a script cannot use keys of several "
            "nodes; give imqtt a Redis of its own, with a replica if you like"
        )
    await ask(connection, "EVAL", CHECK, 1, keys.probe)
    await ask(connection, "MGET", keys.probe)
