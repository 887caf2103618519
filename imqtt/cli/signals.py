"""Running a coroutine until it ends, or a signal or the end of a block cancels it."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

STDIN_SECONDS = 15.0  # to end after stdin has closed; then the process exits, since its parent may be gone
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a supervisor, a terminal that closes


def run(main: Callable[[], Coroutine[Any, Any, None]], *, with_stdin: bool = False) -> int:
    """Runs `main()`, on uvloop if it is installed. `with_stdin`: only while stdin is open.

    A signal cancels it, and a second signal cancels what its cleanup waits for. Returns the number of the
    first signal, or 0.
    """
    try:
        from uvloop import new_event_loop
    except ImportError:  # Windows has none
        new_event_loop = asyncio.new_event_loop  # type: ignore[assignment]  # any loop will do

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_until_signal(main, with_stdin=with_stdin))


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Runs `work` as a task while the block runs."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until_signal(main: Callable[[], Coroutine[Any, Any, None]], *, with_stdin: bool) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(main(), name="main")
    ended = False
    signalled = 0

    def end(number: int = 0) -> None:
        nonlocal ended, signalled
        ended, signalled = True, signalled or number
        task.cancel()

    # Python delivers signals only to the main thread.
    signals = ENDING if threading.current_thread() is threading.main_thread() else ()
    for number in signals:
        loop.add_signal_handler(number, end, number)

    def read() -> None:
        if not os.read(0, 4_096):
            loop.remove_reader(0)
            loop.call_later(STDIN_SECONDS, os._exit, 1)
            end()

    if with_stdin:
        loop.add_reader(0, read)
    try:
        await task
    except asyncio.CancelledError:
        if not ended:
            raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return signalled
