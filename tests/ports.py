"""Free ports for processes that tests start.

A port is found free some time before the process that is to listen there binds it, and it is free again
while that process is restarted. So that no other test gets it meanwhile, here or in a run beside this one,
this process keeps a lock on each port that it was given until it ends.
"""

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import TypedDict

# Not ports of outgoing connections: a client that connects to the port of a stopped server might get the same
# port for itself. And not those from which imqtt chooses.
PORTS = range(10_000, 20_000)

_locks = -1


class Listeners(TypedDict):
    """Ports of a `Mosquitto`, by the names of its arguments."""

    port: int
    websocket_port: int
    internal_port: int


def free_port() -> int:
    """A port without a listener, reserved for the caller while this process runs."""
    for _ in PORTS:
        port = random.choice(PORTS)
        if _lock(port):
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("", port))
                return port
    raise AssertionError(f"hardly any port from {PORTS.start} to {PORTS.stop - 1} is free")


def listeners() -> Listeners:
    return {"port": free_port(), "websocket_port": free_port(), "internal_port": free_port()}


_given: set[int] = set()


def _lock(port: int) -> bool:
    """Reserves a port by locking a byte of a file, until the process ends. False if it is reserved."""
    global _locks  # noqa: PLW0603
    if port in _given:
        return False
    if _locks < 0:
        path = Path(tempfile.gettempdir()) / f"imqtt-test-ports-{os.getuid()}"
        _locks = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given.add(port)
    return True
