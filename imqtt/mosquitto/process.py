"""A child process that ends with this process, and whose output is read continuously."""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import cast

from imqtt.mosquitto.system_user import SystemUser

PIPE_BYTES = 1024 * 1024
_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """For `preexec_fn`: the child gets the signal `number` when this process ends, even by SIGKILL.

    It does nothing except on Linux. The kernel watches the thread that starts the child, so that thread must
    live as long as the child. A later change of user clears the setting.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
            if os.getppid() != parent:  # it ended before the call
                os._exit(1)

    return prepare


class Process:
    """Starts `command` in `directory`, as `user` if one is given.

    It does not get the terminal's Ctrl-C, and ignores SIGHUP until it installs a handler. `output` is called
    in a thread with chunks of stdout and stderr, and must not raise.

    This uses `subprocess` rather than the event loop: uvloop resets what `preexec_fn` sets for signals.
    Raises `OSError` if the program cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        output: Callable[[bytes], None],
        environment: Mapping[str, str],
        user: SystemUser | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        ends_with_parent = end_with_parent()

        def prepare() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            ends_with_parent()

        self._popen = subprocess.Popen(  # noqa: S603 - no shell, and no text of a user's
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            pass_fds=inherit,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else user.groups,
            preexec_fn=prepare,  # noqa: PLW1509 - it takes no lock that another thread may hold
        )
        self.pid = self._popen.pid
        self.status: int | None = None
        """The exit status once it has ended and all output was read; negative for a signal."""
        self._ended: Future[None] = Future()
        threading.Thread(target=self._follow, args=(output,), name=f"output-{self.pid}", daemon=True).start()

    async def wait(self) -> int:
        """Returns the exit status once it has ended and all output was read."""
        loop = asyncio.get_running_loop()
        notified = asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(notified.set)

        self._ended.add_done_callback(tell)
        await notified.wait()
        return cast("int", self.status)

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing if it has ended."""
        self._popen.send_signal(number)

    def _follow(self, output: Callable[[bytes], None]) -> None:
        assert self._popen.stdout is not None  # noqa: S101 - it is a pipe
        descriptor = self._popen.stdout.fileno()
        with contextlib.suppress(AttributeError, OSError):  # a larger buffer, on Linux only
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        while chunk := os.read(descriptor, 65_536):
            output(chunk)
        self.status = self._popen.wait()
        self._popen.stdout.close()
        self._ended.set_result(None)
