"""The addresses and ports on which a broker listens."""

import contextlib
import errno
import ipaddress
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imqtt.addresses import host_port
from imqtt.errors import SetupError

FREE = range(20_000, 32_000)
INTERNAL_HOST = "127.0.0.1"  # only loopback: the internal listener accepts devices as well


@dataclass(frozen=True, slots=True)
class Listeners:
    """The host of the public listeners, and all ports. The internal listener is on loopback."""

    host: str
    port: int
    websocket_port: int
    internal_port: int


class PortTaken(SetupError):
    """Another program listens on the port."""

    code = "port_taken"


def choose(given: Listeners, last: Listeners) -> Listeners:
    """The given ports. For a port of 0: the one in `last` if it is free, else any free port.

    Raises `PortTaken`, and `SetupError` for an address that cannot be used.
    """
    with contextlib.ExitStack() as held:  # all at once, so that all are different
        return Listeners(
            given.host,
            _choose(given.host, given.port, last.port, held, "--port"),
            _choose(given.host, given.websocket_port, last.websocket_port, held, "--websocket-port"),
            _choose(INTERNAL_HOST, given.internal_port, last.internal_port, held, "--internal-port"),
        )


def is_exposed(host: str, port: int) -> bool:
    """Whether a port on the loopback address `host` is also open on another address.

    False if `host` is not a loopback address, or if this machine has only one loopback address, like macOS.
    """
    try:
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            return False
        other = "127.0.0.2" if host != "127.0.0.2" else "127.0.0.3"
        with socket.create_connection((other, port), timeout=1.0):
            return True
    except (ValueError, OSError):  # a name, or a closed port
        return False


def holder(port: int) -> str:
    """The program that listens on a TCP port, such as "mosquitto (process 812)"; empty if unknown.

    Only Linux shows this, to root for all processes and to other users for their own.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    if not sockets:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(file) in sockets for file in (process / "fd").iterdir()):  # noqa: PTH115
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return ""


def _listening(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port (proc(5), /proc/net/tcp)."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _choose(host: str, given: int, last: int, held: contextlib.ExitStack, option: str) -> int:
    if last and not given:
        with contextlib.suppress(OSError):
            return _bind(host, last, held)
    try:
        return _bind(host, given, held)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            by = holder(given)
            by = f" by {by}" if by else ""
            raise PortTaken(
                f"port {given} on {host} is in use{by}: stop that program, or give another port with {option}"
            ) from None
        raise SetupError(f"cannot listen on {host_port(host, given)}: {error.strerror}") from error


def _bind(host: str, port: int, held: contextlib.ExitStack) -> int:
    """Takes a port (0: any that is free) until `held` closes. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port == 0:
        # Outgoing connections get ports from 32768 on. A client that connects to a stopped broker on such a
        # port may get the same port for itself, connect to itself, and block the port for the broker.
        for candidate in random.sample(FREE, 100):
            with contextlib.suppress(OSError):
                # Fails if a program listens on the port or an ended connection lingers on it: Mosquitto
                # listens for WebSockets on every address, and cannot bind a port with lingering connections.
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.bind(("", candidate))
                return _bind(host, candidate, held)
    taken = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # even if old connections linger on it
    taken.bind((host, port))
    return int(taken.getsockname()[1])
