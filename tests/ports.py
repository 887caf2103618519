"""Free ports for processes that tests start.

A port is found free before its process binds it, and is free again while the process restarts. This process
holds a lock on each port it returns until it ends, so no other test, in this run or another, gets the port
meanwhile.
"""

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import TypedDict

# Outside the range of outgoing connections, which a client might be given when it connects to a stopped
# server's port, and outside the range from which imqtt chooses.
PORTS = range(10_000, 20_000)

_locks = -1


class Listeners(TypedDict):
    """The ports of a `Mosquitto`, by argument name."""

    port: int
    websocket_port: int
    internal_port: int


def free_port() -> int:
    """A port without a listener, reserved while this process runs."""
    for _ in PORTS:
        port = random.choice(PORTS)
        if _lock(port):
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("", port))
                return port
    raise AssertionError(f"no free port found from {PORTS.start} to {PORTS.stop - 1}")


def listeners() -> Listeners:
    return {"port": free_port(), "websocket_port": free_port(), "internal_port": free_port()}


_given: set[int] = set()


def _lock(port: int) -> bool:
    """Locks a byte of a file for this port; whether that succeeded. The end of the process releases it."""
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
