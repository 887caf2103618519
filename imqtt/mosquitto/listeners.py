"""Where a broker listens: ports that are given, that it had last time, or that are free."""

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
INTERNAL_HOST = "127.0.0.1"  # a device's credential works on the internal listener too


@dataclass(frozen=True, slots=True)
class Listeners:
    """The host of the public listeners, and the ports of all. The internal listener is on loopback."""

    host: str
    port: int
    websocket_port: int
    internal_port: int


class PortTaken(SetupError):
    """Another program listens on the port."""

    code = "port_taken"


def choose(given: Listeners, last: Listeners) -> Listeners:
    """The given ports; for one that is 0, the one of last time if it is free, else any that is.

    Raises `PortTaken`, and `SetupError` for an address that cannot be listened on.
    """
    with contextlib.ExitStack() as held:  # all at once, so that no two get the same
        return Listeners(
            given.host,
            _choose(given.host, given.port, last.port, held, "--port"),
            _choose(given.host, given.websocket_port, last.websocket_port, held, "--websocket-port"),
            _choose(INTERNAL_HOST, given.internal_port, last.internal_port, held, "--internal-port"),
        )


def is_exposed(host: str, port: int) -> bool:
    """Whether a port that should be open only on the loopback address `host` also answers at another one.

    False if `host` is not a loopback address, or if this machine has only one of them, as macOS does.
    """
    if host != "localhost" and not _is_loopback(host):
        return False
    return _answers("127.0.0.2" if host != "127.0.0.2" else "127.0.0.3", port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def holder(port: int) -> str:
    """Which program listens on a TCP port here, such as "mosquitto (process 812)"; empty if unknown.

    Linux tells it to root, and to others about their own processes.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    if not sockets:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(it) in sockets for it in (process / "fd").iterdir()):  # noqa: PTH115
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return ""


def _listening(port: int) -> Iterator[str]:
    """The inodes of sockets that listen on a port (proc(5), /proc/net/tcp)."""
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
                f"port {given} on {host} is in use{by}: stop what listens there,"
                f" or give another with {option}"
            ) from None
        raise SetupError(f"cannot listen on {host_port(host, given)}: {error.strerror}") from error


def _bind(host: str, port: int, held: contextlib.ExitStack) -> int:
    """Takes a port (0: any that is free) until `held` closes. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port == 0:
        # A system gives outgoing connections their ports from 32768 on. A client that tries a stopped
        # broker on such a port may be given that very port, connect to itself, and keep the broker from it.
        for candidate in random.sample(FREE, 100):
            with contextlib.suppress(OSError):
                _check_unused(family, candidate)
                return _bind(host, candidate, held)
    taken = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that only waits out its last connection
    taken.bind((host, port))
    return int(taken.getsockname()[1])


def _check_unused(family: socket.AddressFamily, port: int) -> None:
    """Raises `OSError` for a port on which anything listens, or an ended connection still lingers.

    Mosquitto listens for websockets on every address, and does not get a port that lingers.
    """
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind(("", port))
