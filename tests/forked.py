"""Processes that begin in milliseconds: forks of a process that has imported what a command imports.

A test that needs a process needs one that can be killed, paused and signalled; `python -m` spends half a
second of CPU on imports before that. `tests/cli` starts some commands by `python -m` too.
"""

import asyncio
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from imqtt.mosquitto.process import end_with_parent

PRELOADED = (
    "imqtt.cli.app", "imqtt.cli.chat_controller", "imqtt.cli.client", "imqtt.cli.screen",
    "imqtt.cli.services", "imqtt.cli.supervisor", "imqtt.state.redis.state", "imqtt.stores.mongo.store",
    "imqtt.stores.sqlite.store", "uvloop",
)  # fmt: skip


class Forked:
    """A process, with the methods of `asyncio.subprocess.Process` that tests use."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(status, self._read)

    def _read(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        self.returncode = int(self._status.recv(100))
        self._status.close()
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(*command: str, env: Mapping[str, str], out: int, terminal: bool = False) -> Forked:
    """Runs `python -m` with `command`, with stdout and stderr on `out`.

    With `terminal`, `out` is its stdin and its controlling terminal, too.
    """
    status, theirs = socket.socketpair()
    with theirs:
        request = json.dumps({"command": command, "env": dict(env), "terminal": terminal}).encode()
        _, requests = _preloaded()
        socket.send_fds(requests, [request], [out, theirs.fileno()])
    return Forked(int(status.recv(100)), status)


@functools.cache
def _preloaded() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process that forks, and the connection to it. It ends with this process, and its forks with it."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(number)],
            pass_fds=[number], stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return process, ours


def main() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])), end_with_parent(signal.SIGKILL))
    if request is not None:
        module, *arguments = request["command"]
        sys.argv = [module, *arguments]
        os.environ.clear()
        os.environ.update(request["env"])
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve(requests: socket.socket, ends_with_parent: Callable[[], None]) -> dict[str, Any] | None:
    """Forks for each request. Returns the request in the child, and None when `requests` is closed."""
    waiting = selectors.DefaultSelector()
    waiting.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.data is not None:
                pid, status = key.data
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                status.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                status.close()
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 1_000_000, 2)
            if not message:
                return None
            request = json.loads(message)
            out, status = descriptors[0], socket.socket(fileno=descriptors[1])
            if pid := os.fork():
                os.close(out)
                status.sendall(b"%d" % pid)
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
            else:
                ends_with_parent()
                _become(out, terminal=request["terminal"])
                return request


def _become(out: int, *, terminal: bool) -> None:
    """Takes the standard streams, and closes everything else."""
    if terminal:
        os.login_tty(out)
    else:
        os.dup2(out, 1)
        os.dup2(out, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # Their buffering depends on the kind of file.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open until the process ends
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
